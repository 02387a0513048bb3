"""The graph of SMGR and its kin: two towers, pretraining stages, semantic IDs, SID stages (TowersBuilder)."""

from __future__ import annotations

from functools import partial

from sidray.config import Values
from sidray.embedding.cache import IMAGE_VERSION as IMAGE_CACHE_VERSION
from sidray.embedding.cache import TEXT_VERSION as TEXT_CACHE_VERSION
from sidray.embedding.cache import image_cache, text_cache
from sidray.embedding.embed import VERSION as EMBED_VERSION
from sidray.embedding.run import embed_step
from sidray.graph_base import SHOWN, Builder, dump, dump_stage
from sidray.models.fetch import COLUMNS, OF_CLICKS, SIDS
from sidray.retrieval.negatives import VERSION as NEGATIVES_VERSION
from sidray.retrieval.negatives import mine
from sidray.steps import Step
from sidray.tokenizers.embeddings import VERSION as TOKENS_VERSION
from sidray.tokenizers.run import ASSIGN_VERSION, FIT_VERSION, assign, fit
from sidray.training.module import check_columns, columns_of, rows_of
from sidray.training.run import StageRun
from sidray.training.settings import StageSettings
from sidray.training.stage import VERSION as STAGE_VERSION

_TOKENS = ("token_start", "token_lr")  # what the SID stages read of the section tokenizer
_LATER = (*_TOKENS, "modalities")  # what codebooks do not depend on
_SOURCES = ("catalogue", "text-weights", "image-weights", "text-cache", "image-cache")


class TowersBuilder(Builder):
    """See graph.py for the roles."""

    def build(self) -> dict[str, Step]:
        self._catalogue()
        self._weights()
        self._caches()
        self._pretraining()
        if self.recipe.sid_stages:
            self._sids()
            self._sid_stages()
            self._embed("embed", "final-towers", self.recipe.sid_stages[-1].item, ("sids", "tokenizers"))
        else:
            self.steps["embed"] = self.steps["pretrained"]
        self._publish()
        return self.steps

    def _caches(self) -> None:
        model, embedding = self.recipe.model, self.recipe.embedding
        if model.text.frozen_layers:
            run = partial(text_cache, model, embedding)
            config = {"text": model.text.model_dump(mode="json", exclude={"pooling"}), "prompts": dump(model.prompts)}
            config |= dump(embedding, {"precision"})
            inputs = self._same("catalogue", "text-weights")
            self._add("text-cache", run, TEXT_CACHE_VERSION, config, inputs)
        if model.image.frozen and "image-weights" in self.steps:
            run = partial(image_cache, model, embedding)
            inputs = self._same("catalogue", "image-weights")
            self._add("image-cache", run, IMAGE_CACHE_VERSION, {"size": model.image.size}, inputs)

    def _pretraining(self) -> None:
        towers = self._continue("pretrained-towers")
        for stage in self.recipe.stages:
            towers = self._stage(stage, towers)
        self.steps["pretrained-towers"] = self.steps[towers]
        if self.recipe.stages:
            item = str(self.recipe.stages[-1].item)
        else:
            assert self.previous is not None
            item = str(self.previous["pretrained"].config["item"])
        self._embed("pretrained", "pretrained-towers", item)

    def _stage(self, stage: StageSettings, start: str, extra: tuple[str, ...] = ()) -> str:
        recipe = self.recipe
        check_columns(stage, ("clicks", "items"), self._there(stage, sids=bool(extra)))
        config: Values = {
            "stage": dump_stage(stage),
            "model": dump(recipe.model),
            "training": dump(recipe.training, {"precision", "clip", "valid_rows"}),
            "shuffle": recipe.controls.shuffle_images if "image" in columns_of(stage) else None,
        }
        if extra:
            config |= dump(recipe.tokenizer, set(_TOKENS)) | {"tokens": TOKENS_VERSION}
        inputs = self._same(*_SOURCES, *extra) | ({"start": start} if start else {})
        role = self._add(f"stage-{stage.name}", StageRun(stage, recipe), STAGE_VERSION, config, inputs)
        if stage.name in recipe.evaluation.after:
            self._embed(f"after-{stage.name}", role, stage.item, extra)
        return role

    def _there(self, stage: StageSettings, sids: bool) -> frozenset[str]:
        """The columns that tasks of the stage may read."""
        there = COLUMNS if sids else COLUMNS - SIDS
        there = there if "image-weights" in self.steps else there - {"image"}
        return there if rows_of(stage) == "clicks" else there - OF_CLICKS

    def _embed(self, role: str, towers: str, item: str, extra: tuple[str, ...] = ()) -> None:
        recipe = self.recipe
        config = {"item": item, "model": dump(recipe.model), "controls": dump(recipe.controls, SHOWN)}
        config |= dump(recipe.embedding, {"precision"})
        inputs = self._same(*_SOURCES, *extra) | {"towers": towers}
        self._add(role, partial(embed_step, item, recipe), EMBED_VERSION, config, inputs)

    def _sids(self) -> None:
        recipe = self.recipe
        inputs = {"catalogue": "catalogue", "embed": "pretrained"}
        if frozen := self._continue("tokenizers"):
            self.steps["tokenizers"] = self.steps[frozen]
        else:
            config = recipe.tokenizer.model_dump(mode="json", exclude=set(_LATER))
            self._add("tokenizers", partial(fit, recipe.tokenizer), FIT_VERSION, config, inputs)
        inputs = {"tokenizers": "tokenizers", "embed": "pretrained"}
        config = dump(recipe.tokenizer, {"modalities"}) | dump(recipe.controls, {"shuffle_sids"})
        run = partial(assign, recipe.tokenizer.modalities, recipe.controls.shuffle_sids, recipe.embedding)
        self._add("sids", run, ASSIGN_VERSION, config, inputs)

    def _sid_stages(self) -> None:
        recipe = self.recipe
        if any(map(_mines, recipe.sid_stages)):
            run = partial(mine, recipe.negatives.count, recipe.embedding)
            inputs = {"catalogue": "catalogue", "embed": "pretrained"}
            self._add("negatives", run, NEGATIVES_VERSION, dump(recipe.negatives), inputs)
        towers = self._continue("final-towers") or "pretrained-towers"
        for stage in recipe.sid_stages:
            extra = ("sids", "tokenizers", "negatives") if _mines(stage) else ("sids", "tokenizers")
            towers = self._stage(stage, towers, extra)
        self.steps["final-towers"] = self.steps[towers]


def _mines(stage: StageSettings) -> bool:
    """Whether it reads hard negatives."""
    return "negatives" in columns_of(stage)
