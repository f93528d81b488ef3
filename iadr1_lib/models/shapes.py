"""A model's shapes without its weights: configuration, parameters on the meta device, tokens of an image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from iadr1_lib.errors import UserError, one_line
from iadr1_lib.models.families import FAMILIES, SHIPPED, model_config, named
from iadr1_lib.runs import base_model_dir, project_root


@dataclass(frozen=True)
class Tokens:
    """Tokens of an image in the language model, for a square and for the worst shape; patches that the tower sees."""

    square: int
    worst: int
    worst_shape: tuple[int, int]  # height, width in pixels
    patches: int  # of the worst shape


def sizes() -> dict[str, Any]:
    """The table of sizes in data/model_sizes.json, by short name."""
    table: dict[str, Any] = json.loads((project_root() / "data" / "model_sizes.json").read_text(encoding="utf-8"))
    return {name: entry for name, entry in table.items() if isinstance(entry, dict)}


def configuration(model: str) -> Any:
    """transformers' configuration of a short name, hub id or folder. UserError for anything else."""
    known = named(model)
    if known is not None and known.hub_id is not None:
        entry, kind = sizes()[known.name], known.family.model_type
        text, vision = ({k: v for k, v in entry[part].items() if k != "family"} for part in ("text", "vision"))
        if known.family.picture_tokens != "area":
            text["model_type"] = entry["text"]["family"]
            vision["model_type"] = f"{entry['vision']['family']}_vision_model"
        tied = text["tie_word_embeddings"]
        return CONFIG_MAPPING[kind](text_config=text, vision_config=vision, tie_word_embeddings=tied)
    folder = base_model_dir(known.name) if known is not None else Path(model)
    if not folder.is_dir():
        listed = ", ".join([*sizes(), *SHIPPED])
        raise UserError(f"unknown model {model}: choose from {listed}, or name a folder with a config.json")
    model_type = model_config(folder)["model_type"]
    if model_type not in FAMILIES:
        raise UserError(
            f"planning is not supported for models of type {model_type}: choose one of {', '.join(FAMILIES)}"
        )
    return AutoConfig.from_pretrained(str(folder))


def meta_model(config: Any) -> Any:
    """The model of a configuration, or of a short name, hub id or folder, on the meta device: shapes without numbers.

    Raises:
        UserError: the name is unknown, or its configuration is broken.
    """
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(configuration(config) if isinstance(config, str) else config)
    except UserError:
        raise
    except Exception as error:  # each class of models checks its configuration with errors of its own
        raise UserError(f"the configuration of {config} cannot be used ({one_line(error)}): fetch it again") from error


def image_tokens(config: Any, height: int, width: int, images: int = 1) -> tuple[int, int]:
    """(tokens in the language model, patches that the tower sees) of one image, by the processors' own functions.

    `images` matters to LLaVA-OneVision: with several images in a prompt each is seen whole, without tiles.
    """
    vision = config.vision_config
    kind = FAMILIES[config.model_type].picture_tokens
    if kind == "area":
        patches = int(Qwen2VLImageProcessorPil().get_number_of_image_patches(height, width))
        return patches // vision.spatial_merge_size**2, patches
    side, tile = vision.image_size // vision.patch_size, vision.image_size
    classes = 1 if vision.model_type == "clip_vision_model" else 0  # CLIP's class token, which "default" drops
    if kind == "fixed":
        kept = classes if config.vision_feature_select_strategy == "full" else 0
        return side**2 + kept, side**2 + classes
    one_vision = config.model_type == "llava_onevision"
    if one_vision and images > 1:
        return side**2 + 1, side**2
    processor = object.__new__(LlavaOnevisionProcessor if one_vision else LlavaNextProcessor)  # no tokenizer needed
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints)
    processor.num_image_tokens, processor.num_additional_image_tokens = side**2, classes
    processor.patch_size = vision.patch_size
    processor.vision_aspect_ratio = getattr(config, "vision_aspect_ratio", None)
    tokens = processor._get_number_of_features(height, width, tile, tile)
    tokens -= config.vision_feature_select_strategy == "default"
    rows, columns = (length // tile for length in select_best_resolution([height, width], config.image_grid_pinpoints))
    return int(tokens), (rows * columns + 1) * (side**2 + classes)


def tokens_of(config: Any, max_pixels: int, images: int = 1) -> Tokens:
    """Tokens of a square image of `max_pixels` pixels, and of the worst shape up to 1:8 with as many."""
    side = math.isqrt(max_pixels)
    counts = []
    for eighths in range(8, 65):
        short = max(1, math.isqrt(max_pixels * 8 // eighths))
        for shape in ((short, max_pixels // short), (max_pixels // short, short)):
            counts.append((*image_tokens(config, *shape, images), shape))
    worst, _, shape = max(counts, key=lambda count: count[:2])
    return Tokens(image_tokens(config, side, side, images)[0], worst, shape, max(patches for _, patches, _ in counts))
