"""A finished run's folder: which steps it is made of, and where their outputs lie. Light: nothing heavy is imported.

run = RunFolder.open("sidray-runs/runs/smgr-pictograms-1a2b");  run.output("index")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from sidray import storage
from sidray.errors import UserError, nearest
from sidray.recipe import Recipe, from_values
from sidray.steps import DoneStep, Step, Summary, Work


@dataclass(frozen=True)
class RunFolder:
    """`recipe`: of the chosen variant; `steps`: role -> step folder."""

    uri: str
    label: str
    recipe: Recipe
    steps: dict[str, str]

    @classmethod
    def open(cls, uri: str, variant: str = "") -> RunFolder:
        """A run, or one of its variants. UserError when the folder is none or the variant is unknown."""
        uri = storage.absolute(uri)
        for name in ("recipe.yaml", "steps.json"):
            if not storage.exists(storage.join(uri, name)):
                remedy = "give the run folder that `sidray run` printed, and finish the run if it was stopped"
                raise UserError(f"{uri} is no run: it has no {name}", remedy)
        values = yaml.safe_load(storage.read_bytes(storage.join(uri, "recipe.yaml")))
        recipe, variants, _ = from_values(values, storage.join(uri, "recipe.yaml"))
        recipes = {recipe.label: recipe, **variants}
        label = variant or recipe.label
        if label not in recipes:
            raise UserError(
                f"the run has no variant {label!r}{nearest(label, recipes)}", f"it has {', '.join(recipes)}"
            )
        steps = storage.read_json(storage.join(uri, "steps.json"))[label]
        return cls(uri, label, recipes[label], steps)

    @property
    def root(self) -> str:
        """Of the store: <root>/runs/<run>."""
        return self.uri.rsplit("/", 2)[0]

    @property
    def name(self) -> str:
        """Of the run and its variant, among those of one root. It becomes a folder's: in an object store plain."""
        label = storage.plain(self.label) if "://" in self.uri else self.label
        return f"{self.uri.rsplit('/', 1)[1]}-{label}"

    @property
    def model_key(self) -> str:
        """What vectors of this run carry: they may be compared with vectors of the same key alone."""
        return f"{self.recipe.name}-{self.steps['embed'].rsplit('-', 1)[1]}"

    @property
    def trained_role(self) -> str:
        """The step of the trained weights that every model of the run has."""
        return "pretrained-towers" if self.recipe.model.note is None else "note-model"

    def manifest(self, role: str) -> dict[str, Any]:
        """UserError when the step is not done."""
        uri = storage.join(self.root, "steps", self.steps[role], "manifest.json")
        if not storage.exists(uri):
            raise UserError(f"step {role} of {self.uri} is not done", "finish the run: sidray run RECIPE")
        return dict(storage.read_json(uri))

    def step(self, role: str) -> Step:
        """For the graph of another run of the same store. UserError when it is not done."""
        manifest = self.manifest(role)
        name, key = self.steps[role].rsplit("-", 1)

        def run(work: Work) -> Summary:
            raise UserError(f"step {role} of {self.uri} is gone", "finish that run again: sidray run RECIPE")

        return DoneStep(name, run, manifest["config"], manifest["version"], {}, key)

    def output(self, role: str) -> str:
        """URI of a step's output."""
        return storage.join(self.root, "steps", self.steps[role], str(self.manifest(role)["attempt"]))

    def sources(self) -> dict[str, str]:
        """The outputs that every encoder needs, as `models.fetch.sources_of` takes them."""
        roles = ("catalogue", "text-weights", "image-weights")
        return {role: self.output(role) for role in roles if role in self.steps}
