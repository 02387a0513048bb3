"""Towers: pooling at EOS, fusion, missing pictures, the cut against the whole model, checkpoints of another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sidray.errors import UserError
from sidray.models.inputs import Segment, batch_of, sid_segment
from sidray.models.prompts import Prompter, load_tokenizer
from sidray.models.settings import Fusion, ModelSettings, Prompts, TextSettings
from sidray.models.text import load_lm, pool_last
from sidray.models.towers import (
    ImageInput,
    TextInput,
    build_towers,
    fuse,
)
from sidray.models.trained import load_trained, save_trained, set_trainable, trained_state
from tests.models.tiny import cut_settings, tiny_settings, tiny_towers, write_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights")
    write_weights(path, tiny_settings())
    return path


def test_pools_the_last_real_token() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert torch.equal(pool_last(hidden, mask), torch.stack([hidden[0, 1], hidden[1, 3]]))


def test_pools_the_mean_of_real_tokens(folder: Path) -> None:
    """Against the plain mean over the unpadded sequence."""
    settings = tiny_settings(pooling="mean")
    towers = build_towers(folder / "text", folder / "image", settings, 0, with_frozen=False).eval()
    ids = torch.tensor([[5, 9, 30, 2]])
    inputs = TextInput(ids, torch.ones_like(ids).bool())
    padded = TextInput(F.pad(ids, (0, 5)), F.pad(inputs.mask, (0, 5)))
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_text(padded), towers.hidden(inputs).mean(1), atol=1e-5, rtol=1e-5)


def test_both_projections_start_equal(folder: Path) -> None:
    """What h_q and h_text have in common before training is so behind MLP_Q and MLP_I, whatever their lengths."""
    towers = tiny_towers(folder)
    h = torch.randn(3, towers.text.width)
    torch.testing.assert_close(towers.query(h), towers.item(5 * h))
    assert towers.mlp_q[0].weight is not towers.mlp_i[0].weight


def test_text_is_the_lm_at_eos_whatever_the_padding(folder: Path) -> None:
    """Against the plain Hugging Face model on the unpadded sequence."""
    towers = tiny_towers(folder).eval()
    ids = torch.tensor([[5, 9, 30, 2]])
    lm = load_lm(folder / "text").eval()
    with torch.no_grad():
        want = lm.base_model(input_ids=ids).last_hidden_state[0, -1]
        padded = TextInput(F.pad(ids, (0, 5)), F.pad(torch.ones_like(ids), (0, 5)).bool())
        got = towers.encode_text(padded)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_fusion_adds_vectors_of_one_length() -> None:
    text, image, unit = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.001]]), 2**0.5
    torch.testing.assert_close(fuse(text, image, Fusion()), torch.tensor([[0.6, 1.8]]) * unit)
    torch.testing.assert_close(fuse(text, image, Fusion(normalise=False)), torch.tensor([[3.0, 4.001]]))
    torch.testing.assert_close(fuse(text, torch.zeros(1, 2), Fusion()), torch.tensor([[0.6, 0.8]]) * unit)


def test_fusion_by_an_mlp_reads_both_vectors(folder: Path) -> None:
    """Against the plain MLP over [h_text; h_image] of one length; text or SIDs alone are not fused."""
    settings = tiny_settings().model_copy(update={"fusion": Fusion(mlp=True)})
    towers = build_towers(folder / "text", folder / "image", settings, 0, with_frozen=False)
    assert towers.fusion is not None
    d = towers.text.width
    text, image = torch.randn(3, d), torch.randn(3, d)
    image[2] = 0  # no picture

    def want(h_text: torch.Tensor, h_image: torch.Tensor) -> torch.Tensor:
        both = torch.cat([F.normalize(h, dim=1) * d**0.5 for h in (h_text, h_image)], 1)
        first, _, second = towers.fusion
        return towers.mlp_i(F.gelu(both @ first.weight.T + first.bias) @ second.weight.T + second.bias)

    torch.testing.assert_close(towers.item(text, image), want(text, image))
    torch.testing.assert_close(towers.item(None, image), want(torch.zeros(3, d), image))
    torch.testing.assert_close(towers.item(text), tiny_towers(folder).item(text))
    set_trainable(towers, ["mlp"])
    assert {n.split(".")[0] for n, p in towers.named_parameters() if p.requires_grad} == {"mlp_q", "mlp_i", "fusion"}


def test_a_missing_picture_is_zero(folder: Path) -> None:
    towers = tiny_towers(folder)
    pixels = torch.randint(0, 255, (2, 3, 16, 16)).to(torch.uint8)
    h = towers.encode_image(ImageInput(pixels, torch.tensor([True, False])))
    assert h[0].abs().sum() > 0
    assert h[1].abs().sum() == 0


@pytest.mark.parametrize("frozen", [1, 3])
def test_the_cut_model_is_the_whole_model(folder: Path, frozen: int) -> None:
    """Without SIDs, frozen + trained layers give what the whole LM gives, from raw ids and from cached states."""
    whole = tiny_towers(folder).eval()
    cut = build_towers(folder / "text", folder / "image", cut_settings(folder, frozen), 0, with_frozen=True).eval()
    ids = torch.tensor([[5, 9, 30, 2, 0], [7, 2, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        want = whole.encode_text(TextInput(ids, mask))
        states = cut.text.states(ids, mask)
        torch.testing.assert_close(cut.encode_text(TextInput(ids, mask)), want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cut.encode_text(TextInput(ids, mask, states)), want, atol=1e-4, rtol=1e-4)


def test_sids_above_a_cut_do_not_touch_the_frozen_layers(folder: Path) -> None:
    """Raw ids with SID tokens in the middle give what cached states of the text alone give."""
    settings = cut_settings(folder, 2)
    towers = build_towers(folder / "text", folder / "image", settings, 9, with_frozen=True).eval()
    text = torch.tensor([[5, 9, 30, 2]])
    states = towers.text.states(text, torch.ones_like(text).bool())[0].half().numpy()
    numbers = torch.tensor([towers.base + 4, towers.base + 7]).numpy()
    whole = Segment(text[0].numpy(), states)
    rows = [[whole.body(), sid_segment(numbers, towers.text.width), whole.end()]]
    cached = batch_of(rows, "x")
    with torch.no_grad():
        want = towers.encode_text(TextInput(cached["x.ids"], cached["x.mask"], cached["x.states"]))
        got = towers.encode_text(TextInput(cached["x.ids"], cached["x.mask"]))
    torch.testing.assert_close(got, want, atol=5e-3, rtol=5e-3)  # the cache is fp16
    plain = towers.encode_text(TextInput(text, torch.ones_like(text).bool()))
    assert (plain - got).abs().max() > 1e-3  # the SIDs do change the result


def test_expanded_vocabulary_equals_hugging_face(folder: Path) -> None:
    """With nothing frozen, SID embeddings are rows appended to the LM's own embedding."""
    towers = tiny_towers(folder, 4).eval()
    lm = load_lm(folder / "text").eval()
    size = lm.config.vocab_size
    lm.resize_token_embeddings(size + 4, mean_resizing=False)
    assert towers.text.sids is not None
    with torch.no_grad():
        lm.get_input_embeddings().weight[size:] = towers.text.sids.weight
        ids = torch.tensor([[5, 9, size + 1, size + 3, 2]])
        want = lm(input_ids=ids)
        hidden = towers.hidden(TextInput(ids, torch.ones_like(ids).bool()))
    torch.testing.assert_close(towers.text.logits(hidden), want.logits, atol=1e-5, rtol=1e-5)


def test_only_the_named_parts_train(folder: Path) -> None:
    towers = tiny_towers(folder, 4)
    set_trainable(towers, ["mlp"])
    assert {name.split(".")[0] for name, p in towers.named_parameters() if p.requires_grad} == {"mlp_q", "mlp_i"}
    cut = build_towers(folder / "text", folder / "image", cut_settings(folder, 2), 4, with_frozen=False)
    set_trainable(cut, ["text", "image", "mlp", "sids"])
    trained = {name for name, p in cut.named_parameters() if p.requires_grad}
    assert not any("embed_tokens" in name for name in trained)
    assert trained | {"text.sids.scale"} == set(trained_state(cut))


def test_a_head_of_its_own_above_a_cut_is_frozen_as_it_is_not_saved(folder: Path) -> None:
    cut = build_towers(folder / "text", folder / "image", cut_settings(folder, 2), 4, with_frozen=False)
    head = cut.text.lm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    set_trainable(cut, ["text", "sids"])
    assert {name for name, p in cut.named_parameters() if p.requires_grad} <= set(trained_state(cut))


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    towers = tiny_towers(folder, 4)
    path = tmp_path / "towers.safetensors"
    save_trained(trained_state(towers), path)
    load_trained(tiny_towers(folder, 4), path)
    other = tiny_settings().model_copy(update={"mlp": [24, 16, 12]})
    with pytest.raises(UserError, match=r"another model: mlp_.\.4\.\w+ has shape \(8.* wants \(12"):
        load_trained(build_towers(folder / "text", folder / "image", other, 4, with_frozen=False), path)


def test_truncation_cuts_fields_and_keeps_eos(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "text")
    settings = TextSettings(max_tokens=10)
    prompter = Prompter(tokenizer, settings, Prompts(), ["shop"])
    row = {"title": "red cat", "shop": "a very long description " * 20}
    text = prompter.item_text(row)
    assert text.startswith("Title: red cat shop: a very long")
    ids = prompter.items([text])[0]
    assert len(ids) == 9  # one place is left for EOS
    assert tokenizer.decode(ids).startswith("title: red cat")
    assert prompter.item_text({"title": "x", "shop": None}) == "Title: x"
    assert prompter.query_text("soup") == "Query: soup"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"prompts": {"query": "find it"}}, "prompts.query"),
        ({"text": {"layers": 2, "frozen_layers": 3, "weights": "x"}}, "frozen_layers=3 is more than layers=2"),
        ({"text": {"frozen_layers": 1}}, "freezes noise"),
        ({"text": {"weights": "x", "frozen_layers": 1}}, "prompts.sids must be empty"),
    ],
)
def test_model_settings_that_cannot_work(section: dict[str, object], message: str) -> None:
    from sidray.config import build

    with pytest.raises(UserError, match=message):
        build(ModelSettings, section, "test")
