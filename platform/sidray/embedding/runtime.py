"""A finished run as a model: raw queries, pictures and items to vectors, with no cache and no catalogue.

model = RunModel.load(RunFolder.open(run));  model.queries(["noodle soup"])   # [1, dimension], unit length
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidray import storage
from sidray.embedding.encoded import Encoded, Item, Vectors, unit
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.models.inference import for_inference
from sidray.models.inputs import Segment, batch_of, ended, pixels, sid_segment
from sidray.models.lengths import read
from sidray.models.prompts import Prompter, load_tokenizer
from sidray.models.sources import sources_of
from sidray.models.towers import ImageInput, TextInput, Towers
from sidray.models.trained import load_trained
from sidray.tokenizers.run import Assigner


class RunModel:
    """The pretraining towers (SIDs of new items) and the final towers of a run."""

    def __init__(self, run: RunFolder, final: Towers, pretrained: Towers, assigner: Assigner | None) -> None:
        self.recipe = run.recipe
        self.model_key = run.model_key
        self.final = final
        self.pretrained = pretrained
        self.assigner = assigner
        self.reads_text = True
        self.reads_pictures = pretrained.image is not None and (assigner is None or run.recipe.tokenizer.of_pictures)
        self.last_item = run.manifest("embed")["config"]["item"]
        tokenizer = load_tokenizer(storage.local_folder(run.output("text-weights")))
        fields = run.recipe.data.text_fields
        self.prompter = Prompter(tokenizer, run.recipe.model.text, run.recipe.model.prompts, fields)
        self.device = next(final.parameters()).device

    @classmethod
    def load(cls, run: RunFolder) -> RunModel:
        sources = sources_of(run.sources(), None)
        assigner = Assigner(run.output("tokenizers"), run.recipe.tokenizer.modalities) if "sids" in run.steps else None
        count = len(assigner.vocabulary) if assigner else 0
        pretrained = _towers(run, sources, run.trained_role, 0)
        final = _towers(run, sources, "final-towers", count) if assigner else pretrained
        return cls(run, final, pretrained, assigner)

    @property
    def tokenizer(self) -> Any:
        return self.prompter.tokenizer

    @property
    def dimension(self) -> int:
        return self.final.dimension

    def queries(self, texts: Sequence[str]) -> Vectors:
        """MLP_Q(LLM(q)): [n, dimension]."""
        return self.encoded_queries(self.tokenised_queries(texts))

    def tokenised_queries(self, texts: Sequence[str]) -> list[list[int]]:
        return self.prompter.queries([self.prompter.query_text(text) for text in texts])

    def encoded_queries(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """`ids` as `tokenised_queries` gives them."""
        with torch.inference_mode():
            return unit(self.final.query(self.final.encode_text(self._text([[s] for s in ended(self.prompter, ids)]))))

    def pictures(self, images: Sequence[bytes]) -> Vectors:
        """Pictures as queries: their own SIDs through the final item tower with the text left empty.

        Raises UserError when the model reads text alone."""
        if not self.reads_pictures:
            raise UserError("this model reads no picture alone", "search with a query, or choose a variant that does")
        with torch.inference_mode():
            h_image = self._image(list(images))
            picture = self.pretrained.item(None, h_image)
            if self.assigner is None:
                return unit(picture)
            sids = self.assigner.picture_sids(unit(h_image), unit(picture))
            return unit(self._with_sids([[]] * len(images), sids))

    def items(self, items: Sequence[Item]) -> Encoded:
        """New or changed items, each encoded as if it were alone."""
        ids = self.prompter.items([self.prompter.item_text(item) for item in items])
        with torch.inference_mode():
            h_text = read(self.pretrained.encode_text, self._text([[s] for s in ended(self.prompter, ids)]))
            if self.last_item == "text":
                return Encoded(unit(self.final.item(h_text)), [[] for _ in items])
            h_image = self._image([item.get("image") for item in items])
            fused = self.pretrained.item(h_text, h_image)
            if self.assigner is None:
                return Encoded(unit(fused), [[] for _ in items])
            sids = self.assigner.sids(unit(h_text), unit(h_image), unit(fused)).tolist()
            return Encoded(unit(self._with_sids(ids, sids)), sids)

    def _text(self, rows: list[list[Segment]]) -> TextInput:
        batch = batch_of(rows, "x")
        return TextInput(batch["x.ids"].to(self.device), batch["x.mask"].to(self.device))

    def _with_sids(self, ids: Sequence[Sequence[int]], sids: Sequence[Sequence[int]]) -> Tensor:
        prefix = [Segment(np.array(self.prompter.sids_prefix, np.int64))]
        rows = []
        for segment, numbers in zip(ended(self.prompter, ids), sids, strict=True):
            tokens = sid_segment(self.final.base + np.asarray(numbers, np.int64), None)
            rows.append([segment.body(), *(prefix if numbers else []), tokens, segment.end()])
        return self.final.item(read(self.final.encode_text, self._text(rows)))

    def _image(self, images: list[bytes | None]) -> Tensor:
        values, present = pixels(images, self.recipe.model.image.size)
        return self.pretrained.encode_image(ImageInput(values.to(self.device), present.to(self.device)))


def _towers(run: RunFolder, sources: Any, role: str, sid_count: int) -> Towers:
    towers: Towers = sources.model(run.recipe.model, sid_count, with_frozen=True)
    load_trained(towers, storage.local_folder(storage.join(run.output(role), "towers.safetensors")))
    return for_inference(towers, run.recipe.embedding.precision)
