"""Where the inputs of a model lie: URIs of step outputs, and the model on its initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidray import storage
from sidray.models.mlrm import build_mlrm
from sidray.models.settings import ModelSettings
from sidray.models.towers import build_towers
from sidray.models.trained import TrainedModel

NOTES = "note-cache-"  # how the roles of cached prompts begin


@dataclass(frozen=True)
class Sources:
    """Where the inputs lie (URIs of step outputs; None = the step is not part of this recipe)."""

    catalogue: str
    text_weights: str
    image_weights: str | None = None
    text_cache: str | None = None
    image_cache: str | None = None
    sids: str | None = None
    tokenizers: str | None = None
    negatives: str | None = None
    note_caches: Mapping[str, str] = field(default_factory=dict)  # prompt style -> cached prompts of an MLRM
    shuffle: int | None = None  # seed that permutes the pictures
    shuffle_pairs: int | None = None  # seed that permutes the related items of the train pairs

    def model(self, settings: ModelSettings, sid_count: int, with_frozen: bool = False) -> TrainedModel:
        """The two towers, or an MLRM, with the initial weights."""
        image = None if self.image_weights is None else storage.local_folder(self.image_weights)
        text = storage.local_folder(self.text_weights)
        if settings.note is not None:
            return build_mlrm(text, image, settings, with_frozen)
        return build_towers(text, image, settings, sid_count, with_frozen)


def sources_of(inputs: Mapping[str, str], shuffle: int | None, shuffle_pairs: int | None = None) -> Sources:
    """Sources from the inputs of a step, by role."""
    return Sources(
        catalogue=inputs["catalogue"],
        text_weights=inputs["text-weights"],
        image_weights=inputs.get("image-weights"),
        text_cache=inputs.get("text-cache"),
        image_cache=inputs.get("image-cache"),
        sids=inputs.get("sids"),
        tokenizers=inputs.get("tokenizers"),
        negatives=inputs.get("negatives"),
        note_caches={role.removeprefix(NOTES): uri for role, uri in inputs.items() if role.startswith(NOTES)},
        shuffle=shuffle,
        shuffle_pairs=shuffle_pairs,
    )
