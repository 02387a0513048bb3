"""Which weights decay and how fast each part learns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from pydantic import ValidationError

from sidray.cluster import free_port
from sidray.training.engine import deepspeed_config, full_state, make_engine, parameter_groups
from sidray.training.module import StageModule
from sidray.training.settings import StageSettings, TrainingSettings
from tests.models.tiny import random_batch, tiny_mlrm, tiny_towers


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


def _bf16(_: int, port: int, folder: str) -> None:
    """Steps without ZeRO in bf16: what is saved are the fp32 masters, of which the parameters are the rounding."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    stage = StageSettings(name="s", tasks={"query2item": 1.0}, lr=1e-3, warmup=0)
    module = StageModule(tiny_towers(Path(folder), 0), stage)
    engine = make_engine(module, stage, TrainingSettings(precision="bf16"), 9, 12, 1.0, universal=False)
    for step in range(3):
        batch = {
            k: v.bfloat16() if v.is_floating_point() else v for k, v in random_batch(module.model, 12, step).items()
        }
        engine.backward(engine(batch)[0])
        engine.step()
    state = full_state(module.model, engine.optimizer)
    trained = {name: p for name, p in module.model.named_parameters() if p.requires_grad and p.grad is None}
    assert any(name in state for name in trained)
    for name, parameter in trained.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name].bfloat16(), parameter)
    assert not all(torch.equal(state[name], parameter.float()) for name, parameter in trained.items())
    torch.distributed.destroy_process_group()


def test_the_masters_of_bf16_are_saved(tmp_path: Path) -> None:
    mp.spawn(_bf16, args=(free_port(), str(tmp_path)), nprocs=1)
