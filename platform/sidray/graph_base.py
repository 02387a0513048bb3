"""What every recipe's graph begins with: catalogue and initial weights; and how steps are added to a graph."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from sidray import storage
from sidray.config import Settings, Values
from sidray.data.ingest import VERSION as INGEST_VERSION
from sidray.data.ingest import Wanted, ingest
from sidray.data.settings import CONTRACT, DataSettings
from sidray.data.sources.hm import FILES as HM_FILES
from sidray.data.tables import fingerprint
from sidray.models.run import image_weights, text_weights
from sidray.models.weights import IMAGE_VERSION, TEXT_VERSION, TOKENIZER_VERSION
from sidray.recipe import NO_IMAGES, Recipe
from sidray.retrieval.publish import INDEX_VERSION, TABLE_VERSION, build_index, publish_table
from sidray.steps import Step, Summary, Work
from sidray.tasks.own import own_versions
from sidray.training.settings import StageSettings

Run = Callable[[Work], Summary]


@dataclass(frozen=True)
class Graph:
    """A recipe's steps by role."""

    recipe: Recipe
    steps: Mapping[str, Step]

    def __getitem__(self, role: str) -> Step:
        return self.steps[role]

    def __contains__(self, role: str) -> bool:
        return role in self.steps


class Builder(ABC):
    """Adds the steps one after the other; each method reads the roles before it. `previous`: the graph of the run that
    this one continues."""

    def __init__(self, recipe: Recipe, previous: Graph | None) -> None:
        self.recipe = recipe
        self.steps: dict[str, Step] = {}
        self.previous = previous

    @abstractmethod
    def build(self) -> dict[str, Step]: ...

    def _add(self, role: str, run: Run, version: int, config: Values, inputs: dict[str, str]) -> str:
        """`inputs`: name in the step -> role; roles that this recipe lacks are left out."""
        found = {name: self.steps[needed] for name, needed in inputs.items() if needed in self.steps}
        self.steps[role] = Step(role, run, config, version, found)
        return role

    def _same(self, *roles: str) -> dict[str, str]:
        return {role: role for role in roles}

    def _continue(self, role: str) -> str:
        """Brings a step of the run that this one continues into the graph; "" when there is none."""
        if self.previous is None or role not in self.previous:
            return ""
        self.steps[f"previous-{role}"] = self.previous[role]
        return f"previous-{role}"

    def _catalogue(self) -> None:
        data = self.recipe.data
        wanted: Wanted = "pairs" if self.recipe.model.note is not None else "clicks"
        config = dump(data) | ({"wanted": wanted} if wanted == "pairs" else {})  # without them it is refused
        if files := _sources(data):
            config |= {"files": {name: _files(uri, _now()) for name, uri in files.items()}}
        self._add("catalogue", lambda work: ingest(data, work.output, wanted), INGEST_VERSION, config, {})

    def _weights(self) -> None:
        if self.previous is not None:
            self.steps |= {r: self.previous[r] for r in ("text-weights", "image-weights") if r in self.previous}
            return
        model = self.recipe.model
        unused = {"frozen_layers", "pooling", "max_tokens", "max_query_tokens"}  # by what the step writes
        config: Values = {"text": model.text.model_dump(mode="json", exclude=unused)}
        inputs = {}
        if model.text.weights == "random":  # its tokenizer is trained on the catalogue
            prompts = dump(model.prompts) if model.note is None else dump(model.note, PROMPT)
            config |= {"prompts": prompts, "tokenizer": TOKENIZER_VERSION, "seed": model.seed}
            inputs = self._same("catalogue")
        else:
            config |= _local(model.text.weights)
        self._add("text-weights", partial(text_weights, model), TEXT_VERSION, config, inputs)
        if model.image.weights != NO_IMAGES:
            config = {"image": model.image.model_dump(mode="json", exclude={"frozen"})}
            config |= {"seed": model.seed} if model.image.weights == "random" else _local(model.image.weights)
            self._add("image-weights", partial(image_weights, model), IMAGE_VERSION, config, {})

    def _publish(self) -> None:
        key = f"{self.recipe.name}-{self.steps['embed'].key}"
        inputs = self._same("catalogue", "embed", "sids")
        self._add("table", partial(publish_table, key), TABLE_VERSION, {"key": key}, inputs)
        self._add("index", partial(build_index, key), INDEX_VERSION, {"key": key}, self._same("table"))


PROMPT = {"opening", "instruction", "max_words"}  # what a note's prompt depends on, beside its style


def _sources(data: DataSettings) -> dict[str, str]:
    """What a catalogue is made of, the users' own files: name -> URI."""
    if data.source == "hm":
        return {name: storage.join(data.folder, name) for name in HM_FILES}
    return {name: uri for name in CONTRACT if (uri := getattr(data, name))} if data.source == "tables" else {}


def _local(weights: str) -> Values:
    """The files of weights that are a folder or a file of one's own."""
    path = Path(weights).expanduser()
    return {"files": _files(str(path.absolute()), _now())} if path.exists() else {}


def _now() -> int:
    """By which files are looked at once for all variants and seeds of a recipe, not once and for all."""
    return int(time.monotonic() // 10)


@lru_cache(maxsize=64)
def _files(uri: str, moment: int) -> str:
    return fingerprint(uri)


SHOWN = {"shuffle_images", "random_images", "without_images"}  # the controls that change what is embedded


def dump_stage(stage: StageSettings) -> Values:
    """JSON values of a stage, with the versions of the tasks in it that are a user's own."""
    versions = own_versions(stage.own_tasks)
    return dump(stage) | ({"versions": versions} if versions else {})


def dump(settings: Settings, include: set[str] | None = None) -> Values:
    """JSON values of a section, or of some of its keys."""
    return settings.model_dump(mode="json", include=include)
