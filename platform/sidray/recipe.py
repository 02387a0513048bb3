"""A recipe is data: everything a run depends on, loaded from YAML, checked, diffable. Recipe -> graph is graph.py.

recipe, variants = load_recipe("smgr-pictograms", ["training.workers=1"])
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, model_validator

from sidray.config import Settings, Values, build, later, load_yaml, merge
from sidray.data.settings import DataSettings
from sidray.embedding.settings import EmbeddingSettings
from sidray.errors import UserError, nearest
from sidray.evaluation.settings import EvaluationSettings
from sidray.models.settings import ModelSettings
from sidray.tokenizers.settings import TokenizerSettings
from sidray.training.settings import NOTE_TASKS, TOWER_TASKS, StageSettings, TrainingSettings

NO_IMAGES = "none"  # model.image.weights of a text-only model


class RunsSettings(Settings):
    """Where steps and runs are kept."""

    root: str = "./sidray-runs"
    """A path, s3:// or gs://, without keys and options (data.md)."""


class ControlSettings(Settings):
    """Negative controls, most of them the seed of what is drawn once; null: none."""

    shuffle_images: int | None = None
    """Of one permutation of the pictures, before training."""
    random_images: int | None = None
    """Of random image vectors at embedding time (SMGR, table 2)."""
    without_images: bool = later(False)
    """Whether items are embedded as if none had a picture; no seed."""
    shuffle_sids: int | None = later(None)
    """Of a permutation of the SIDs over the items, before the SID stages."""
    shuffle_pairs: int | None = later(None)
    """Of a permutation of the related items over the train pairs."""


class NegativeSettings(Settings):
    """Hard negatives: relevant by score, never clicked for the query in train."""

    count: Annotated[int, Field(gt=0)] = 16
    """How many are mined for each train click."""


class Recipe(Settings):
    """Everything that a run depends on."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    """Of the run folder, with a hash of all values behind it."""
    label: str = "model"
    """Of its row in the tables."""
    runs: RunsSettings = RunsSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    stages: list[StageSettings] = Field(default_factory=list)
    """Pretraining, one after the other."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    sid_stages: list[StageSettings] = Field(default_factory=list)
    """After the semantic IDs; empty: no semantic IDs, the pretraining towers serve."""
    negatives: NegativeSettings = NegativeSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    controls: ControlSettings = ControlSettings()
    init_from: str = ""
    """Folder of a finished run of the same `runs.root`, whose weights and codebooks this one continues from."""
    seeds: list[NonNegativeInt] = Field(default_factory=list)
    """All is trained once for each, in place of every other seed; the tables show means, the first one serves."""

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        if not self.stages and not self.init_from:
            raise ValueError("a recipe needs at least one entry in stages, or init_from")
        names = [stage.name for stage in (*self.stages, *self.sid_stages)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage names must differ: {twice[0]} occurs twice")
        early = [stage.name for stage in self.stages if stage.uses_sids]
        if early:
            raise ValueError(f"stage {early[0]} needs SIDs, which exist only in sid_stages")
        if self.model.image.weights == NO_IMAGES and (name := self._stage_with_images()):
            raise ValueError(f"{name} needs pictures, and model.image.weights is {NO_IMAGES!r}")
        if not self.tokenizer.modalities and (names := [s.name for s in self.sid_stages if "doc2docid" in s.tasks]):
            raise ValueError(f"stage {names[0]}: doc2docid has nothing to predict where tokenizer.modalities is empty")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds names one twice: {self.seeds}")
        self._check_notes()
        if self.sid_stages and (last := self.sid_stages[-1]).item != "sids":
            raise ValueError(f"stage {last.name}, the last one, needs item: sids: items are served with their SIDs")
        return self

    def _check_notes(self) -> None:
        """An MLRM learns from pairs, towers from clicks."""
        note = self.model.note
        for stage in self.stages:
            if (NOTE_TASKS if note is None else TOWER_TASKS) & set(stage.tasks):
                wanted = "note2note, note2note_visual and omni" if note else "query2item and the like"
                raise ValueError(f"stage {stage.name}: a model {'with' if note else 'without'} model.note has {wanted}")
            if "note2note_visual" in stage.tasks and note is not None and not note.micl:
                raise ValueError(f"stage {stage.name}: note2note_visual needs model.note.micl, which makes n_v")
            if "omni" in stage.tasks and note is not None and not (note.early and note.inputs == "multimodal"):
                raise ValueError(f"stage {stage.name}: omni needs model.note.early and inputs: multimodal")
        if note is not None and (self.controls.random_images is not None or self.controls.without_images):
            raise ValueError("controls.random_images and without_images need towers; notes have evaluation.given")
        if note is not None and self.sid_stages:
            raise ValueError("sid_stages need towers: model.note has no semantic IDs")

    def with_seeds(self) -> list[Recipe]:
        """The recipe once for each of `seeds`; itself when there are none."""
        if not self.seeds:
            return [self]

        def seeded(seed: int) -> Recipe:
            one = {"seed": seed}
            return self.model_copy(
                update={
                    "model": self.model.model_copy(update=one),
                    "stages": [stage.model_copy(update=one) for stage in self.stages],
                    "tokenizer": self.tokenizer.model_copy(update=one),
                    "sid_stages": [stage.model_copy(update=one) for stage in self.sid_stages],
                }
            )

        return [seeded(seed) for seed in self.seeds]

    @property
    def own_tasks(self) -> list[str]:
        """Tasks of a user's own that its stages name."""
        return [task for stage in (*self.stages, *self.sid_stages) for task in stage.own_tasks]

    def _stage_with_images(self) -> str:
        """The first stage that reads pictures, "" when there is none."""
        if self.model.note is not None:
            return ""  # models.settings has looked
        for stage in self.stages:
            if stage.uses_images:
                return f"stage {stage.name}"
        return "the section sid_stages" if self.sid_stages else ""

    def dump(self) -> Values:
        """JSON values with every default spelled out, but of settings that came later (config.later)."""
        return self.model_dump(mode="json")


Variants = dict[str, Recipe]
RESERVED_ROWS = ("popularity", "BM25", "oracle")  # of every report


def load_recipe(name: str, overrides: list[str]) -> tuple[Recipe, Variants, Values]:
    """The recipe, its variants (each the recipe with some values replaced; `like` starts from another variant), and the
    resolved values, which load to the same recipe again."""
    values = load_yaml(name, overrides)
    return from_values(values, name)


def from_values(values: Values, origin: str) -> tuple[Recipe, Variants, Values]:
    """See load_recipe. Raises UserError for unknown keys and values out of range, with their dotted paths."""
    values = dict(values)
    changes: dict[str, Values] = values.pop("variants", None) or {}
    if not isinstance(changes, dict) or not all(isinstance(change, dict | None) for change in changes.values()):
        raise UserError(f"recipe {origin}: variants must map names to values", "see a shipped recipe")
    values = _with_stage_overrides(values, origin)
    recipe = build(Recipe, _with_stage_defaults(values, origin), f"recipe {origin}")
    for name in (recipe.label, *changes):
        _check_label(name, origin)
    if recipe.label in changes:
        problem = f"recipe {origin}: a variant has the recipe's own label, {recipe.label!r}"
        raise UserError(problem, "give it another name")
    variants = {}
    for name in changes:
        where = f"{origin}: variants.{name}"
        variant = _with_stage_overrides(_variant(values, changes, name), where)
        variants[name] = build(Recipe, _with_stage_defaults(variant, where), f"recipe {where}")
    defaults = values.get("stage_defaults") or {}
    return recipe, variants, {**recipe.dump(), "stage_defaults": defaults, "variants": changes}


def _check_label(name: object, origin: str) -> None:
    """UserError for a label or a variant's name that cannot be a row of the report, or part of a file's name."""
    if not isinstance(name, str) or not name.strip() or "/" in name or name in RESERVED_ROWS:
        remedy = f"give another name: text without a slash, and not {', '.join(RESERVED_ROWS)}"
        raise UserError(f"recipe {origin}: {name!r} cannot be a label or the name of a variant", remedy)


def _with_stage_defaults(values: Values, origin: str) -> Values:
    """`stage_defaults` are put under every stage; what a stage says itself wins."""
    values = dict(values)
    defaults = values.pop("stage_defaults", None) or {}
    if not isinstance(defaults, dict):
        raise UserError(f"recipe {origin}: stage_defaults must map keys to values", "see a shipped recipe")
    for key in ("stages", "sid_stages"):
        if isinstance(values.get(key), list):
            values[key] = [merge(defaults, stage) if isinstance(stage, dict) else stage for stage in values[key]]
    return values


def _with_stage_overrides(values: Values, origin: str) -> Values:
    """`stage_overrides`: stage name -> values that win over what the stage says; to change one stage of a recipe that
    is extended, and for the command line. null in place of values takes the stage out, null in place of a task's weight
    the task. Raises UserError for a name that no stage has."""
    values = dict(values)
    overrides = values.pop("stage_overrides", None) or {}
    lists = {key: values[key] for key in ("stages", "sid_stages") if isinstance(values.get(key), list)}
    names = [stage.get("name") for stages in lists.values() for stage in stages if isinstance(stage, dict)]
    if not isinstance(overrides, dict) or not all(isinstance(change, dict | None) for change in overrides.values()):
        raise UserError(f"recipe {origin}: stage_overrides must map stage names to values", "see a shipped recipe")
    for name in overrides:
        if name not in names:
            known = [each for each in names if each]
            raise UserError(
                f"recipe {origin}: stage_overrides.{name} names no stage{nearest(name, known)}", f"stages: {known}"
            )
    for key, stages in lists.items():
        kept = [s for s in stages if not (isinstance(s, dict) and overrides.get(s.get("name"), {}) is None)]
        values[key] = [_overridden(s, overrides.get(s.get("name"), {})) if isinstance(s, dict) else s for s in kept]
    return values


def _overridden(stage: Values, change: Values) -> Values:
    merged = merge(stage, change)
    if isinstance(merged.get("tasks"), dict):
        merged["tasks"] = {name: weight for name, weight in merged["tasks"].items() if weight is not None}
    return merged


def _variant(values: Values, changes: dict[str, Values], name: str, seen: tuple[str, ...] = ()) -> Values:
    change = dict(changes[name] or {})
    like = change.pop("like", None)
    if like is not None and (like not in changes or like in (*seen, name)):
        raise UserError(f"variants.{name}.like names {like!r}", f"name another variant: {', '.join(changes)}")
    base = _variant(values, changes, like, (*seen, name)) if like else values
    return merge(base, change)


def run_folder_name(values: dict[str, Any]) -> str:
    """`<recipe>-<hash of the resolved recipe>`."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return f"{values['name']}-{digest[:10]}"
