"""The mini VLM: its tokenizer, processor and architecture; `comparison` builds the model `photo` of the same parts.

It has the three parts of the paper's headline model, LLaVA-OneVision 0.5B (a SigLIP tower, a projector, a Qwen2
language model), at a few million parameters, in transformers' `LlavaForConditionalGeneration`. Its weights are in
data/mini_base; data/mini_base_build.py makes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from iadr1_lib.answer import TAGS

IMAGE_SIZE = 96
PATCH_SIZE = 12
PAD, USER, ASSISTANT, END, IMAGE = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>", "<image>"

# One line per message: role mark, images where the content has them, text, end mark. Content may be a plain string
# or a list of parts, as in the chat templates of the seven large models.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(corpus: Iterable[str], vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `corpus`; the eight tags and the chat marks are one token each."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, USER, ASSISTANT, END, IMAGE],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(list(TAGS))  # ordinary tokens: decoding keeps them
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images become 96 x 96 (bilinear); each takes 64 image tokens of the prompt.

    The Pillow image processor is named explicitly: with torchvision installed transformers would choose another one,
    whose pixels differ.
    """
    image_processor = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return build_llava_processor(tokenizer, image_processor, PATCH_SIZE)


def build_llava_processor(tokenizer: PreTrainedTokenizerFast, image_processor: Any, patch: int) -> LlavaProcessor:
    """A processor of LLaVA's class, for pictures that have a token for `patch` x `patch` pixels."""
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=0,
    )


def build_mini(
    tokenizer: PreTrainedTokenizerFast,
    *,
    vision_layers: int = 4,
    vision_width: int = 192,
    text_layers: int = 3,
    text_width: int = 192,
) -> LlavaForConditionalGeneration:
    """The mini VLM with random weights (seed torch first)."""
    vision = SiglipVisionConfig(
        hidden_size=vision_width,
        intermediate_size=4 * vision_width,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_width // 48,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    return build_llava(tokenizer, vision, (IMAGE_SIZE // PATCH_SIZE) ** 2, text_layers, text_width)


def build_llava(
    tokenizer: PreTrainedTokenizerFast,
    vision: PretrainedConfig,
    picture_tokens: int,
    text_layers: int = 3,
    text_width: int = 192,
) -> LlavaForConditionalGeneration:
    """A model of LLaVA's class with random weights: any tower, and a small Qwen2 as language model."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=text_width * 5 // 2,
        num_hidden_layers=text_layers,
        num_attention_heads=text_width // 48,
        num_key_value_heads=text_width // 96,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_seq_length=picture_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation.suppress_tokens = [config.image_token_id]  # an image mark in an answer would ask for an image
    return model
