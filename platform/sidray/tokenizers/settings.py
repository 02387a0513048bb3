"""The recipe's section `tokenizer`: which semantic-ID tokenizer, how large, how trained.

settings = TokenizerSettings(kind="rqvae", hidden={"item": [128, 64, 32]});  settings.widths("item", 128)
"""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

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
    """RQ-VAE (the paper), or residual k-means."""
    levels: PositiveInt = 3
    """Codes of a modality in an item's SIDs."""
    entries: Choice | dict[str, Choice] = 32
    """Codes per level: one number, or one per modality; of a list validation chooses the smallest that loses at most
    1 % of the best one's recall."""
    hidden: dict[Modality, Pyramid] = Field(default_factory=dict)
    """Modality (text, image, item) -> widths of the RQ-VAE's encoder, from the vectors' to the codes'; absent or []: d,
    3d/4, d/2, d/4, which is the paper's for d = 1024. The decoder is its mirror."""
    beta: NonNegativeFloat = 0.25
    """Weighs codebook and commitment terms, eq. (14)."""
    gamma: NonNegativeFloat = 0.25
    """Weighs the commitment term once more: its weight is beta * gamma."""
    epochs: PositiveInt = 60
    """Passes over the training vectors."""
    batch_size: PositiveInt = 256
    """Vectors of a step."""
    lr: PositiveFloat = 3e-3
    """Learning rate."""
    weight_decay: NonNegativeFloat = 1e-4
    """On the matrices of encoder and decoder alone."""
    seed: NonNegativeInt = 0
    """Of k-means, encoder, decoder and the order of the vectors."""
    dead_code_after: PositiveInt = 100
    """Steps without a single vector after which a code is seeded anew."""
    min_utilisation: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of each level's codes that items must use; below it the run ends."""
    token_start: Literal["random", "codebook"] = "random"
    """How its tokens start in the LM: at random (the paper), or as their codebook vectors, turned into its width."""
    token_lr: PositiveFloat = 1.0
    """Learning rate of the tokens' embeddings, as a share of the stage's."""
    standardise: bool = True
    """Whether vectors get zero mean and unit variance per dimension, by the training vectors."""
    modalities: list[Modality] = later([*MODALITIES])
    """Whose SIDs an item's text carries (SMGR, table 3), always in this order. All codebooks are fitted, and the LM has
    a token for every code: models of other subsets have the same parameters."""

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
        given = self.hidden.get(cast(Modality, modality), [])
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
