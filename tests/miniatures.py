"""Miniatures of the five classes of the paper's seven models: the real classes and processors, some 100,000 weights.

Each has a chat template of the form that its published models use, and weights from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from iadr1_lib.models import IMAGE, KeptVideoSettings, build_tokenizer

CORPUS = ["Are there any defects in the query image? Yes No yes no I scan the whole image . USER ASSISTANT"] * 4
SIDE, PATCH = 28, 14  # pictures of 2 x 2 patches

_IMAGES_FIRST = (
    "{% for part in message['content'] if part is mapping and part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
)
_CHATML_END = (
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    "llava": (
        # As published, without an end mark after the answer.
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}" + _IMAGES_FIRST + "{{ ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    ),
    "llava_next": (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' }}" + _IMAGES_FIRST + "{{ ' [/INST] ' }}"
        "{% else %}" + _IMAGES_FIRST + "{{ '</s>' }}{% endif %}{% endfor %}"
    ),
    "llava_onevision": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}" + _IMAGES_FIRST + _CHATML_END
    ),
    "qwen2_vl": (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        + _CHATML_END
    ),
}  # fmt: skip
TEMPLATES["qwen2_5_vl"] = TEMPLATES["qwen2_vl"]

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION |= {"image_size": SIDE, "patch_size": PATCH}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def _tokenizer(family: str, specials: list[str], end: str) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(CORPUS, vocabulary=330)
    tokenizer.add_special_tokens({"additional_special_tokens": [s for s in (*specials, end) if s != IMAGE]})
    tokenizer.eos_token = end
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def _text(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return TEXT | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _clip_processor(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the processors of both models with a CLIP tower are told, whose first token is no patch."""
    return {
        "tokenizer": tokenizer,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": tokenizer.chat_template,
    }


def _clip_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The same for their configurations."""
    return {
        "vision_config": CLIPVisionConfig(**VISION),
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE),
        "vision_feature_select_strategy": "default",
        "vision_feature_layer": -2,
        "image_seq_length": 4,
    }


def _llava() -> tuple[Any, Any]:
    tokenizer = _tokenizer("llava", [], "</s>")
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    )
    processor = LlavaProcessor(image_processor=pictures, **_clip_processor(tokenizer))
    config = LlavaConfig(text_config=LlamaConfig(**_text(tokenizer)), **_clip_config(tokenizer))
    return LlavaForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    tokenizer = _tokenizer("llava_next", [], "</s>")
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(image_processor=pictures, **_clip_processor(tokenizer))
    text = MistralConfig(**_text(tokenizer), sliding_window=None)
    config = LlavaNextConfig(text_config=text, image_grid_pinpoints=PINPOINTS, **_clip_config(tokenizer))
    return LlavaNextForConditionalGeneration(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    tokenizer = _tokenizer("llava_onevision", ["<|im_start|>", "<video>"], "<|im_end|>")
    pictures = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS, do_pad=True
    )
    processor = LlavaOnevisionProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        video_processor=KeptVideoSettings({"video_processor_type": "LlavaOnevisionVideoProcessor"}),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=tokenizer.chat_template,
    )
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


QWEN_SPECIALS = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def _qwen(family: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer(family, QWEN_SPECIALS, "<|im_end|>")
    tokenizer.image_token = "<|image_pad|>"
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{word}|>")
        for name, word in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    pictures = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4})
    video = KeptVideoSettings({"video_processor_type": "Qwen2VLVideoProcessor"})
    text = _text(tokenizer) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    }
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 32, "patch_size": 14}
        config: Any = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        model: Any = Qwen2VLForConditionalGeneration(config)
        processor_class: Any = Qwen2VLProcessor
    else:
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
        vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        model = Qwen2_5_VLForConditionalGeneration(config)
        processor_class = Qwen2_5_VLProcessor
    return model, processor_class(pictures, tokenizer, video, chat_template=tokenizer.chat_template)


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": lambda: _qwen("qwen2_vl"),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl"),
}


def build(family: str) -> tuple[Any, Any]:
    """The same miniature and its processor at each call."""
    torch.manual_seed(0)
    model, processor = BUILDERS[family]()
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = (
        processor.tokenizer.eos_token_id,
        processor.tokenizer.pad_token_id,
    )
    return model.eval(), processor


def save(family: str, folder: Path) -> Path:
    model, processor = build(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
