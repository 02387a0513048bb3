"""`sidray export RUN FOLDER`: the model of a run as plain Hugging Face folders, with the other parts beside them.

text/        the causal LM with the SID tokens (<IMG_EMB> of an MLRM) in its vocabulary (AutoModelForCausalLM)
image/       the vision tower (AutoModel), or an EfficientNet-Lite's safetensors
towers.safetensors  MLP_Q, MLP_I, the image projection and, if it is an MLP, the fusion
pretrained/  text/ and towers.safetensors before the SIDs: with image/ and tokenizers/ they make the SIDs of new items
sidray.json  prompts, fusion, SID vocabulary, model_key, sid_scale (the head is tied: its logits of SID tokens are this
             many times the trained ones)
mlrm.safetensors    in place of the towers: connector, picture projection, gate, projector, temperature
tokenizers/  the RQ-VAE codebooks
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sidray import storage
from sidray.embedding.note_runtime import NoteModel
from sidray.embedding.runtime import RunModel
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.models.image import PREPROCESSOR, VisionTower
from sidray.models.mlrm import IMG_EMB
from sidray.models.text import decoder_of
from sidray.models.trained import TrainedModel, save_trained, trained_state
from sidray.training.worker import TOWERS


def export(run: RunFolder, target: str) -> list[str]:
    """Writes the folders of the final model and returns their names. UserError when the target is not empty."""
    if storage.list_names(target):
        raise UserError(f"{target} is not empty", "give a new folder")
    with storage.local_folder_for(target) as folder:
        if run.recipe.model.note is not None:
            _export_mlrm(NoteModel(run), run, folder)
        else:
            _export_towers(RunModel.load(run), run, folder)
        return sorted(path.name for path in folder.iterdir())


def _export_towers(model: RunModel, run: RunFolder, folder: Path) -> None:
    tokens = [] if model.assigner is None else model.assigner.vocabulary.tokens
    _export_text(model.final, tokens, storage.local_folder(run.output("text-weights")), folder / "text")
    _export_image(model.pretrained.image, run, folder / "image")
    save_trained(_projections(model), folder / "towers.safetensors")
    if model.assigner is not None:
        shutil.copytree(storage.local_folder(run.output("tokenizers")) / "tokenizers", folder / "tokenizers")
        before = folder / "pretrained"
        _export_text(model.pretrained, [], storage.local_folder(run.output("text-weights")), before / "text")
        save_trained(_parts(model.pretrained, "mlp_", "project.", "fusion."), before / "towers.safetensors")
    storage.write_json(str(folder / "sidray.json"), _card(model))


def _export_mlrm(notes: NoteModel, run: RunFolder, folder: Path) -> None:
    model = notes.model
    state = trained_state(model)
    save_trained({n: v for n, v in state.items() if not n.startswith(("text.", "image."))}, folder / "mlrm.safetensors")
    if notes.note.reads_text:
        tokens = [IMG_EMB] if notes.note.micl else []
        _export_text(model, tokens, storage.local_folder(run.output("text-weights")), folder / "text")
    _export_image(model.image, run, folder / "image")
    card = {
        "model_key": notes.model_key,
        "dimension": notes.dimension,
        "note": notes.note.model_dump(mode="json"),
        "text_fields": run.recipe.data.text_fields,
        "visual_embeddings_enter_at_layer": run.recipe.model.text.frozen_layers,
    }
    storage.write_json(str(folder / "sidray.json"), card)


def _projections(model: RunModel) -> dict[str, Any]:
    """The final MLPs, and image projection and fusion of the pretraining towers, which make the SIDs."""
    return _parts(model.final, "mlp_") | _parts(model.pretrained, "project.", "fusion.")


def _parts(towers: TrainedModel, *prefixes: str) -> dict[str, Any]:
    named = towers.named_parameters()
    return {name: value.detach().cpu().contiguous() for name, value in named if name.startswith(prefixes)}


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


def _export_text(model: TrainedModel, tokens: Sequence[str], source: Path, folder: Path) -> None:
    """Frozen and trained layers joined again, the vocabulary expanded by the new tokens."""
    from transformers import AutoTokenizer

    encoder = model.text
    lm = encoder.lm
    if encoder.lower is not None:
        decoder = decoder_of(lm)
        decoder.layers = torch.nn.ModuleList([*encoder.lower.layers, *decoder.layers])
        lm.config.num_hidden_layers = len(decoder.layers)
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    if encoder.sids is not None:
        filler = [f"<unused_{n}>" for n in range(model.base - len(tokenizer))]
        tokenizer.add_tokens([*filler, *tokens], special_tokens=True)
        lm.resize_token_embeddings(model.base + len(encoder.sids.weight), mean_resizing=False)
        with torch.no_grad():
            lm.get_input_embeddings().weight[model.base :] = encoder.sids(ids=torch.arange(len(encoder.sids.weight)))
    lm.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def _export_image(image: torch.nn.Module | None, run: RunFolder, folder: Path) -> None:
    if image is None:
        return
    source = storage.local_folder(run.output("image-weights"))
    if isinstance(image, VisionTower):
        image.model.save_pretrained(str(folder), safe_serialization=True)
        preprocessor = source / PREPROCESSOR
        if preprocessor.exists():
            shutil.copy(preprocessor, folder)
        return
    shutil.copytree(source, folder)
    if not run.recipe.model.image.frozen:
        _put_trained(folder, storage.local_folder(run.output(run.trained_role)) / TOWERS)


def _put_trained(folder: Path, towers: Path) -> None:
    """The trunk's weights in `folder` as the stages left them. (In memory it is folded for inference.)"""
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        notes = file.metadata()
    trained = {name.removeprefix("image."): value for name, value in load_file(towers).items()}
    save_file({name: trained.get(name, value) for name, value in load_file(path).items()}, path, notes)
