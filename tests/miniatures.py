"""Miniatures of the five classes of the paper's seven models: the real classes and processors, some 100,000 weights.

Each has a chat template of the form that its published models use, and weights from a seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from iadr1_lib.models import IMAGE, build_tokenizer
from iadr1_lib.models.processors import KeptVideoSettings

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


class Size(NamedTuple):
    """Widths, inner widths of the MLPs and layers of language model and tower; side of a picture or tile in pixels."""

    width: int = 32
    inner: int = 48
    layers: int = 2
    tower_width: int = 32
    tower_inner: int = 64
    tower_layers: int = 2
    side: int = SIDE


SMALL = Size()


def configuration(family: str, size: Size = SMALL, text: dict[str, Any] | None = None, **ids: int) -> Any:
    """A configuration of one of the five classes.

    Args:
        text: more settings of the language model.
        ids: of the tokens that stand for pictures, such as image_token_id.
    """
    text = {"hidden_size": size.width, "intermediate_size": size.inner, "num_hidden_layers": size.layers} | (text or {})
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    vision: dict[str, Any]
    if family.startswith("qwen"):
        half = size.width // 8  # of a head
        sections = [half // 4, half * 3 // 8, half - half // 4 - half * 3 // 8]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
        vision = {"depth": size.tower_layers, "num_heads": 4, "patch_size": PATCH}
        if family == "qwen2_vl":
            ratio = size.tower_inner // size.tower_width
            vision |= {"embed_dim": size.tower_width, "hidden_size": size.width, "mlp_ratio": ratio}
        else:
            vision |= {"hidden_size": size.tower_width, "intermediate_size": size.tower_inner // 2}
            vision |= {"out_hidden_size": size.width, "window_size": 56, "fullatt_block_indexes": [1]}
        return CONFIG_MAPPING[family](text_config=text, vision_config=vision, **ids)
    text["model_type"] = {"llava": "llama", "llava_next": "mistral", "llava_onevision": "qwen2"}[family]
    vision = {"hidden_size": size.tower_width, "intermediate_size": size.tower_inner}
    vision |= {"num_hidden_layers": size.tower_layers, "num_attention_heads": 4}
    vision |= {"image_size": size.side, "patch_size": PATCH}
    if family == "llava_onevision":
        vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    else:
        vision |= {"model_type": "clip_vision_model"}
    more = {} if family == "llava" else {"image_grid_pinpoints": pinpoints(size.side)}
    return CONFIG_MAPPING[family](text_config=text, vision_config=vision, **more, **ids)


def pinpoints(side: int) -> list[list[int]]:
    """The shapes into which a picture is cut, in pixels."""
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


END = {"llava": "</s>", "llava_next": "</s>"}  # others: <|im_end|>
QWEN_MARKS = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
VIDEO = {"llava_onevision": "LlavaOnevisionVideoProcessor"}  # others: Qwen's


def _marks(family: str) -> dict[str, str]:
    """The tokens that stand for pictures, by the names that the configuration gives their ids."""
    if family.startswith("qwen"):
        return {f"{name}_token_id": f"<|{word}|>" for name, word in QWEN_MARKS.items()}
    return {"image_token_id": IMAGE} | ({"video_token_id": "<video>"} if family == "llava_onevision" else {})


def _processor(family: str) -> Any:
    end = END.get(family, "<|im_end|>")
    tokenizer = build_tokenizer(CORPUS, vocabulary=330)
    specials = {*_marks(family).values(), end, *(["<|im_start|>"] if end == "<|im_end|>" else [])} - {IMAGE}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(specials)})
    tokenizer.eos_token, tokenizer.chat_template = end, TEMPLATES[family]
    template = {"chat_template": tokenizer.chat_template}
    video = KeptVideoSettings({"video_processor_type": VIDEO.get(family, "Qwen2VLVideoProcessor")})
    if family.startswith("qwen"):
        tokenizer.image_token = "<|image_pad|>"
        pictures: Any = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4})
        kind: Any = Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor
        return kind(pictures, tokenizer, video, **template)
    tiles = {"image_grid_pinpoints": pinpoints(SIDE)}
    square = {"height": SIDE, "width": SIDE}
    if family == "llava_onevision":
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessorPil(size=square, do_pad=True, **tiles),
            tokenizer=tokenizer,
            video_processor=video,
            num_image_tokens=(SIDE // PATCH) ** 2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_9",
            **template,
        )
    size: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    kind, pictures = LlavaProcessor, CLIPImageProcessorPil(do_convert_rgb=True, **size)
    if family == "llava_next":
        kind, pictures = LlavaNextProcessor, LlavaNextImageProcessorPil(**size, **tiles)
    return kind(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's first token is no patch
        **template,
    )


def build(family: str) -> tuple[Any, Any]:
    """The same miniature and its processor at each call."""
    processor = _processor(family)
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "bos_token_id": None, **ends}
    text |= {"sliding_window": None} if family == "llava_next" else {}
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in _marks(family).items()}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(configuration(family, text=text, **ids))
    for key, token in ends.items():
        setattr(model.generation_config, key, token)
    return model.eval(), processor


def save(family: str, folder: Path) -> Path:
    """Save the miniature in `folder` and return it."""
    model, processor = build(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
