"""The two towers of SMGR: one causal LM for queries and items, an image encoder, MLP_Q and MLP_I.

h_q, h_text = LLM(x), pooled;  h_image = project(ViT(image));  h_item = norm(h_text) + norm(h_image), or an MLP of both
query vector = MLP_Q(norm(h_q));  item vector = MLP_I(h_item), after the SID stages MLP_I(norm(LLM(text + SIDs))) (10)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidray.models.image import Vision, load_image_encoder
from sidray.models.settings import Fusion, ModelSettings
from sidray.models.text import TextEncoder, load_lm, pool_last, pool_mean
from sidray.models.trained import TrainedModel

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class TextInput:
    """ids [B, T] int64 (SID token k has the id base + k), mask [B, T] bool; above a cut the cached states [B, T, d]."""

    ids: Tensor
    mask: Tensor
    states: Tensor | None = None

    @classmethod
    def of_batch(cls, batch: Batch, name: str) -> TextInput:
        """The columns `name.ids`, `name.mask` and, above a cut, `name.states`."""
        return cls(batch[f"{name}.ids"], batch[f"{name}.mask"], batch.get(f"{name}.states"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> TextInput:
        return TextInput(self.ids[rows], self.mask[rows], None if self.states is None else self.states[rows])

    @property
    def lengths(self) -> list[int]:
        lengths: list[int] = self.mask.sum(1).tolist()
        return lengths

    def of(self, rows: list[int], tokens: int) -> TextInput:
        """These rows, cut to so many tokens."""
        states = None if self.states is None else self.states[rows, :tokens]
        return TextInput(self.ids[rows, :tokens], self.mask[rows, :tokens], states)


@dataclass(frozen=True)
class ImageInput:
    """pixels uint8 [B, 3, S, S] or features [B, w] of the frozen trunk; present [B] bool: the item has a picture."""

    values: Tensor
    present: Tensor

    @classmethod
    def of_batch(cls, batch: Batch) -> ImageInput:
        return cls(batch["image"], batch["image.present"])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | list[int]) -> ImageInput:
        return ImageInput(self.values[rows], self.present[rows])


def mlp(width: int, widths: list[int]) -> nn.Sequential:
    """Linear layers with GELU between them: width -> widths[0] -> ... -> widths[-1]."""
    layers: list[nn.Module] = []
    for index, out in enumerate(widths):
        layers += [nn.GELU()] if index else []
        layers.append(nn.Linear(width, out))
        width = out
    return nn.Sequential(*layers)


def scaled(h: Tensor, fusion: Fusion) -> Tensor:
    """A vector as fusion and MLP read it, [B, d]. Normalised it has the length sqrt(d): numbers of the order of one."""
    return F.normalize(h, dim=-1) * h.shape[-1] ** 0.5 if fusion.normalise else h


def fuse(h_text: Tensor | None, h_image: Tensor | None, fusion: Fusion) -> Tensor:
    """h_item = h_text + h_image, [B, d]; a missing modality is None, or a row of zeros, and adds nothing."""
    return torch.stack([scaled(h, fusion) for h in (h_text, h_image) if h is not None]).sum(0)


class Towers(TrainedModel):
    """All trained parts. `frozen_trunk` is present only where raw pixels have to be encoded (serving, new items)."""

    def __init__(self, text: TextEncoder, image: nn.Module | None, settings: ModelSettings, base: int) -> None:
        super().__init__()
        self.settings = settings
        self.base = base
        self.text = text
        self.image = image
        width = text.width
        self.dimension = settings.mlp[-1]
        if image is not None:
            image_width = int(cast(int, image.width))
            self.project = (
                nn.Linear(image_width, width) if image_width != width or settings.image.frozen else nn.Identity()
            )
        self.mlp_q = mlp(width, settings.mlp)
        self.mlp_i = copy.deepcopy(self.mlp_q)  # what h_q and h_item have in common is so from the first step
        self.fusion = mlp(2 * width, [width, width]) if settings.fusion.mlp else None

    def groups(self) -> Mapping[str, list[nn.Module]]:
        image = [self.image] if self.image is not None and not self.settings.image.frozen else []
        return {
            "text": [self.text.lm],
            "image": [*image, *([self.project] if self.image is not None else [])],
            "mlp": [self.mlp_q, self.mlp_i, *([self.fusion] if self.fusion is not None else [])],
            "sids": [self.text.sids] if self.text.sids is not None else [],
        }

    def hidden(self, inputs: TextInput) -> Tensor:
        """Last hidden states [B, T, d] of whole sequences."""
        states = inputs.states
        if states is None:
            is_text = (inputs.ids < self.base) & inputs.mask  # [B, T]
            states = self.text.states_among(inputs.ids, is_text, inputs.mask)
        return self.text.hidden(states, inputs.ids, inputs.mask, self.base)

    def encode_text(self, inputs: TextInput) -> Tensor:
        """h_q, h_text or LLM(text + SIDs): [B, d]."""
        pool = pool_mean if self.settings.text.pooling == "mean" else pool_last
        return pool(self.hidden(inputs), inputs.mask).float()

    def encode_image(self, inputs: ImageInput) -> Tensor:
        """h_image [B, d]; zeros where there is no picture."""
        assert self.image is not None
        trunk_done = inputs.values.ndim == 2
        features = inputs.values if trunk_done else self.trunk(inputs.values)
        h: Tensor = self.project(features.to(self.text.dtype)).float()
        return h * inputs.present[:, None].to(h.dtype)

    def trunk(self, pixels: Tensor) -> Tensor:
        """The image encoder before the projection: pixels [B, 3, S, S] -> [B, w]."""
        assert self.image is not None
        if not self.settings.image.frozen:
            return cast(Tensor, self.image(pixels))
        with torch.no_grad():
            return cast(Tensor, self.image(pixels))

    def query(self, h_q: Tensor) -> Tensor:
        """MLP_Q(norm(h_q)): [B, d] -> [B, dimension]."""
        h = scaled(h_q, self.settings.fusion)
        out: Tensor = self.mlp_q(h.to(next(self.mlp_q.parameters()).dtype)).float()
        return out

    def item(self, h_text: Tensor | None, h_image: Tensor | None = None) -> Tensor:
        """MLP_I(h_text + h_image): [B, d], [B, d] -> [B, dimension]. With SIDs, h_text = LLM(text + SIDs) alone."""
        if self.fusion is not None and h_image is not None:
            h = self._fused(h_text, h_image)
        else:
            h = fuse(h_text, h_image, self.settings.fusion)
        out: Tensor = self.mlp_i(h.to(next(self.mlp_i.parameters()).dtype)).float()
        return out

    def _fused(self, h_text: Tensor | None, h_image: Tensor) -> Tensor:
        """The MLP over [h_text; h_image], [B, d]; a missing text is zeros, as a missing picture is."""
        assert self.fusion is not None
        text = torch.zeros_like(h_image) if h_text is None else h_text
        both = torch.cat([scaled(h, self.settings.fusion) for h in (text, h_image)], -1)  # [B, 2d]
        out: Tensor = self.fusion(both.to(next(self.fusion.parameters()).dtype))
        return out.float()


def build_towers(
    text_folder: Path, image_folder: Path | None, settings: ModelSettings, sid_count: int, with_frozen: bool
) -> Towers:
    """Towers on the folders of the weights steps. Same seed, same projections and SID embeddings.

    `with_frozen`: include the parts below the cut and a frozen trunk, so that raw ids and pixels can be encoded."""
    text, image = load_encoders(text_folder, image_folder, settings, sid_count, with_frozen)
    if image is None and image_folder is not None:
        image = _Width(image_folder)
    return Towers(text, image, settings, base=len_tokenizer(text_folder))


def load_encoders(
    text_folder: Path, image_folder: Path | None, settings: ModelSettings, new_tokens: int, with_frozen: bool
) -> tuple[TextEncoder, nn.Module | None]:
    """The encoders of a model; no image encoder where it is frozen and its outputs are cached. The same parts are drawn
    at random after it, whatever was loaded."""
    lm = load_lm(text_folder)
    torch.manual_seed(settings.seed)
    text = TextEncoder(lm, settings.text.frozen_layers, new_tokens, with_frozen)
    image: nn.Module | None = None
    if image_folder is not None and (with_frozen or not settings.image.frozen):
        image = load_image_encoder(image_folder)
        if settings.image.frozen:
            image.requires_grad_(False).eval()
    torch.manual_seed(settings.seed)
    return text, image


class _Width(nn.Module):
    """Stands for a frozen trunk whose features are cached: it has a width and no weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.width = Vision.of(folder).width


def len_tokenizer(folder: Path) -> int:
    """Number of text tokens: SID token k has the id this + k."""
    return int((folder / "size.txt").read_text())
