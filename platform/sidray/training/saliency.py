"""Saliency scores of a trained MLRM: what flows to its compressed word, picture or text (NoteLLM-2, 2.5 and 4.2).

found = saliency_of(StageModule(model, stage), batch) + saliency_of(...);  found.means()  # {"S_v": [by layer], ...}

trained_saliency is what a recipe with `evaluation.saliency` runs: saliency.json (layers, S_v, S_t, S_o, relative,
notes) and saliency.png. Layers count from 0; those below the cut are not trained, their states are cached: they have no
score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.errors import UserError
from sidray.models.inference import inference_device
from sidray.models.mlrm import VISUAL, Mlrm, NoteInput
from sidray.models.note_inputs import NoteFetch
from sidray.models.settings import ModelSettings
from sidray.models.sources import sources_of
from sidray.models.text import decoder_of
from sidray.models.towers import Batch
from sidray.models.trained import load_trained
from sidray.steps import Summary, Work
from sidray.training.module import StageModule, columns_of
from sidray.training.plots import plot_saliencies
from sidray.training.settings import StageSettings
from sidray.training.worker import TOWERS

if TYPE_CHECKING:
    from sidray.recipe import Recipe

VERSION = 1
RESULT = "saliency.json"
SCORES = ("S_v", "S_t", "S_o")
MAX_PAIRS = 32  # of a batch: every layer's attention matrices and their gradients are held at once


@dataclass(frozen=True)
class Saliency:
    """sums [layers, 3]: S_v, S_t and S_o of single notes, added up over the notes that have such pairs of positions;
    counts [3]: how many notes those are."""

    sums: Tensor
    counts: Tensor

    def __add__(self, other: Saliency) -> Saliency:
        return Saliency(self.sums + other.sums, self.counts + other.counts)

    def means(self) -> dict[str, list[float] | None]:
        """Each score by layer, its mean over the notes; None where no note has it (S_v without a picture)."""
        means = self.sums / self.counts
        return {name: means[:, k].tolist() if self.counts[k] else None for k, name in enumerate(SCORES)}

    def relative(self) -> dict[str, list[float] | None]:
        """The scores of figure 3: divided by the layer's sum of those that there are."""
        total = (self.sums / self.counts.clamp(min=1)).sum(1)  # [layers]
        shares = Saliency(self.sums / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None], self.counts)
        return shares.means()


def saliency_of(module: StageModule, batch: Batch) -> Saliency:
    """The scores (4)-(6) of a batch of pairs. The model is left as it was; no parameter gets a gradient.

    UserError when no attention comes out of the LM."""
    assert isinstance(module.model, Mlrm)
    matrices = saliency_matrices(module, batch)[1].double()  # [layers, B, T, T]
    sets = pair_sets(batch["note.ids"], batch["note.mask"], module.model.base).double()  # [3, B, T, T]
    sizes = sets.sum((2, 3))  # [3, B]
    sums = torch.einsum("lbij,kbij->lkb", matrices, sets) / sizes.clamp(min=1)  # [layers, 3, B]
    return Saliency(sums.sum(2).cpu(), (sizes > 0).sum(1).cpu())


def check_word(model: ModelSettings) -> None:
    """UserError for a model whose vectors are means over the prompt: (4)-(6) are of the flow to one word, c."""
    if model.text.pooling == "mean":
        raise UserError(
            "saliency is of what flows to the compressed word, and model.text.pooling=mean takes a mean in its place",
            "set model.text.pooling: eos, or evaluation.saliency: false",
        )


def saliency_matrices(module: StageModule, batch: Batch) -> tuple[Tensor, Tensor]:
    """The stage's loss (without dropout), and I_l = sum over the heads of |A * dL/dA|, (3): [layers, B, T, T], of the
    prompts in `note.ids`. I_l(i, j) is what flows from position j to position i.

    The product is taken element by element as in Wang et al. 2023, whose method (3) is; its transpose is a slip."""
    with torch.enable_grad(), _watched(module, batch["note.ids"]) as attentions:
        loss, _ = module(batch)
        _check_all(module.model.text.lm, attentions)
        gradients = torch.autograd.grad(loss, attentions)  # of each [B, heads, T, T]
    matrices = [(a.detach() * g).abs().sum(1) for a, g in zip(attentions, gradients, strict=True)]
    return loss.detach(), torch.stack(matrices)


def _check_all(lm: Any, attentions: Sequence[Tensor]) -> None:
    if len(attentions) < len(decoder_of(lm).layers):
        raise UserError(
            f"not every layer of {type(lm).__name__} gives out its attention matrices, which saliency is made of",
            "set evaluation.saliency: false, or use an LM such as Qwen3, Llama, Mistral or SmolLM",
        )


def pair_sets(ids: Tensor, mask: Tensor, base: int) -> Tensor:
    """P_v, P_t and P_o of (4)-(6): [3, B, T, T] bool, true at [i, j] for the pairs (i, j) of real positions, j < i.

    c is the last real position. Visual are the visual embeddings and, under mICL, the word that compresses them, which
    stands before <IMG_EMB> (section 4.2); text is every other token of the prompt. <IMG_EMB> is neither: what it gives
    to c counts in P_o, as all does that goes to another position than c."""
    place = torch.arange(ids.shape[1], device=ids.device)  # [T]
    visual = (ids == VISUAL) | F.pad(ids[:, 1:] == base, (0, 1))  # [B, T]
    text = (ids >= 0) & (ids < base) & ~visual
    earlier = (place[:, None] > place) & mask[:, :, None] & mask[:, None, :]  # [B, T, T]
    to_last = earlier & (place == mask.sum(1, keepdim=True) - 1)[:, :, None]
    from_visual, from_text = to_last & visual[:, None, :], to_last & text[:, None, :]
    return torch.stack([from_visual, from_text, earlier & ~from_visual & ~from_text])


@dataclass
class _Watch:
    """Hooks. `found`: the attention matrices of the layers while the model reads the prompts `ids`: tasks may show it
    others, too."""

    ids: Tensor
    found: list[Tensor] = field(default_factory=list)
    reading: bool = False

    def model(self, _: nn.Module, args: tuple[NoteInput]) -> None:
        text = args[0].text
        self.reading = text is not None and text.ids is self.ids

    def decoder(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Under weights that are not trained, too, attention must have a gradient."""
        states = kwargs["inputs_embeds"]
        return args, kwargs if states.requires_grad else kwargs | {"inputs_embeds": states.detach().requires_grad_()}

    def attention(self, _: nn.Module, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) else None  # what the output was made of: [B, heads, T, T]
        if self.reading and weights is not None:
            self.found.append(weights)


@contextmanager
def _watched(module: StageModule, ids: Tensor) -> Iterator[list[Tensor]]:
    """In the block the model runs without dropout, in one chunk, every layer at all positions, with attention that is
    written out; what the layers attend to in the prompts `ids` is appended to the list. Then all is as it was."""
    text, lm = module.model.text, module.model.text.lm
    decoder, watch = decoder_of(lm), _Watch(ids)
    attending = [layer.self_attn for layer in decoder.layers if hasattr(layer, "self_attn")]
    modes = {part: part.training for part in module.modules()}
    chunk, attention = module.chunk, lm.config._attn_implementation
    hooks = [
        module.model.register_forward_pre_hook(watch.model),
        decoder.register_forward_pre_hook(watch.decoder, with_kwargs=True),
        *(each.register_forward_hook(watch.attention) for each in attending),
    ]
    try:
        module.eval()
        module.chunk = 0
        lm.set_attn_implementation("eager")
        with text.whole_layers():
            yield watch.found
    finally:
        lm.set_attn_implementation(attention)
        module.chunk = chunk
        for part, mode in modes.items():
            part.training = mode
        for hook in hooks:
            hook.remove()


def trained_saliency(recipe: Recipe, stage: StageSettings, work: Work) -> Summary:
    """Inputs: those of the stage, and towers: its trained weights."""
    sources = sources_of(work.inputs, recipe.controls.shuffle_images, recipe.controls.shuffle_pairs)
    model = cast(Mlrm, sources.model(recipe.model, 0))
    load_trained(model, storage.local_folder(storage.join(work.inputs["towers"], TOWERS)))
    device = inference_device()
    module = StageModule(model, stage).to(device)
    fetch = NoteFetch(sources, recipe.model, "pairs", columns_of(stage))
    batches = pair_batches(Catalogue.open(sources.catalogue), stage, recipe.evaluation.saliency_notes)
    parts = [saliency_of(module, {name: value.to(device) for name, value in fetch(rows).items()}) for rows in batches]
    found = sum(parts[1:], parts[0])
    layers = [model.text.cut + index for index in range(len(found.sums))]
    relative, notes = found.relative(), 2 * batches.size
    result = {"layers": layers, **found.means(), "relative": relative, "notes": notes}
    storage.write_json(work.path(RESULT), result)
    storage.write_bytes(work.path("saliency.png"), plot_saliencies({f"{stage.name}: saliency": (layers, relative)}))
    return {"notes": notes, **_ends(layers, relative)}


def pair_batches(catalogue: Catalogue, stage: StageSettings, notes: int) -> Rows:
    """[batches, pairs] train pairs with at least `notes` notes, if there are so many: a seeded draw. All batches are of
    one size, for a loss is a mean over its batch, with the batch's negatives."""
    rows = np.asarray(catalogue.pairs("train")["pair_row"].to_numpy(), np.int64)
    size = min(stage.batch_size, MAX_PAIRS, len(rows))
    count = min(-(-notes // (2 * size)), len(rows) // size)
    drawn = np.random.default_rng(stage.seed).permutation(rows)[: count * size]
    return drawn.reshape(count, size)


def _ends(layers: list[int], relative: Mapping[str, list[float] | None]) -> dict[str, float]:
    """The relative scores of the first and the last layer."""
    ends = {layers[0]: 0, layers[-1]: -1}
    return {
        f"{name} in layer {layer}": values[at]
        for layer, at in ends.items()
        for name, values in relative.items()
        if values is not None
    }
