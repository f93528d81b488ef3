"""Loading a saved vision-language model with its processor: for answers, and for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from iadr1_lib.data import MODEL_FILES, download_once
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.models.families import FAMILIES, MODELS, SHIPPED, Family, family_of, model_config, named
from iadr1_lib.models.processors import load_processor
from iadr1_lib.runs import base_model_dir

transformers_logging.disable_progress_bar()  # a bar per load of a model that loads in no time


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and what of it.

    Attributes:
        name: short name (`families.MODELS`), hub id, or a folder.
        revision: branch, tag or commit of the hub; None takes the newest, and records which one that was.
        dtype: of the weights that are trained. LoRA and DeepSpeed can train on bfloat16 ones, because what they
            update is kept in float32; elsewhere the paper's small steps would round to nothing.
        gradient_checkpointing: recompute activations in the backward pass: more time for much less memory. "auto":
            only if memory asks for it (`training.plan`).
        lora_rank: 0 trains all weights; else LoRA on the language model's linear layers.
        lora_alpha: LoRA's updates are scaled by alpha / rank.
        four_bit: keep the frozen base in 4 bits (NF4, by bitsandbytes); only with LoRA, on a GPU.
    """

    name: str = "mini"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool | Literal["auto"] = False
    lora_rank: int = 0
    lora_alpha: int = 0
    lora_dropout: float = 0.0
    four_bit: bool = False


def require_weights(folder: Path | str) -> Path:
    """The folder of a saved vision-language model, by its files; nothing is loaded.

    Raises:
        UserError: it is missing, is of another kind, or has no weights or no processor.
    """
    folder = Path(folder)
    model_type = model_config(folder)["model_type"]
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"{folder} is a model of type {model_type}, which is none that transformers {transformers.__version__} "
            "knows to read pictures: name a vision-language model in transformers' own format"
        )
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"the model folder {folder} holds no weights (*.safetensors); train the stage again with `iadr1 train`, "
            "or name another folder"
        )
    if not any(folder.glob("*processor_config.json")) or not any(folder.glob("tokenizer*")):
        raise UserError(f"the model folder {folder} holds no processor: copy the base model's beside the weights")
    return folder


def model_folder(settings: ModelSettings) -> Path:
    """The folder of the model that training starts from; of a hub model the snapshot, fetched if it is not there yet.

    What `iadr1 fetch` brought is used without a network. The folder is named after the commit.

    Raises:
        UserError: the name is unknown here and to the hub, or it was not fetched and there is no network.
    """
    if settings.name in SHIPPED:
        return require_weights(base_model_dir(settings.name))
    if Path(settings.name).is_dir():
        return require_weights(settings.name)
    known = named(settings.name)
    if known is None and settings.name.count("/") != 1:
        raise UserError(
            f"unknown model {settings.name}: use one of {', '.join(MODELS)}, a hub id (owner/name) or a model folder"
        )
    hub_id = known.hub_id if known and known.hub_id else settings.name
    return require_weights(download_once(hub_id, settings.revision, kind="model", patterns=MODEL_FILES))


def load_model(folder: Path | str, device: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model (in evaluation mode, on `device`, by default the GPU if there is one) and processor of a saved folder.

    Raises:
        UserError: as `require_weights`, or a file is damaged.
    """
    folder = require_weights(folder)
    model, processor = _from_pretrained(folder), load_processor(folder)
    model.generation_config.suppress_tokens = image_token_ids(folder, processor)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), processor


def load_for_training(folder: Path, settings: ModelSettings) -> PreTrainedModel:
    """The model as the trainer takes it; the trainer decides on the device."""
    return _from_pretrained(require_weights(folder), **weights_arguments(settings))


def _from_pretrained(folder: Path, **arguments: Any) -> PreTrainedModel:
    try:
        return AutoModelForImageTextToText.from_pretrained(str(folder), **arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file breaks transformers in ways of every kind
        message = f"the model in {folder} cannot be loaded ({one_line(error)}): copy or fetch it again"
        raise UserError(message) from error


def weights_arguments(settings: ModelSettings) -> dict[str, Any]:
    """Arguments of `from_pretrained` for training: precision of the weights, and 4 bits where asked for."""
    if not settings.four_bit:
        return {"dtype": settings.dtype}
    if not settings.lora_rank:
        raise UserError("model.four_bit needs LoRA, since 4-bit weights cannot be trained: set model.lora_rank")
    if find_spec("bitsandbytes") is None:
        raise UserError('model.four_bit needs bitsandbytes: pip install -c constraints-gpu.txt -e ".[gpu]"')
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    four_bit = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    return {"dtype": settings.dtype, "quantization_config": four_bit}


def lora_config(folder: Path, settings: ModelSettings) -> LoraConfig | None:
    """LoRA on every linear layer of the language model's blocks, or None where all weights are trained."""
    if not settings.lora_rank:
        return None
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=family_of(folder).lora_targets,
        task_type="CAUSAL_LM",
    )


def parameters_of(model: PreTrainedModel, family: Family, parts: Iterable[str]) -> list[torch.nn.Parameter]:
    """The parameters of parts ("tower", "projector", "language model"), with LoRA those below and beside it."""
    parts = set(parts)
    return [
        parameter
        for name, parameter in model.named_parameters()
        if family.part_of(name.removeprefix("base_model.model.")) in parts  # as PEFT calls it
    ]


def freeze(model: PreTrainedModel, family: Family, parts: Iterable[str]) -> None:
    """Leave parts ("tower", "projector", "language model") as they are in training."""
    for parameter in parameters_of(model, family, parts):
        parameter.requires_grad_(False)


def image_token_ids(folder: Path | str, processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that stand for images: an answer that held one would ask for an image that is not there."""
    vocabulary = processor.tokenizer.get_vocab()
    return [vocabulary[mark] for mark in family_of(folder).image_marks if mark in vocabulary]


def parameter_count(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the three parts: tower, projector, language model (tied embeddings counted once)."""
    counts = {"tower": 0, "projector": 0, "language model": 0}
    for name, parameter in model.named_parameters():
        counts[FAMILIES[model.config.model_type].part_of(name)] += parameter.numel()
    return counts
