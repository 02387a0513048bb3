"""The recipe's section `tokenizer`: which semantic-ID tokenizer, how large, how trained.

settings = TokenizerSettings(kind="rqvae", hidden={"item": [128, 64, 32]});  settings.widths("item", 128)
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from sidray.config import Settings, later
from sidray.errors import UserError

Entries = Annotated[int, Field(ge=2)]
Choice = Entries | Annotated[list[Entries], Field(min_length=1)]
Pyramid = list[PositiveInt]
Modality = Literal["text", "image", "item"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


class TokenizerSettings(Settings):
    """SMGR, appendix B, gives levels, entries, hidden, beta and gamma; the rest is not stated there."""

    kind: Literal["rqvae", "rkmeans"] = "rqvae"
    levels: PositiveInt = 3
    # Codes per level: one number, or one per modality. A list is chosen from on validation: the smallest size whose
    # reconstructions lose at most 1 % of the best size's recall.
    entries: Choice | dict[str, Choice] = 32
    # Widths of the RQ-VAE's encoder per modality, the width of the vectors FIRST, the width of the codes last:
    # [128, 64, 32] is Linear(128, 64), ReLU, Linear(64, 32), and the decoder is its mirror. A modality that is
    # absent, or has [], gets d, 3d/4, d/2, d/4; for d = 1024 that is the paper's [1024, 768, 512, 256].
    hidden: dict[str, Pyramid] = Field(default_factory=dict)
    beta: NonNegativeFloat = 0.25  # weighs codebook and commitment terms, eq. (14)
    gamma: NonNegativeFloat = 0.25  # weighs the commitment term once more: its weight is beta * gamma
    epochs: PositiveInt = 60
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-4  # on the matrices of encoder and decoder alone
    seed: NonNegativeInt = 0
    dead_code_after: PositiveInt = 100  # optimiser steps without a single row, after which a code is seeded anew
    min_utilisation: Annotated[float, Field(ge=0, le=1)] = 0.5  # share of each level's codes that items must use
    # How its tokens start in the LM: at random as in the paper, or as their codebook vectors, turned into its width.
    token_start: Literal["random", "codebook"] = "random"
    token_lr: PositiveFloat = 1.0  # learning rate of the tokens' embeddings, as a share of the stage's
    standardise: bool = True  # zero mean and unit variance per dimension, by the training vectors
    # Whose SIDs an item's text carries (SMGR, table 3), always in this order. All codebooks are fitted whatever is left
    # out here, and the LM has a token for every code: models of other subsets have the same parameters.
    modalities: list[Modality] = later([*MODALITIES])

    @field_validator("modalities")
    @classmethod
    def _ordered(cls, names: list[Modality]) -> list[Modality]:
        return [name for name in MODALITIES if name in names]

    @property
    def of_pictures(self) -> bool:
        """Whether a picture alone has SIDs."""
        return not {"image", "item"}.isdisjoint(self.modalities)

    def sizes_of(self, modality: str) -> list[int]:
        """Codebook sizes to choose from, ascending. Raises UserError when `entries` lists others only."""
        given = self.entries
        if isinstance(given, dict):
            if modality not in given:
                raise UserError(
                    f"tokenizer.entries has no number for {modality!r}",
                    f"add tokenizer.entries.{modality}=32, or give one number",
                )
            given = given[modality]
        return sorted(set(given)) if isinstance(given, list) else [given]

    def entries_of(self, modality: str) -> int:
        """Codes per level of the modality. Raises UserError when `entries` lists others only, or several."""
        sizes = self.sizes_of(modality)
        if len(sizes) > 1:
            raise UserError(f"tokenizer.entries lists several sizes for {modality!r}: {sizes}", "give one of them")
        return sizes[0]

    def widths(self, modality: str, width: int) -> list[int]:
        """The encoder's widths for vectors of `width` dimensions: width first, code width last.

        Raises UserError when the recipe's pyramid starts with another width or has no layer."""
        given = self.hidden.get(modality, [])
        if not given:
            return [width, *(max(1, width * quarters // 4) for quarters in (3, 2, 1))]
        remedy = f"give tokenizer.hidden.{modality}=[{width}, ..., width of the codes], or [] for an automatic pyramid"
        if given[0] != width:
            raise UserError(
                f"tokenizer.hidden.{modality} starts with {given[0]}, its vectors have {width} dimensions",
                remedy,
            )
        if len(given) == 1:
            raise UserError(f"tokenizer.hidden.{modality} has no layer after the input width {width}", remedy)
        return list(given)
