"""The seven families of vision-language models and the mini VLM: loading, training set-up, faster batches.

In comes a model's name or folder; out come model and processor (`load_model`), or the policy that a trainer takes
(`load_for_training`, `lora_config`). Begin with `families.FAMILIES`, the table of all that differs between models.
"""

from iadr1_lib.models.batching import deduplicate_images, pass_image_counts, share_prefix
from iadr1_lib.models.families import FAMILIES, MODELS, Family, family_of, model_config, named
from iadr1_lib.models.loading import (
    ModelSettings,
    freeze,
    image_token_ids,
    load_for_training,
    load_model,
    lora_config,
    model_folder,
    parameter_count,
    require_weights,
    weights_arguments,
)
from iadr1_lib.models.mini import (
    ASSISTANT,
    END,
    IMAGE,
    IMAGE_SIZE,
    PATCH_SIZE,
    USER,
    build_mini,
    build_processor,
    build_tokenizer,
    save_model,
)
from iadr1_lib.models.processors import KeptVideoSettings, load_processor
from iadr1_lib.models.shapes import (
    Tokens,
    configuration,
    image_tokens,
    meta_model,
    meta_model_named,
    sizes,
    tokens_of,
)

__all__ = [
    "ASSISTANT",
    "END",
    "FAMILIES",
    "IMAGE",
    "IMAGE_SIZE",
    "MODELS",
    "PATCH_SIZE",
    "USER",
    "Family",
    "KeptVideoSettings",
    "ModelSettings",
    "Tokens",
    "build_mini",
    "build_processor",
    "build_tokenizer",
    "configuration",
    "deduplicate_images",
    "family_of",
    "freeze",
    "image_token_ids",
    "image_tokens",
    "load_for_training",
    "load_model",
    "load_processor",
    "lora_config",
    "meta_model",
    "meta_model_named",
    "model_config",
    "model_folder",
    "named",
    "parameter_count",
    "pass_image_counts",
    "require_weights",
    "save_model",
    "share_prefix",
    "sizes",
    "tokens_of",
    "weights_arguments",
]
