"""The graph of NoteLLM-2: an MLRM trained on pairs, its vectors of the whole catalogue (NotesBuilder).

Roles beside those of every graph: note-cache-STYLE (prompts at the cut), grid-cache, stage-NAME, note-model (the last
stage), embed (served), given-image and given-text (the same model shown one modality: table 3), zero-shot, saliency.
"""

from __future__ import annotations

from functools import partial

from sidray.cluster import on_cluster
from sidray.config import Values
from sidray.embedding.cache import GRID_VERSION, NOTE_VERSION, grid_cache, note_cache
from sidray.embedding.note_embed import VERSION as EMBED_VERSION
from sidray.embedding.note_embed import embed_notes, zero_shot
from sidray.graph_base import PROMPT, SHOWN, Builder, dump, dump_stage
from sidray.models.note_inputs import NOTE_COLUMNS
from sidray.models.note_settings import NoteInputs, NoteSettings, PromptStyle
from sidray.models.sources import NOTES
from sidray.steps import Step
from sidray.training.module import check_columns, columns_of
from sidray.training.run import StageRun
from sidray.training.saliency import VERSION as SALIENCY_VERSION
from sidray.training.saliency import check_word, trained_saliency
from sidray.training.settings import StageSettings
from sidray.training.stage import VERSION as STAGE_VERSION


class NotesBuilder(Builder):
    """See the module."""

    @property
    def note(self) -> NoteSettings:
        assert self.recipe.model.note is not None
        return self.recipe.model.note

    def build(self) -> dict[str, Step]:
        self._catalogue()
        self._weights()
        self._grids()
        model = self._continue("note-model")
        for stage in self.recipe.stages:
            model = self._stage(stage, model)
        self.steps["note-model"] = self.steps[model]
        self._embed("embed", self.note.inputs)
        for shown in self.recipe.evaluation.given:
            if self.note.inputs == "multimodal" and (shown == "text" or self.note.early):
                self._embed(f"given-{shown}", shown)
        if self.recipe.evaluation.zero_shot:
            self._zero_shot()
        if self.recipe.evaluation.saliency and self.note.reads_text and self.recipe.stages:
            self._saliency(self.recipe.stages[-1])
        self._publish()
        return self.steps

    def _grids(self) -> None:
        model = self.recipe.model
        if model.image.frozen and self.note.looks:
            run = partial(grid_cache, model, self.recipe.embedding)
            inputs = self._same("catalogue", "image-weights")
            self._add("grid-cache", run, GRID_VERSION, {"size": model.image.size}, inputs)

    def _inputs(self, styles: set[PromptStyle]) -> dict[str, str]:
        """What reads these prompts needs; their caches are added where they are not there yet."""
        roles = [self._prompts(style) for style in sorted(styles)] if self.recipe.model.text.frozen_layers else []
        pictures = {"image-weights": "image-weights", "image-cache": "grid-cache"} if self.note.looks else {}
        return self._same("catalogue", "text-weights", *roles) | pictures

    def _prompts(self, style: PromptStyle) -> str:
        role = f"{NOTES}{style}"
        if role not in self.steps:
            recipe = self.recipe
            config: Values = {
                "text": recipe.model.text.model_dump(mode="json", exclude={"pooling", "max_query_tokens"}),
                "prompt": dump(self.note, PROMPT),
                **dump(recipe.embedding, {"precision"}),
            }
            run = partial(note_cache, recipe.model, style, recipe.embedding)
            self._add(role, run, NOTE_VERSION, config, self._same("catalogue", "text-weights"))
        return role

    def _stage(self, stage: StageSettings, start: str) -> str:
        recipe = self.recipe
        check_columns(stage, ("pairs",), frozenset({*NOTE_COLUMNS, "related"}))
        config: Values = {
            "stage": dump_stage(stage),
            "model": dump(recipe.model),
            "training": dump(recipe.training, {"precision", "clip", "valid_rows"}),
            "shuffle": recipe.controls.shuffle_images,
            **dump(recipe.controls, {"shuffle_pairs"}),
            **dump(recipe.tokenizer, {"token_lr"}),
        }
        inputs = self._inputs(self._read(stage)) | ({"start": start} if start else {})
        return self._add(f"stage-{stage.name}", StageRun(stage, recipe), STAGE_VERSION, config, inputs)

    def _read(self, stage: StageSettings) -> set[PromptStyle]:
        """The prompts that a stage's tasks read."""
        return self._styles([NOTE_COLUMNS[column] for column in columns_of(stage) if column in NOTE_COLUMNS])

    def _styles(self, shown: list[NoteInputs]) -> set[PromptStyle]:
        return {self.note.prompt(self.note.shown(each)) for each in shown} if self.note.reads_text else set()

    def _embed(self, role: str, shown: NoteInputs) -> None:
        recipe = self.recipe
        config = {"shown": shown, "model": dump(recipe.model), "controls": dump(recipe.controls, SHOWN)}
        config |= dump(recipe.embedding, {"precision"})
        inputs = self._inputs(self._styles([shown])) | {"towers": "note-model"}
        self._add(role, partial(embed_notes, shown, recipe), EMBED_VERSION, config, inputs)

    def _zero_shot(self) -> None:
        """The untrained LM over the text, and the vision encoder: whatever the recipe's own model is made of."""
        prompt = {name: getattr(self.note, name) for name in PROMPT}
        note = NoteSettings(inputs="multimodal", early=False, micl=False, late=True, **prompt)
        recipe = self.recipe.model_copy(update={"model": self.recipe.model.model_copy(update={"note": note})})
        config = {"text": dump(recipe.model.text), "note": dump(note, PROMPT), "image": dump(recipe.model.image)}
        config |= {"controls": dump(recipe.controls, SHOWN), **dump(recipe.embedding, {"precision"})}
        self._add("zero-shot", partial(zero_shot, recipe), EMBED_VERSION, config, self._inputs({"text"}))

    def _saliency(self, stage: StageSettings) -> None:
        """Of the loss of the last stage. UserError when there is no compressed word."""
        recipe = self.recipe
        check_word(recipe.model)
        config: Values = {
            "stage": dump_stage(stage),
            "model": dump(recipe.model),
            "shuffle": recipe.controls.shuffle_images,
            **dump(recipe.controls, {"shuffle_pairs"}),
            "notes": recipe.evaluation.saliency_notes,
        }
        inputs = self._inputs(self._read(stage)) | {"towers": "note-model"}
        device = {"cpus": recipe.training.cpus_per_worker, "gpus": recipe.training.gpus_per_worker}
        run = partial(on_cluster, trained_saliency, recipe, stage, **device)
        self._add("saliency", run, SALIENCY_VERSION, config, inputs)
