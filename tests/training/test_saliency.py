"""Saliency against attention written out by hand, finite differences and plain loops over positions (3)-(6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sidray.errors import UserError
from sidray.models.inputs import Segment, batch_of
from sidray.models.mlrm import VISUAL, Mlrm, build_mlrm
from sidray.models.note_inputs import open_visual
from sidray.models.note_prompts import NotePrompter
from sidray.models.note_settings import ConnectorSettings, NoteInputs, NoteSettings
from sidray.models.prompts import load_tokenizer
from sidray.models.settings import ModelSettings, TextSettings
from sidray.training.module import StageModule
from sidray.training.saliency import Saliency, pair_sets, saliency_matrices, saliency_of
from sidray.training.settings import StageSettings
from tests.models.tiny import LM, tiny_settings, write_weights

QUERIES = 3
NOTES = ["red cat", "blue dog with soup", "green", "a dress", "red red red soup", "cat", "the blue dress", "dog"]
PICTURES = [True, True, False, True, True, True, True, False]
VARIANTS: dict[str, dict[str, Any]] = {
    "basic": {"micl": False, "late": False},
    "micl": {"micl": True, "late": True},
}
TASKS = {"basic": {"note2note": 1.0}, "micl": {"note2note": 0.9, "note2note_visual": 0.1}, "omni": {"omni": 1.0}}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder, tiny_settings())
    return folder


def settings_of(weights: Path, frozen: int = 0, **note: Any) -> ModelSettings:
    text = TextSettings(weights=str(weights / "text"), frozen_layers=frozen, max_tokens=64)
    connector = ConnectorSettings(queries=QUERIES, layers=2, width=32, heads=2, intermediate=48)
    words = {"opening": "N: ", "instruction": '. One:"', "dropout": 0.3}
    chosen = NoteSettings(connector=connector, dimension=8, temperature=1.0, **words, **note)
    return tiny_settings().model_copy(update={"text": text, "note": chosen})


def module_of(
    weights: Path, tasks: dict[str, float], settings: ModelSettings, train: list[str] | None = None, chunk: int = 0
) -> StageModule:
    vision = weights / "image" if settings.note is not None and settings.note.looks else None
    model = build_mlrm(weights / "text", vision, settings, with_frozen=True)
    every: dict[str, Any] = {} if train is None else {"train": train}
    return StageModule(model, StageSettings(name="s", tasks=tasks, **every), chunk)  # type: ignore[arg-type]


def prompts_of(weights: Path, settings: ModelSettings, base: int, shown: NoteInputs = "multimodal") -> list[list[int]]:
    """The notes' prompts with their visual places opened up."""
    assert settings.note is not None
    prompter = NotePrompter(load_tokenizer(weights / "text"), settings.text, settings.note, [], base)
    style = settings.note.prompt(settings.note.shown(shown))
    prompts = prompter.notes([{"title": title} for title in NOTES], PICTURES, style)
    return [open_visual(Segment(np.array(ids)), QUERIES).ids.tolist() for ids in prompts]


def batch_for(weights: Path, module: StageModule) -> dict[str, Tensor]:
    """Four pairs: notes of different lengths, two of them without a picture."""
    g = torch.Generator().manual_seed(0)
    settings, base = module.model.settings, module.model.base
    batch: dict[str, Tensor] = {}
    for column, shown in (("note", "multimodal"), ("note_text", "text"), ("note_image", "image")):
        prompts = prompts_of(weights, settings, base, shown)  # type: ignore[arg-type]
        batch |= batch_of([[Segment(np.array(ids))] for ids in prompts], column)
    batch["item_row"] = torch.arange(len(NOTES))
    batch["related"] = torch.full((len(NOTES), 1), torch.iinfo(torch.int64).max)  # none
    assert settings.note is not None
    if settings.note.looks:
        batch["image"] = torch.randint(0, 255, (len(NOTES), 3, 16, 16), generator=g).to(torch.uint8)
        batch["image.present"] = torch.tensor(PICTURES)
    return batch


@pytest.fixture(params=["basic", "micl"])
def case(request: pytest.FixtureRequest, weights: Path) -> tuple[StageModule, dict[str, Tensor]]:
    module = module_of(weights, TASKS[request.param], settings_of(weights, **VARIANTS[request.param]))
    return module, batch_for(weights, module)


class ByHand:
    """Attention once more, in float64, with a term `added` to its matrix whose gradient is that of the matrix."""

    def __init__(self) -> None:
        self.matrices: list[Tensor] = []
        self.added: list[Tensor] = []

    def __call__(
        self, layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        heads, length = query.shape[1], query.shape[2]
        key, value = (each.repeat_interleave(heads // each.shape[1], 1).double() for each in (key, value))
        scores = torch.einsum("bhid,bhjd->bhij", query.double(), key) * scaling
        later = torch.arange(length)[:, None] < torch.arange(length)  # padding stands on the right: never looked at
        matrix = scores.masked_fill(later, float("-inf")).softmax(-1)
        added = torch.zeros_like(matrix)
        self.matrices.append(matrix.detach())
        self.added.append(added.requires_grad_())
        return torch.einsum("bhij,bhjd->bihd", matrix + added, value).to(query.dtype), None


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[StageModule, dict[str, Tensor]], tuple[Tensor, ByHand]]:
    """(module, batch) -> loss without dropout, and the attention of the run."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def run(module: StageModule, batch: dict[str, Tensor]) -> tuple[Tensor, ByHand]:
        hand = ByHand()
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "by_hand", hand)
        text = module.model.text
        before = text.lm.config._attn_implementation
        text.lm.set_attn_implementation("by_hand")
        with text.whole_layers():
            loss = module.eval()(batch)[0]
        text.lm.set_attn_implementation(before)
        return loss, hand

    return run


def test_the_matrices_are_equation_3(case: Any, by_hand: Any) -> None:
    module, batch = case
    loss, hand = by_hand(module, batch)
    gradients = torch.autograd.grad(loss, hand.added)
    want = torch.stack([(a * g).abs().sum(1) for a, g in zip(hand.matrices, gradients, strict=True)])
    found_loss, found = saliency_matrices(module, batch)
    assert found_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    assert found.shape == (3, len(NOTES), *batch["note.ids"].shape[1:], batch["note.ids"].shape[1])
    assert want.max() > 1e-3
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-6)


def test_omni_is_measured_on_the_prompts_of_whole_notes(weights: Path, by_hand: Any) -> None:
    """Its loss reads three kinds of prompts: text and image first, then the notes."""
    module = module_of(weights, TASKS["omni"], settings_of(weights, **VARIANTS["basic"]))
    batch = batch_for(weights, module)
    loss, hand = by_hand(module, batch)
    gradients = torch.autograd.grad(loss, hand.added)
    assert len(gradients) == 9
    want = torch.stack([(a * g).abs().sum(1) for a, g in zip(hand.matrices[6:], gradients[6:], strict=True)])
    torch.testing.assert_close(saliency_matrices(module, batch)[1].double(), want, rtol=1e-3, atol=1e-6)


def loop_sets(prompt: list[int], base: int) -> dict[str, set[tuple[int, int]]]:
    """(4)-(6) position by position."""
    c = len(prompt) - 1
    sets: dict[str, set[tuple[int, int]]] = {"S_v": set(), "S_t": set(), "S_o": set()}
    for i in range(len(prompt)):
        for j in range(i):
            word = j + 1 < len(prompt) and prompt[j + 1] == base
            if i == c and (prompt[j] == VISUAL or word):
                sets["S_v"].add((i, j))
            elif i == c and prompt[j] != base:
                sets["S_t"].add((i, j))
            else:
                sets["S_o"].add((i, j))
    return sets


def test_the_pairs_of_positions_are_those_of_plain_loops(case: Any, weights: Path) -> None:
    module, batch = case
    model: Mlrm = module.model
    prompts = prompts_of(weights, model.settings, model.base)
    assert len({len(prompt) for prompt in prompts}) > 2  # some are padded
    found = pair_sets(batch["note.ids"], batch["note.mask"], model.base)
    for b, prompt in enumerate(prompts):
        sets = loop_sets(prompt, model.base)
        assert len(sets["S_v"]) == (QUERIES + model.note.micl if PICTURES[b] else 0)
        for k, pairs in enumerate(sets.values()):
            assert {(int(i), int(j)) for i, j in found[k, b].nonzero()} == pairs


def test_the_compressed_word_of_the_picture_is_visual_and_img_emb_is_not() -> None:
    base, padding = 300, 0
    ids = torch.tensor([[5, VISUAL, VISUAL, 6, base, 7, 8, padding]])
    found = pair_sets(ids, torch.arange(8)[None] < 7, base)[:, 0]
    assert found[0].nonzero().tolist() == [[6, 1], [6, 2], [6, 3]]
    assert found[1].nonzero().tolist() == [[6, 0], [6, 5]]
    assert found[2, 6, 4]
    assert int(found[2].sum()) == 21 - 5


def test_the_scores_are_means_by_note_and_then_over_notes(case: Any, weights: Path) -> None:
    module, batch = case
    matrices = saliency_matrices(module, batch)[1]
    found = saliency_of(module, batch)
    assert found.counts.tolist() == [sum(PICTURES), len(NOTES), len(NOTES)]
    by_note: dict[str, list[list[float]]] = {"S_v": [], "S_t": [], "S_o": []}
    for b, prompt in enumerate(prompts_of(weights, module.model.settings, module.model.base)):
        for name, pairs in loop_sets(prompt, module.model.base).items():
            if pairs:
                by_note[name].append([np.mean([matrices[layer, b, i, j] for i, j in pairs]) for layer in range(3)])
    means = found.means()
    for name, values in by_note.items():
        np.testing.assert_allclose(means[name], np.mean(values, 0), rtol=1e-4)
    relative = found.relative()
    np.testing.assert_allclose(np.sum([relative[name] for name in by_note], 0), 1, rtol=1e-9)
    np.testing.assert_allclose(
        np.divide(relative["S_v"], relative["S_t"]), np.divide(means["S_v"], means["S_t"]), rtol=1e-9
    )


def test_batches_add_up() -> None:
    one = Saliency(torch.tensor([[0.0, 2.0, 2.0]]), torch.tensor([0, 2, 2]))
    two = Saliency(torch.tensor([[3.0, 1.0, 8.0]]), torch.tensor([1, 1, 2]))
    assert one.means() == {"S_v": None, "S_t": [1.0], "S_o": [1.0]}
    assert one.relative() == {"S_v": None, "S_t": [0.5], "S_o": [0.5]}
    assert (one + two).means() == {"S_v": [3.0], "S_t": [1.0], "S_o": [2.5]}
    assert (one + two).relative()["S_v"] == pytest.approx([3 / 6.5])


def test_padding_chunks_and_what_is_trained_change_nothing(case: Any, weights: Path) -> None:
    module, batch = case
    loss, matrices = saliency_matrices(module, batch)
    want, length = saliency_of(module, batch), matrices.shape[-1]
    padded = dict(batch)
    for name in ("note.ids", "note.mask"):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 5))
    wider_loss, wider = saliency_matrices(module, padded)
    assert wider_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(wider[..., :length, :length], matrices, rtol=1e-4, atol=1e-7)
    settings, tasks = module.model.settings, module.stage.tasks
    chunked = module_of(weights, tasks, settings, chunk=3)
    frozen = module_of(weights, tasks, settings, train=["mlp"])
    for found in (saliency_of(module, padded), saliency_of(chunked, batch), saliency_of(frozen, batch)):
        torch.testing.assert_close(found.sums, want.sums, rtol=1e-4, atol=1e-9)
        assert torch.equal(found.counts, want.counts)
    assert chunked.chunk == 3


def test_the_model_is_left_as_it_was(case: Any) -> None:
    module, batch = case
    lm, image = module.model.text.lm, module.model.image
    module.train()
    image.eval()
    before = lm.config._attn_implementation
    modes = [part.training for part in module.modules()]
    module.chunk = 3
    with torch.no_grad():
        first, second = saliency_of(module, batch), saliency_of(module, batch)
    assert torch.equal(first.sums, second.sums)  # no dropout
    assert before == "sdpa" == lm.config._attn_implementation
    assert [part.training for part in module.modules()] == modes
    assert not module.model.text._whole
    assert module.chunk == 3
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    plain = module.eval()(batch)[0].item()
    assert saliency_matrices(module, batch)[0].item() == pytest.approx(plain, abs=1e-5)


def test_a_failure_leaves_the_model_as_it_was(case: Any) -> None:
    module, batch = case
    module.train()
    with pytest.raises(KeyError):
        saliency_of(module, {name: value for name, value in batch.items() if name != "related"})
    assert module.model.text.lm.config._attn_implementation == "sdpa"
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_layers_below_the_cut_have_no_score(weights: Path) -> None:
    settings = settings_of(weights, frozen=1, **VARIANTS["micl"])
    module = module_of(weights, TASKS["micl"], settings)
    assert saliency_of(module, batch_for(weights, module)).sums.shape == (2, 3)


def test_a_model_of_text_has_no_visual_score(weights: Path) -> None:
    text: dict[str, Any] = {"inputs": "text", "early": False, "micl": False, "late": False}
    module = module_of(weights, TASKS["basic"], settings_of(weights, **text))
    relative = saliency_of(module, batch_for(weights, module)).relative()
    assert relative["S_v"] is None
    assert relative["S_t"] is not None
    assert relative["S_o"] is not None
    assert [t + o for t, o in zip(relative["S_t"], relative["S_o"], strict=True)] == pytest.approx([1.0] * 3)


def test_an_lm_that_shows_no_attention_is_refused(tmp_path: Path) -> None:
    other = {name: value for name, value in LM.items() if name not in {"num_key_value_heads", "head_dim"}}
    settings = tiny_settings()
    text = settings.text.model_copy(update={"config": other | {"model_type": "gpt_neox"}})
    write_weights(tmp_path, settings.model_copy(update={"text": text}))
    module = module_of(tmp_path, TASKS["basic"], settings_of(tmp_path, **VARIANTS["basic"]))
    with pytest.raises(UserError, match="not every layer of GPTNeoXForCausalLM"):
        saliency_of(module, batch_for(tmp_path, module))
