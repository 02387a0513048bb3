"""The MLRM against a reference written out: where visual embeddings stand, which states are compressed words, the gate
(7), notes without a picture, cached lower layers, sizes of the paper (tables 7 and 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig

from sidray.config import build, load_yaml
from sidray.models.connector import Connector
from sidray.models.image import Vision, VisionTower
from sidray.models.mlrm import VISUAL, Mlrm, NoteInput, build_mlrm
from sidray.models.settings import ModelSettings, TextSettings
from sidray.models.text import TextEncoder
from sidray.models.towers import ImageInput, TextInput
from sidray.models.trained import load_trained, save_trained, set_trainable, trained_state
from tests.models.tiny import PLACES, note_model_settings, seeing, write_weights


def cut(folder: Path, frozen: int, **note: Any) -> ModelSettings:
    text = TextSettings(weights=str(folder / "text"), frozen_layers=frozen, max_tokens=32)
    return note_model_settings(**note).model_copy(update={"text": text})


STANDARDS = ("standards.0", "standards.1", "whole.standard")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_weights(tmp_path, note_model_settings())
    return tmp_path


def model_of(folder: Path, with_frozen: bool = True, frozen: int = 0, **note: Any) -> Mlrm:
    chosen = cut(folder, frozen, **note) if frozen else note_model_settings(**note)
    return seeing(build_mlrm(folder / "text", folder / "image", chosen, with_frozen)).eval()


def prompts(model: Mlrm) -> tuple[TextInput, Tensor, Tensor]:
    """Two notes, the second without a picture, padded; the place before <IMG_EMB> and the last place of each."""
    visual = [VISUAL] * PLACES
    rows = [[5, 6, *visual, 7, 8, model.base, 9, 10, 11], [9, 10, 12, 13]]
    if not model.note.micl:
        rows[0].remove(model.base)
    width = max(map(len, rows)) + 2
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([[len(row)] for row in rows])
    return TextInput(ids, mask), torch.tensor([6, 0]), torch.tensor([len(row) - 1 for row in rows])


def pictures() -> ImageInput:
    g = torch.Generator().manual_seed(1)
    return ImageInput(torch.randint(0, 255, (2, 3, 16, 16), generator=g).to(torch.uint8), torch.tensor([True, False]))


def reference(model: Mlrm, text: TextInput, image: ImageInput, places: Tensor) -> Tensor:
    """n^ of each note, projected, one note at a time and without padding."""
    out = []
    for row in range(len(text)):
        ids = text.ids[row][text.mask[row]]
        embedding = model.text.lm.get_input_embeddings()
        grid = model.image.model(pixel_values=(image.values[[row]] / 255 - 0.5) / 0.5).last_hidden_state  # type: ignore[union-attr,operator]
        states = []
        visual = iter(model.connector(grid[:, 1:])[0])  # type: ignore[misc]
        for token in ids.tolist():
            if token == VISUAL:
                states.append(next(visual))
            elif token == model.base:
                states.append(model.text.sids.weight[0] * model.text.sids.scale)  # type: ignore[union-attr]
            else:
                states.append(embedding.weight[token])
        n = model.text.lm.model(inputs_embeds=torch.stack(states)[None]).last_hidden_state[0, places[row]]
        if model.gate is not None and image.present[row]:
            v = model.whole(grid[0, 0])  # type: ignore[misc]
            z = torch.sigmoid(model.gate.linear(torch.cat([v, n])))
            n = z * v + (1 - z) * n
        out.append(model.projector(n))
    return torch.stack(out)


@pytest.mark.parametrize("note", [{}, {"micl": False}, {"late": False}, {"micl": False, "late": False}])
@torch.no_grad()
def test_against_one_note_at_a_time(folder: Path, note: dict[str, bool]) -> None:
    model = model_of(folder, **note)
    text, words, last = prompts(model)
    visual, compressed = model(NoteInput(text, pictures()))
    torch.testing.assert_close(compressed, reference(model, text, pictures(), last), atol=1e-5, rtol=1e-4)
    if note.get("micl", True):
        expected = reference(model, text, pictures(), words)
        torch.testing.assert_close(visual[0], expected[0], atol=1e-5, rtol=1e-4)  # the other has no picture
    else:
        assert visual is None


@torch.no_grad()
def test_means_are_over_what_each_word_compresses(folder: Path) -> None:
    chosen = note_model_settings(late=False)
    chosen = chosen.model_copy(update={"text": chosen.text.model_copy(update={"pooling": "mean"})})
    model = build_mlrm(folder / "text", folder / "image", chosen, with_frozen=True).eval()
    text, words, last = prompts(model)
    hidden = model.hidden(text, model.grid(pictures()))
    visual, compressed = model(NoteInput(text, pictures()))
    torch.testing.assert_close(visual[0], model.projector(hidden[0, : words[0] + 1].mean(0)))
    torch.testing.assert_close(compressed[0], model.projector(hidden[0, words[0] + 2 : last[0] + 1].mean(0)))
    torch.testing.assert_close(compressed[1], model.projector(hidden[1, : last[1] + 1].mean(0)))


@torch.no_grad()
def test_n_v_sees_the_picture_alone_and_n_m_both(folder: Path) -> None:
    model = model_of(folder, late=False)
    text, _, _ = prompts(model)
    visual, compressed = model(NoteInput(text, pictures()))
    other = text.ids.clone()
    other[0, -3] = 99  # a token of the text behind <IMG_EMB>
    after, changed = model(NoteInput(TextInput(other, text.mask), pictures()))
    torch.testing.assert_close(after[0], visual[0])
    assert not torch.allclose(changed[0], compressed[0])
    image = ImageInput(255 - pictures().values, pictures().present)
    elsewhere, moved = model(NoteInput(text, image))
    assert not torch.allclose(elsewhere[0], visual[0])
    assert not torch.allclose(moved[0], compressed[0])
    torch.testing.assert_close(moved[1], compressed[1])  # its picture is not there


@torch.no_grad()
def test_cached_grids_and_states_answer_as_pixels_and_ids_do(folder: Path) -> None:
    """One frozen layer: the text passes it without what stands among it, as the note cache computes it."""
    model = model_of(folder, frozen=1)
    text, _, _ = prompts(model)
    expected = model(NoteInput(text, pictures()))[1]
    is_text = (text.ids >= 0) & (text.ids < model.base) & text.mask
    states = torch.zeros(*text.ids.shape, model.text.width)
    for row in range(len(text)):
        alone = text.ids[row][is_text[row]][None]
        states[row, is_text[row]] = model.text.states(alone, torch.ones_like(alone, dtype=torch.bool))[0]
    grid = model.grid(pictures())
    light = model_of(folder, frozen=1, with_frozen=False)
    cached = NoteInput(TextInput(text.ids, text.mask, states), ImageInput(grid, pictures().present))
    torch.testing.assert_close(light(cached)[1], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_image_encoder_alone_and_the_text_alone(folder: Path) -> None:
    alone = model_of(folder, inputs="image", early=False, micl=False, late=False)
    grid = alone.grid(pictures())
    expected = alone.projector(alone.whole(grid[:, 0]))  # type: ignore[misc]
    alone.dropout = torch.nn.Dropout(1.0).train()  # of compressed words: a picture's whole has one of its own
    torch.testing.assert_close(alone(NoteInput(None, pictures()))[1], expected)
    text_only = model_of(folder, inputs="text", early=False, micl=False, late=False)
    text, _, _ = prompts(text_only)
    plain = TextInput(text.ids[1:], text.mask[1:])
    n = text_only.text.lm.model(inputs_embeds=text_only.text.states(plain.ids, plain.mask)).last_hidden_state[:, 3]
    torch.testing.assert_close(text_only(NoteInput(plain, None))[1], text_only.projector(n))


def test_what_is_trained_and_what_is_saved(folder: Path, tmp_path: Path) -> None:
    model = model_of(folder, frozen=1, with_frozen=False)
    set_trainable(model, ["text", "image", "connector", "mlp"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = trained_state(model)
    assert not any("embed_tokens" in name for name in trained | set(state))
    once = {"connector.mean", "connector.scale", "text.sids.scale"} | {
        f"{s}.{n}" for s in STANDARDS for n in ("mean", "scale")
    }
    assert once == {name for name in state if name not in trained}  # set once, before training
    assert {"temperature.log_scale", "gate.linear.weight", "text.sids.weight"} <= trained
    with torch.no_grad():
        model.temperature.log_scale.fill_(2.5)
    save_trained(trained_state(model), tmp_path / "towers.safetensors")
    again = model_of(folder, frozen=1, with_frozen=False)
    load_trained(again, tmp_path / "towers.safetensors")
    assert again.temperature().item() == pytest.approx(torch.exp(torch.tensor(-2.5)).item())
    alone = model_of(folder, inputs="image", early=False, micl=False, late=False)
    assert not any(name.startswith("text.") for name in trained_state(alone))  # its LM is never run


@torch.no_grad()
def test_standardised_words_have_neither_mean_nor_size_and_a_picture_alone_is_a_picture_word(folder: Path) -> None:
    model = model_of(folder, late=False)
    values = 3 + 5 * torch.randn(200, model.text.width, generator=torch.Generator().manual_seed(0))
    for standard in model.standards:
        standard.fit(values)  # type: ignore[operator]
    values[:, 0] = 7  # a column that does not differ stays small
    model.standards[0].fit(values)  # type: ignore[operator]
    assert model.standards[0](values)[:, 0].abs().max() < 1e-3
    values[:, 0] = values[:, 1]
    model.standards[0].fit(values)  # type: ignore[operator]
    even = model.standards[0](values)
    torch.testing.assert_close(even.mean(0), torch.zeros(model.text.width), atol=1e-5, rtol=0)
    torch.testing.assert_close(even.std(0), torch.ones(model.text.width))
    text, _, _ = prompts(model)
    alone = TextInput(text.ids[:, :7].clone(), text.mask[:, :7])  # the picture and its prompt, without <IMG_EMB>
    expected = model(NoteInput(text, pictures()))[0][0]
    torch.testing.assert_close(model(NoteInput(alone, pictures()))[1][0], expected)
    model.standards[1].fit(2 * values)  # type: ignore[operator]
    torch.testing.assert_close(model(NoteInput(alone, pictures()))[1][0], expected)
    model.standards[0].fit(2 * values)  # type: ignore[operator]
    assert not torch.allclose(model(NoteInput(alone, pictures()))[1][0], expected)


def count(module: torch.nn.Module | None) -> int:
    assert module is not None
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("vocabulary", "total"),
    [(49_216, 6.68e9), (151_936, 7.10e9)],
    ids=["tomato", "qwen"],
)
def test_paper_sizes_on_the_meta_device(vocabulary: int, total: float) -> None:
    """Table 7's LLM parameters (without the LM head, within 2 %), table 9's Q-Former of 49.6 M and ViT-B of 85.8 M."""
    values = load_yaml("notellm2-paper")
    model = build(ModelSettings, values["model"], "notellm2-paper")
    assert model.note is not None
    lm = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        text = TextEncoder(AutoModelForCausalLM.from_config(lm), 0, 1, with_frozen=False)
        vision = AutoModel.from_config(CLIPVisionConfig(hidden_size=768, patch_size=16))
        mlrm = Mlrm(text, VisionTower(vision, [0.5] * 3, [0.5] * 3), Vision(768, True), model, vocabulary)
    assert count(text.lm.model) == pytest.approx(total, rel=0.02)
    assert count(vision) == pytest.approx(85.8e6, rel=0.01)
    assert isinstance(mlrm.connector, Connector)
    qformer = count(mlrm.connector) - count(mlrm.connector.project)
    assert qformer == pytest.approx(49.6e6, rel=0.002)
    assert mlrm.connector.settings.queries == 16
    pixels = torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    image = ImageInput(pixels, torch.ones(2, dtype=torch.bool, device="meta"))
    assert mlrm.grid(image).shape == (2, 1 + 196, 768)
    assert mlrm.connector(mlrm.grid(image)[:, 1:]).shape == (2, 16, 4096)
    assert mlrm.projector.out_features == 64


def test_a_fused_picture_begins_as_nothing_and_one_alone_does_not(tmp_path: Path) -> None:
    alone = {"inputs": "image", "early": False, "micl": False, "late": False}
    for note, there in (({}, False), (alone, True)):
        settings = note_model_settings(**note)
        write_weights(tmp_path, settings)
        model = build_mlrm(tmp_path / "text", tmp_path / "image", settings, with_frozen=False)
        assert bool(model.whole(torch.randn(2, model.vision.width)).any()) is there  # type: ignore[misc]
