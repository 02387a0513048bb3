"""From a recipe to its steps. Every step states what its result depends on; equal steps of two variants are one step.

    graph = build_graph(recipe);  store.ensure(graph["index"])

Roles: catalogue, text-weights, image-weights, text-cache, image-cache, stage-NAME, pretrained (vectors after the last
pretraining stage), tokenizers, sids, negatives, embed (final vectors), table, index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import yaml

from sidray import storage
from sidray.config import Settings, Values
from sidray.data.ingest import VERSION as INGEST_VERSION
from sidray.data.ingest import ingest
from sidray.embedding.cache import IMAGE_VERSION as IMAGE_CACHE_VERSION
from sidray.embedding.cache import TEXT_VERSION as TEXT_CACHE_VERSION
from sidray.embedding.cache import image_cache, text_cache
from sidray.embedding.embed import VERSION as EMBED_VERSION
from sidray.embedding.run import embed_step
from sidray.errors import UserError
from sidray.models.run import image_weights, text_weights
from sidray.models.weights import IMAGE_VERSION, TEXT_VERSION, TOKENIZER_VERSION
from sidray.recipe import NO_IMAGES, Recipe, from_values
from sidray.retrieval.negatives import VERSION as NEGATIVES_VERSION
from sidray.retrieval.negatives import mine
from sidray.retrieval.publish import INDEX_VERSION, TABLE_VERSION, build_index, publish_table
from sidray.steps import Step, Summary, Work
from sidray.tokenizers.embeddings import VERSION as TOKENS_VERSION
from sidray.tokenizers.run import ASSIGN_VERSION, FIT_VERSION, assign, fit
from sidray.training.run import StageRun
from sidray.training.settings import StageSettings
from sidray.training.stage import VERSION as STAGE_VERSION

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

    @property
    def model_key(self) -> str:
        """What table, index and query vectors of these towers carry."""
        return f"{self.recipe.name}-{self.steps['embed'].key}"


def build_graph(recipe: Recipe) -> Graph:
    """The steps of a recipe. UserError when init_from is no finished run."""
    return Graph(recipe, _Builder(recipe).build())


def load_run(run: str) -> tuple[Recipe, dict[str, Recipe], str]:
    """Recipe, variants and store root of a run folder."""
    uri = storage.absolute(run)
    path = storage.join(uri, "recipe.yaml")
    if not storage.exists(path):
        raise UserError(f"{run} is no run: it has no recipe.yaml", "give the folder that `sidray run` printed")
    recipe, variants, _ = from_values(yaml.safe_load(storage.read_bytes(path)), path)
    return recipe, variants, uri.rsplit("/", 2)[0]


class _Builder:
    """Adds the steps one after the other; each method reads the roles before it."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.steps: dict[str, Step] = {}
        self.previous = build_graph(load_run(recipe.init_from)[0]) if recipe.init_from else None

    def build(self) -> dict[str, Step]:
        self._catalogue()
        self._weights()
        self._caches()
        self._pretraining()
        if self.recipe.sid_stages:
            self._sids()
            self._sid_stages()
        self._publish()
        return self.steps

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
        self._add("catalogue", lambda work: ingest(data, work.output), INGEST_VERSION, dump(data), {})

    def _weights(self) -> None:
        if self.previous is not None:
            self.steps |= {r: self.previous[r] for r in ("text-weights", "image-weights") if r in self.previous}
            return
        model = self.recipe.model
        unused = {"frozen_layers", "pooling", "max_tokens", "max_query_tokens"}  # by what the step writes
        config = {"text": model.text.model_dump(mode="json", exclude=unused), "seed": model.seed}
        inputs = {}
        if model.text.weights == "random":  # its tokenizer is trained on the catalogue
            config |= {"prompts": dump(model.prompts), "tokenizer": TOKENIZER_VERSION}
            inputs = self._same("catalogue")
        self._add("text-weights", partial(text_weights, model), TEXT_VERSION, config, inputs)
        if model.image.weights != NO_IMAGES:
            config = {"image": model.image.model_dump(mode="json", exclude={"frozen"}), "seed": model.seed}
            self._add("image-weights", partial(image_weights, model), IMAGE_VERSION, config, {})

    def _caches(self) -> None:
        model, embedding = self.recipe.model, self.recipe.embedding
        if model.text.frozen_layers:
            run = partial(text_cache, model, embedding)
            config = {"text": model.text.model_dump(mode="json", exclude={"pooling"}), "prompts": dump(model.prompts)}
            inputs = self._same("catalogue", "text-weights")
            self._add("text-cache", run, TEXT_CACHE_VERSION, config, inputs)
        if model.image.frozen and "image-weights" in self.steps:
            run = partial(image_cache, model, embedding)
            inputs = self._same("catalogue", "image-weights")
            self._add("image-cache", run, IMAGE_CACHE_VERSION, {"size": model.image.size}, inputs)

    def _pretraining(self) -> None:
        stages = self.recipe.stages or (self.previous.recipe.stages if self.previous else [])
        towers = self._continue("pretrained-towers")
        for stage in self.recipe.stages:
            towers = self._stage(stage, towers)
        self.steps["pretrained-towers"] = self.steps[towers]
        self._embed("pretrained", "pretrained-towers", stages[-1].item)

    def _stage(self, stage: StageSettings, start: str, extra: tuple[str, ...] = ()) -> str:
        recipe = self.recipe
        config: Values = {
            "stage": dump(stage),
            "model": dump(recipe.model),
            "training": dump(recipe.training, {"precision", "clip", "valid_rows"}),
            "shuffle": recipe.controls.shuffle_images if stage.uses_images else None,
        }
        if extra:
            config |= dump(recipe.tokenizer, set(_TOKENS)) | {"tokens": TOKENS_VERSION}
        inputs = self._same(*_SOURCES, *extra) | ({"start": start} if start else {})
        role = self._add(f"stage-{stage.name}", StageRun(stage, recipe), STAGE_VERSION, config, inputs)
        if stage.name in recipe.evaluation.after:
            self._embed(f"after-{stage.name}", role, stage.item, extra)
        return role

    def _embed(self, role: str, towers: str, item: str, extra: tuple[str, ...] = ()) -> None:
        recipe = self.recipe
        config = {"item": item, "model": dump(recipe.model), "controls": dump(recipe.controls)}
        inputs = self._same(*_SOURCES, *extra) | {"towers": towers}
        self._add(role, partial(embed_step, item, recipe), EMBED_VERSION, config, inputs)

    def _sids(self) -> None:
        recipe = self.recipe
        inputs = {"catalogue": "catalogue", "embed": "pretrained"}
        if frozen := self._continue("tokenizers"):
            self.steps["tokenizers"] = self.steps[frozen]
        else:
            config = recipe.tokenizer.model_dump(mode="json", exclude=set(_TOKENS))  # of the stages behind it
            self._add("tokenizers", partial(fit, recipe.tokenizer), FIT_VERSION, config, inputs)
        inputs = {"tokenizers": "tokenizers", "embed": "pretrained"}
        self._add("sids", partial(assign, recipe.embedding), ASSIGN_VERSION, {}, inputs)

    def _sid_stages(self) -> None:
        recipe = self.recipe
        if any(stage.uses_negatives for stage in recipe.sid_stages):
            run = partial(mine, recipe.negatives.count, recipe.embedding)
            inputs = {"catalogue": "catalogue", "embed": "pretrained"}
            self._add("negatives", run, NEGATIVES_VERSION, dump(recipe.negatives), inputs)
        towers = self._continue("final-towers") or "pretrained-towers"
        for stage in recipe.sid_stages:
            extra = ("sids", "tokenizers", "negatives") if stage.uses_negatives else ("sids", "tokenizers")
            towers = self._stage(stage, towers, extra)
        self.steps["final-towers"] = self.steps[towers]

    def _publish(self) -> None:
        if self.recipe.sid_stages:
            self._embed("embed", "final-towers", self.recipe.sid_stages[-1].item, ("sids", "tokenizers"))
        else:
            self.steps["embed"] = self.steps["pretrained"]
        key = f"{self.recipe.name}-{self.steps['embed'].key}"
        self._add(
            "table", partial(publish_table, key), TABLE_VERSION, {"key": key}, self._same("catalogue", "embed", "sids")
        )
        self._add("index", partial(build_index, key), INDEX_VERSION, {"key": key}, self._same("table"))


def dump(settings: Settings, include: set[str] | None = None) -> Values:
    """JSON values of a section, or of some of its keys."""
    return settings.model_dump(mode="json", include=include)


_TOKENS = ("token_start", "token_lr")  # what the SID stages read of the section tokenizer
_SOURCES = ("catalogue", "text-weights", "image-weights", "text-cache", "image-cache")
