"""What every model that stages train has in common: named parts, and its weights to and from a file.

set_trainable(model, ["text", "mlp"]);  save(trained_state(model), path);  load_trained(model, path)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sidray.errors import UserError
from sidray.models.settings import ModelSettings
from sidray.models.text import TextEncoder

SID_TOKENS = "text.sids."  # how the names of their weights begin


class TrainedModel(nn.Module):
    """A language model (`text`), an image encoder and what joins them. `base`: id of the first token that is no text.

    Frozen parts whose outputs are cached (LM layers below the cut, a frozen image trunk) are present only where raw ids
    and pixels have to be encoded."""

    settings: ModelSettings
    text: TextEncoder
    base: int

    @abstractmethod
    def groups(self) -> Mapping[str, list[nn.Module]]:
        """The parts that a stage can train, by the names that recipes use."""


def set_trainable(model: TrainedModel, names: Sequence[str]) -> None:
    """Freezes everything but the named groups; a name that the model does not have says nothing. Weights below a cut
    stay frozen whatever is named, and so do means and sizes that are set once (`mean`, `scale`)."""
    model.requires_grad_(False)
    groups = model.groups()
    for name in names:
        for module in groups.get(name, []):
            module.requires_grad_(True)
    if model.text.cut:  # the output embeddings too, tied or not: neither is saved (is_cached)
        for embeddings in (model.text.lm.get_input_embeddings(), model.text.lm.get_output_embeddings()):
            if embeddings is not None:
                embeddings.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith((".scale", ".mean")):
            parameter.requires_grad_(False)


def is_cached(name: str, model: TrainedModel) -> bool:
    """Whether a weight never changes in any stage, so that it lives in the weights step alone."""
    if name.startswith("text.lower."):
        return True
    if model.text.cut and ("embed_tokens" in name or "lm_head" in name):
        return True
    if name.startswith("text.lm."):
        return not model.groups()["text"]
    return name.startswith("image.") and model.settings.image.frozen


def trained_state(model: TrainedModel) -> dict[str, Tensor]:
    """The weights that stages set, each once (tied weights share one name)."""
    named = model.named_parameters()  # yields tied parameters once
    return {name: value.detach().cpu().contiguous() for name, value in named if not is_cached(name, model)}


def save_trained(state: Mapping[str, Tensor], path: Path) -> None:
    save_file(dict(state), str(path))


def load_trained(model: TrainedModel, path: Path) -> set[str]:
    """Puts a stage's weights on the model and returns their names. SID tokens may be new; all else must match.

    Raises UserError when the file belongs to another model."""
    state = load_file(str(path))
    own = dict(model.named_parameters())
    wrong = [n for n, v in state.items() if n not in own or own[n].shape != v.shape]
    missing = [n for n in trained_state(model) if n not in state and not n.startswith(SID_TOKENS)]
    if wrong or missing:
        name = (wrong or missing)[0]
        has = tuple(state[name].shape) if name in state else "nothing"
        wants = tuple(own[name].shape) if name in own else "nothing"
        raise UserError(
            f"checkpoint {path} belongs to another model: {name} has shape {has}, this model wants {wants}"
            f" ({len(wrong)} weights do not fit, {len(missing)} are missing)",
            "use the recipe (sections model and tokenizer) that the checkpoint was trained with",
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
    return set(state)
