"""Which weights decay and how fast each part learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sidray.training.engine import deepspeed_config, parameter_groups
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings, TrainingSettings
from tests.models.tiny import tiny_mlrm, tiny_towers


def test_matrices_decay_and_tokens_have_a_rate_of_their_own(tmp_path: Path) -> None:
    stage = StageSettings(name="s", tasks={"query2item": 1.0, "doc2docid": 1.0}, lr=1e-3, weight_decay=0.1)
    module = StageModule(tiny_towers(tmp_path, 9), stage)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    rates, decays = {}, {}
    for group in parameter_groups(module, stage, token_lr=0.25):
        for parameter in group["params"]:
            rates[names[id(parameter)]], decays[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(rates) == {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert rates.pop("model.text.sids.weight") == 2.5e-4
    assert set(rates.values()) == {1e-3}
    assert (
        decays["model.text.sids.weight"]
        == decays["model.mlp_q.0.bias"]
        == decays["model.text.lm.model.norm.weight"]
        == 0
    )
    assert decays["model.mlp_q.0.weight"] == decays["model.text.lm.model.embed_tokens.weight"] == 0.1


def test_a_part_learns_at_its_own_rate(tmp_path: Path) -> None:
    stage = StageSettings(name="s", tasks={"note2note": 1.0}, lr=1e-3, rates={"text": 0.1, "connector": 3.0})
    module = StageModule(tiny_mlrm(tmp_path), stage)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, stage, token_lr=0.25)
    rates = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert rates["model.text.lm.model.norm.weight"] == pytest.approx(1e-4)
    assert rates["model.connector.project.weight"] == pytest.approx(3e-3)
    assert rates["model.projector.weight"] == 1e-3
    assert rates["model.text.sids.weight"] == 2.5e-4
    assert set(rates) == {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_sid_tokens_have_a_multiple_of_their_rate(tmp_path: Path) -> None:
    stage = StageSettings(name="s", tasks={"doc2docid": 1.0}, lr=1e-3, rates={"sids": 2.0})
    module = StageModule(tiny_towers(tmp_path, 9), stage)
    (rate,) = [
        group["lr"]
        for group in parameter_groups(module, stage, token_lr=0.25)
        if any(parameter is module.model.text.sids.weight for parameter in group["params"])  # type: ignore[union-attr]
    ]
    assert rate == pytest.approx(5e-4)


def test_a_stage_begins_with_dropout(tmp_path: Path) -> None:
    """Pretrained weights come in eval mode."""
    module = StageModule(tiny_mlrm(tmp_path).eval(), StageSettings(name="s", tasks={"note2note": 1.0}))
    assert all(each.training for each in module.modules())


def test_only_zero_3_offloads() -> None:
    parts = deepspeed_config(TrainingSettings(zero_stage=3, offload="optimizer"), 8, False)["zero_optimization"]
    assert {name for name, value in parts.items() if name.startswith("offload_")} == {"offload_optimizer"}
    with pytest.raises(ValidationError, match="offload=parameters needs zero_stage=3, and it is 2"):
        TrainingSettings(zero_stage=2, offload="parameters")
