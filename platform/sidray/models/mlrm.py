"""The MLRM of NoteLLM-2: an LM that compresses a note's picture and text into one vector.

E_v = Q-Former(V(picture)) stands at the picture's place in the prompt; n_v, n_m = states at the compressed words;
v = linear(V(picture)'s whole);  n^ = z * v + (1 - z) * n, z = sigmoid(W[v, n] + b) (7);  vector = linear(n^).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sidray.models.connector import Connector
from sidray.models.image import Vision
from sidray.models.settings import ModelSettings
from sidray.models.text import TextEncoder, pool_mean
from sidray.models.towers import ImageInput, TextInput, len_tokenizer, load_encoders
from sidray.models.trained import TrainedModel

VISUAL = -1  # the id at places of visual embeddings
IMG_EMB = "<IMG_EMB>"  # the paper's new token; its id is `base`


@dataclass(frozen=True)
class NoteInput:
    """text: prompts with VISUAL and <IMG_EMB> among the ids (None: no LM); image: feature grids [B, L, w], or pixels
    (None: no picture is read). A row without a picture has no VISUAL."""

    text: TextInput | None
    image: ImageInput | None

    def __len__(self) -> int:
        first = self.text if self.text is not None else self.image
        return 0 if first is None else len(first)

    def __getitem__(self, rows: slice) -> NoteInput:
        return NoteInput(
            None if self.text is None else self.text[rows], None if self.image is None else self.image[rows]
        )

    @property
    def lengths(self) -> list[int]:
        return [1] * len(self) if self.text is None else self.text.lengths

    def of(self, rows: list[int], tokens: int) -> NoteInput:
        """These rows, their text cut to so many tokens."""
        text = None if self.text is None else self.text.of(rows, tokens)
        return NoteInput(text, None if self.image is None else self.image[rows])


class Temperature(nn.Module):
    """The learnable tau of (1). A module, so that ZeRO-3 gathers its weight."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([start]))

    def forward(self) -> Tensor:
        """exp(-tau): what similarities are divided by. A scalar."""
        return torch.exp(-self.log_scale.float())[0]


class Gate(nn.Module):
    """Late fusion (7); one gate for n_v and n_m."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, v: Tensor, n: Tensor) -> Tensor:
        """z * v + (1 - z) * n: [B, d], [B, d] -> [B, d]."""
        z = torch.sigmoid(self.linear(torch.cat([v, n], -1)))
        return z * v + (1 - z) * n


class Standard(nn.Module):
    """(x - mean) * scale, both [d], set once before training; as it begins it changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Mean and deviation of values [n, d]. No deviation counts as less than a tenth of the median one: what hardly
        differs is mostly rounding. Fewer than two rows say nothing and change nothing."""
        if len(values) < 2:
            return
        values = values.float()
        deviation = values.std(0)
        deviation = deviation.clamp(min=0.1 * float(deviation.median()))
        self.mean.copy_(values.mean(0))
        self.scale.copy_(torch.where(deviation > 0, 1 / deviation, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ((x.float() - self.mean.float()) * self.scale.float()).to(x.dtype)
        return out


class Whole(nn.Module):
    """The picture's whole -> v of (7): [B, w] -> [B, d]. `fused`: a gate joins v to a compressed word; v is nothing as
    training begins, so that the words' geometry is not lost among that of a random projection."""

    def __init__(self, vision_width: int, width: int, dropout: float, fused: bool) -> None:
        super().__init__()
        self.normalise = nn.LayerNorm(vision_width)
        self.standard = Standard(vision_width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(vision_width, width)
        if fused:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, picture: Tensor) -> Tensor:
        out: Tensor = self.linear(self.dropout(self.standard(self.normalise(picture))))
        return out


class Mlrm(TrainedModel):
    """See the module. `vision`: the width w of the feature grid, and whether its row 0 is the whole picture ([CLS]);
    else the mean over its places is."""

    def __init__(
        self, text: TextEncoder, image: nn.Module | None, vision: Vision, settings: ModelSettings, base: int
    ) -> None:
        super().__init__()
        assert settings.note is not None
        self.settings, self.note, self.base, self.vision = settings, settings.note, base, vision
        self.text, self.image = text, image
        self.dimension = self.note.dimension
        width = text.width
        self.connector = Connector(self.note.connector, vision.width, width) if self.note.early else None
        whole = self.note.late or not self.note.reads_text
        self.whole = Whole(vision.width, width, self.note.dropout, self.note.late) if whole else None
        self.standards = nn.ModuleList(Standard(width) for _ in range(1 + self.note.micl))  # of n_v with mICL, of n_m
        self.dropout = nn.Dropout(self.note.dropout)
        self.gate = Gate(width) if self.note.late else None
        self.projector = nn.Linear(width, self.dimension)
        self.temperature = Temperature(self.note.temperature)

    def groups(self) -> Mapping[str, list[nn.Module]]:
        def there(*modules: nn.Module | None) -> list[nn.Module]:
            return [module for module in modules if module is not None]

        return {
            "text": there(self.text.lm, self.text.sids) if self.note.reads_text else [],
            "image": there(None if self.settings.image.frozen else self.image),
            "connector": there(self.connector),
            "mlp": there(self.whole, self.gate, self.projector, self.temperature),
        }

    def forward(self, inputs: NoteInput) -> tuple[Tensor | None, Tensor]:
        """The projected n^_v and n^_m, [B, dimension] each. n^_v is None without mICL, and nothing in rows without a
        picture."""
        grid = None if inputs.image is None else self.grid(inputs.image)
        v = None if grid is None or self.whole is None else self.whole(self.whole_of(grid))  # [B, d]
        if inputs.text is None:
            assert v is not None
            return None, self.projector(v).float()
        present = None if inputs.image is None else inputs.image.present
        compressed = self.compressed(inputs.text, grid)
        projected = [self._project(n, v, present) for n in compressed.unbind(1)]
        return projected[0] if self.note.micl else None, projected[-1]

    def compressed(self, text: TextInput, grid: Tensor | None) -> Tensor:
        """n_v with mICL, and n_m, standardised: [B, 1 or 2, d]."""
        if self.settings.text.pooling == "mean":
            words = self._means(text, grid)
        else:
            words = self.hidden_at(text, grid, self.words(text)).unbind(1)
        standard = [each(word) for each, word in zip(self.standards, words, strict=True)]
        if self.note.micl:  # the last word of a picture alone is the one that compresses pictures
            alone = (text.ids == VISUAL).any(1) & ~(text.ids == self.base).any(1)
            standard[1] = torch.where(alone[:, None], self.standards[0](words[1]), standard[1])
        return torch.stack(standard, 1)

    def _means(self, text: TextInput, grid: Tensor | None) -> tuple[Tensor, ...]:
        """In place of each word the mean over what it compresses, itself included: n_v over all before <IMG_EMB>, n_m
        over all behind it, or over the whole prompt where there is none. [B, d] each."""
        hidden = self.hidden(text, grid)
        if not self.note.micl:
            return (pool_mean(hidden, text.mask),)
        at = (text.ids == self.base).long()  # [B, T]
        behind = (at.cumsum(1) > 0) & (at == 0) | (at.sum(1, keepdim=True) == 0)
        before = at.flip(1).cumsum(1).flip(1) - at > 0
        return pool_mean(hidden, before & text.mask), pool_mean(hidden, behind & text.mask)

    def words(self, text: TextInput) -> Tensor:
        """Where the compressed words stand: [B, 1] the last position, with mICL [B, 2], before it the one in front of
        <IMG_EMB> (any place in rows without)."""
        last = text.mask.sum(1).clamp(min=1) - 1
        if not self.note.micl:
            return last[:, None]
        return torch.stack([(text.ids == self.base).long().argmax(1).sub(1).clamp(min=0), last], 1)

    def grid(self, image: ImageInput) -> Tensor:
        """Z_v [B, L, w] of pixels [B, 3, S, S], or as it was cached."""
        values = image.values
        if values.ndim == 4:
            assert self.image is not None
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.image.frozen):
                values = self.image.grid(values)  # type: ignore[operator]
        return values.to(self.projector.weight.dtype)

    def whole_of(self, grid: Tensor) -> Tensor:
        """The picture as one vector: [CLS], or the global average pool. [B, L, w] -> [B, w]."""
        return grid[:, 0] if self.vision.has_cls else grid.mean(1)

    def hidden(self, text: TextInput, grid: Tensor | None) -> Tensor:
        """H = LLM(E_m): last hidden states [B, T, d]."""
        return self.text.hidden(self._embed(text, grid), text.ids, text.mask, self.base)

    def hidden_at(self, text: TextInput, grid: Tensor | None, positions: Tensor) -> Tensor:
        """H at positions [B, P] alone: [B, P, d]."""
        return self.text.hidden_at(self._embed(text, grid), text.ids, text.mask, self.base, positions)

    def _embed(self, text: TextInput, grid: Tensor | None) -> Tensor:
        """E_m, the states at the cut with visual embeddings among them: [B, T, d]."""
        states = text.states
        if states is None:
            is_text = (text.ids >= 0) & (text.ids < self.base) & text.mask
            states = self.text.states_among(text.ids, is_text, text.mask)
        states = states.to(self.text.dtype)
        if self.connector is not None and grid is not None:
            visual = text.ids == VISUAL  # [B, T]
            embeddings = self.connector(self._places(grid)).to(states.dtype)  # [B, L_c, d]
            order = visual.long().cumsum(1).sub(1).clamp(min=0)  # [B, T]: which embedding of the row
            chosen = embeddings.gather(1, order[..., None].expand(-1, -1, embeddings.shape[-1]))
            states = torch.where(visual[..., None], chosen, states)
        return states

    def _places(self, grid: Tensor) -> Tensor:
        """What the connector looks at: the patches without [CLS]."""
        return grid[:, 1:] if self.vision.has_cls else grid

    def _project(self, n: Tensor, v: Tensor | None, present: Tensor | None) -> Tensor:
        n = self.dropout(n)
        if self.gate is not None and v is not None and present is not None:
            n = torch.where(present[:, None], self.gate(v.to(n.dtype), n), n)
        out: Tensor = self.projector(n).float()
        return out


def build_mlrm(text_folder: Path, image_folder: Path | None, settings: ModelSettings, with_frozen: bool) -> Mlrm:
    """An MLRM on the folders of the weights steps. Same seed, same connector, gate and projector.

    `with_frozen`: include the layers below the cut and a frozen vision encoder, so that ids and pixels can be read."""
    assert settings.note is not None
    looks_at = image_folder if settings.note.looks else None
    text, image = load_encoders(text_folder, looks_at, settings, int(settings.note.micl), with_frozen)
    vision = Vision(0, False) if looks_at is None else Vision.of(looks_at)
    return Mlrm(text, image, vision, settings, base=len_tokenizer(text_folder))
