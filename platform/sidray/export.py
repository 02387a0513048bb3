"""`sidray export RUN FOLDER`: the towers of a run as plain Hugging Face folders, with the other parts beside them.

text/        the causal LM with the SID tokens in its vocabulary (AutoModelForCausalLM, AutoTokenizer)
image/       the vision tower (AutoModel), or an EfficientNet-Lite's safetensors
towers.safetensors  MLP_Q, MLP_I and the image projection;  sidray.json: prompts, fusion, SID vocabulary, model_key,
             sid_scale (the head is tied: its logits of SID tokens are this many times the trained ones)
tokenizers/  the RQ-VAE codebooks
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sidray import storage
from sidray.embedding.runtime import RunModel
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.models.image import VisionTower
from sidray.models.text import TextEncoder, decoder_of
from sidray.models.towers import Towers, save_towers


def export(run: RunFolder, target: str) -> list[str]:
    """Writes the folders of the final towers and returns their names. UserError when the target is not empty."""
    folder = Path(target)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{target} is not empty", "give a new folder")
    with storage.write_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        model = RunModel.load(run)
        _export_text(model, model.final.text, storage.local_folder(run.output("text-weights")), folder / "text")
        _export_image(model.pretrained, run, folder / "image")
        save_towers(_projections(model), folder / "towers.safetensors")
        if model.assigner is not None:
            shutil.copytree(storage.local_folder(run.output("tokenizers")) / "tokenizers", folder / "tokenizers")
        storage.write_json(str(folder / "sidray.json"), _card(model))
    return sorted(path.name for path in folder.iterdir())


def _projections(model: RunModel) -> dict[str, Any]:
    """The final MLPs, and the image projection of the pretraining towers, which make the SIDs."""
    parts = [("mlp_", model.final), ("project.", model.pretrained)]
    return {
        name: value.detach().cpu().contiguous()
        for prefix, towers in parts
        for name, value in towers.named_parameters()
        if name.startswith(prefix)
    }


def _card(model: RunModel) -> dict[str, Any]:
    vocabulary = None if model.assigner is None else model.assigner.vocabulary.model_dump(mode="json")
    settings = model.recipe.model
    return {
        "model_key": model.model_key,
        "dimension": model.dimension,
        "mlp": settings.mlp,
        "pooling": settings.text.pooling,
        "fusion": settings.fusion.model_dump(),
        "prompts": settings.prompts.model_dump(),
        "text_fields": model.recipe.data.text_fields,
        "sid_vocabulary": vocabulary,
        "sid_scale": 1.0 if model.final.text.sids is None else float(model.final.text.sids.scale),
        "sids_enter_at_layer": settings.text.frozen_layers,
    }


def _export_text(model: RunModel, encoder: TextEncoder, source: Path, folder: Path) -> None:
    """Frozen and trained layers joined again, the vocabulary expanded by the SID tokens."""
    from transformers import AutoTokenizer

    lm = encoder.lm
    if encoder.lower is not None:
        decoder = decoder_of(lm)
        decoder.layers = torch.nn.ModuleList([*encoder.lower.layers, *decoder.layers])
        lm.config.num_hidden_layers = len(decoder.layers)
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    if encoder.sids is not None and model.assigner is not None:
        size = model.final.base
        filler = [f"<unused_{n}>" for n in range(size - len(tokenizer))]
        tokenizer.add_tokens([*filler, *model.assigner.vocabulary.tokens], special_tokens=True)
        lm.resize_token_embeddings(size + len(encoder.sids.weight), mean_resizing=False)
        with torch.no_grad():
            lm.get_input_embeddings().weight[size:] = encoder.sids(ids=torch.arange(len(encoder.sids.weight)))
    lm.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def _export_image(towers: Towers, run: RunFolder, folder: Path) -> None:
    if towers.image is None:
        return
    source = storage.local_folder(run.output("image-weights"))
    if isinstance(towers.image, VisionTower):
        towers.image.model.save_pretrained(str(folder), safe_serialization=True)
        preprocessor = source / "preprocessor_config.json"
        if preprocessor.exists():
            shutil.copy(preprocessor, folder)
        return
    shutil.copytree(source, folder)
