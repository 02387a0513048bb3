"""The new tokens that semantic IDs add to a language model, and their numbering (SMGR, section 4.3 and eq. 9).

    vocabulary = SidVocabulary()               # text, image, item x 3 levels x 32 codes = 288 tokens, and <img_none>
    ids = vocabulary.token_ids({"text": c, "image": c, "item": c}, has_image)   # [N, L] each -> [N, 9], from 0
    tokenizer.add_tokens(vocabulary.tokens)    # the model's id of token t is then: old size + t

Token ids ascend by modality, then level, then code: <text_1_0>, <text_1_1>, ..., <item_3_31>, <img_none>. Levels are
counted from 1, codes from 0. An item without a picture has <img_none> on every image level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt, ValidationError, model_validator

from sidray import storage
from sidray.config import Settings
from sidray.errors import UserError

Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
IMAGE = "image"
NO_IMAGE = "<img_none>"


class SidVocabulary(Settings):
    """`entries` is one number, or one per modality. The order of `modalities` is the order of the tokens."""

    modalities: tuple[str, ...] = ("text", "image", "item")
    levels: PositiveInt = 3
    entries: PositiveInt | dict[str, PositiveInt] = 32

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities must differ and be at least one: {self.modalities}")
        missing = set(self.modalities) - set(self.entries) if isinstance(self.entries, dict) else set()
        if missing:
            raise ValueError(f"entries has no number for {', '.join(sorted(missing))}")
        return self

    def entries_of(self, modality: str) -> int:
        return self.entries if isinstance(self.entries, int) else self.entries[modality]

    @property
    def slots(self) -> list[tuple[str, int]]:
        """Modality and level (from 1) of each of the M * L positions in an item's row of tokens."""
        return [(modality, level) for modality in self.modalities for level in range(1, self.levels + 1)]

    @property
    def offsets(self) -> npt.NDArray[np.int32]:
        """The id of code 0 at each position, and at last the number of codes in all, [M * L + 1]."""
        sizes = [self.entries_of(modality) for modality, _ in self.slots]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    @property
    def tokens(self) -> list[str]:
        """All token strings by id."""
        codes = [f"<{m}_{level}_{code}>" for m, level in self.slots for code in range(self.entries_of(m))]
        return [*codes, NO_IMAGE] if IMAGE in self.modalities else codes

    def __len__(self) -> int:
        return int(self.offsets[-1]) + (IMAGE in self.modalities)

    def token_ids(self, codes: Mapping[str, Codes], has_image: Mask) -> npt.NDArray[np.int32]:
        """Codes [N, L] per modality and a mask [N] (True = the item has a picture) to token ids [N, M * L], eq. (9).

        Image codes of items without a picture are not read; modalities that the vocabulary lacks are left out.
        Raises UserError when codes and vocabulary do not fit."""
        ids = np.empty((len(has_image), len(self.slots)), dtype=np.int32)
        none = ~np.asarray(has_image, dtype=bool)
        for index, modality in enumerate(self.modalities):
            first = index * self.levels
            block = self._checked(modality, codes, none)
            ids[:, first : first + self.levels] = block + self.offsets[first : first + self.levels]
        if IMAGE in self.modalities:
            first = self.modalities.index(IMAGE) * self.levels
            ids[none, first : first + self.levels] = len(self) - 1
        return ids

    def _checked(self, modality: str, codes: Mapping[str, Codes], none: Mask) -> Codes:
        """The codes of a modality with zeros where there is no picture, after a look at shape and range."""
        remedy = "make the vocabulary from the settings that the tokenizers were fitted with"
        if modality not in codes:
            raise UserError(f"there are no {modality} codes", "fit its tokenizer")
        block = np.asarray(codes[modality])
        if block.shape != (len(none), self.levels):
            raise UserError(
                f"the {modality} codes have the shape {block.shape}, not {(len(none), self.levels)}", remedy
            )
        if modality == IMAGE:
            block = np.where(none[:, None], 0, block)
        wrong = np.argwhere((block < 0) | (block >= self.entries_of(modality)))
        if len(wrong):
            row, level = wrong[0]
            raise UserError(
                f"the {modality} code {block[row, level]} on level {level + 1} of row {row} is not below "
                f"{self.entries_of(modality)}",
                remedy,
            )
        return block.astype(np.int32)

    def save(self, path: str | Path) -> None:
        """Writes JSON to a path or URI."""
        storage.write_json(str(path), self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> SidVocabulary:
        """Reads what `save` wrote. Raises UserError when the file is missing or damaged."""
        try:
            return cls.model_validate(storage.read_json(str(path)))
        except (OSError, ValueError, ValidationError) as error:
            raise UserError(f"{path} is no SID vocabulary: {error}", "run the tokenizer step again") from error
