"""The seven families of vision-language models and the mini VLM: loading, training set-up, faster batches.

In comes a model's name or folder; out come model and processor (`load_model`), or the policy that a trainer takes
(`load_for_training`, `lora_config`). Begin with `families.FAMILIES`, the table of all that differs between models.
"""

from iadr1_lib.models.batching import deduplicate_images, pass_image_counts, share_group_work, share_prefix
from iadr1_lib.models.comparison import (
    UNLIKE,
    ComparisonConfig,
    ComparisonImageProcessorPil,
    ComparisonTower,
    build_photo,
    build_photo_processor,
    compare,
    describe,
    describe_pictures,
    nearest_first,
    with_references,
)
from iadr1_lib.models.families import FAMILIES, MODELS, SHIPPED, family_of, model_config, named
from iadr1_lib.models.generation import GenerationSettings, speed_up_generation
from iadr1_lib.models.loading import (
    ModelSettings,
    freeze,
    image_token_ids,
    load_for_training,
    load_model,
    lora_config,
    model_folder,
    parameter_count,
    parameters_of,
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
)
from iadr1_lib.models.processors import load_processor
from iadr1_lib.models.shapes import Tokens, meta_model, tokens_of
