"""The vision-language models: building the mini VLM, loading any saved model with its processor.

The mini VLM has the three parts of the paper's headline model, LLaVA-OneVision 0.5B (a SigLIP tower, a projector, a
Qwen2 language model), at a few million parameters, in transformers' `LlavaForConditionalGeneration`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from iadr1_lib.answer import TAGS
from iadr1_lib.data import MODEL_FILES, download_once
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.models.families import FAMILIES, MODELS, Family, family_of, model_config, named
from iadr1_lib.models.processors import load_processor
from iadr1_lib.runs import base_model_dir

transformers_logging.disable_progress_bar()  # a bar per load of a model that loads in no time

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
    """Pictures become 96 x 96 (bilinear), prompts get 64 image tokens per picture.

    The Pillow image processor is named explicitly: with torchvision installed transformers would choose another one,
    whose pixels differ.
    """
    pictures = SiglipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
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
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation.suppress_tokens = [config.image_token_id]  # an image mark in an answer would ask for a picture
    return model


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path, *, half: bool = False) -> None:
    """Write a folder that `from_pretrained` loads. `half` stores float16 weights that load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    if half:
        model.half().save_pretrained(folder)
        model.float()
        _load_as_float32(folder / "config.json")
    else:
        model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _load_as_float32(config_file: Path) -> None:
    config = json.loads(config_file.read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    config_file.write_text(json.dumps(config, indent=2))


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


def _pretrained(folder: Path, **arguments: Any) -> PreTrainedModel:
    try:
        return AutoModelForImageTextToText.from_pretrained(str(folder), **arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file breaks transformers in ways of every kind
        raise UserError(
            f"the model in {folder} cannot be loaded ({one_line(error)}): copy or fetch it again"
        ) from error


@dataclass(frozen=True)
class ModelSettings:
    """Which model is trained, and what of it.

    Attributes:
        name: short name (`families.MODELS`), hub id, or a folder.
        revision: branch, tag or commit of the hub; None takes the newest, and records which one that was.
        dtype: of the weights that are trained. LoRA and DeepSpeed can train on bfloat16 ones, because what they
            update is kept in float32; elsewhere the paper's small steps would round to nothing.
        gradient_checkpointing: recompute activations in the backward pass: more time for much less memory.
        lora_rank: 0 trains all weights; else LoRA on the language model's linear layers.
        lora_alpha: LoRA's updates are scaled by alpha / rank.
        four_bit: keep the frozen base in 4 bits (NF4, by bitsandbytes); only with LoRA, on a GPU.
    """

    name: str = "mini"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: int = 0
    lora_dropout: float = 0.0
    four_bit: bool = False


def load_model(folder: Path | str, device: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model (in evaluation mode, on `device`, by default the GPU if there is one) and processor of a saved folder.

    Raises:
        UserError: as `require_weights`, or a file is damaged.
    """
    folder = require_weights(folder)
    model = _pretrained(folder)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        processor = load_processor(folder)
        processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "word"}]}])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the processor in {folder} cannot be loaded ({one_line(error)}): copy the base model's"
        ) from error
    model.generation_config.suppress_tokens = image_token_ids(folder, processor)
    return model.to(device).eval(), processor


def image_token_ids(folder: Path | str, processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that stand for pictures: an answer that held one would ask for a picture that is not there."""
    known = processor.tokenizer.get_vocab()
    return [known[mark] for mark in family_of(folder).image_marks if mark in known]


def weights_arguments(settings: ModelSettings) -> dict[str, Any]:
    """Arguments of `from_pretrained` for training: precision of the weights, and 4 bits where asked for."""
    arguments: dict[str, Any] = {"dtype": settings.dtype}
    if settings.four_bit:
        if not settings.lora_rank:
            raise UserError("model.four_bit needs LoRA, since 4-bit weights cannot be trained: set model.lora_rank")
        if find_spec("bitsandbytes") is None:
            raise UserError('model.four_bit needs bitsandbytes: pip install -c constraints-gpu.txt -e ".[gpu]"')
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return arguments


def load_for_training(folder: Path, settings: ModelSettings) -> PreTrainedModel:
    """The model as the trainer wants it: where it lies in memory is the trainer's affair."""
    return _pretrained(require_weights(folder), **weights_arguments(settings))


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


def freeze(model: PreTrainedModel, family: Family, parts: Iterable[str]) -> None:
    """Leave parts ("tower", "projector", "language model") as they are in training."""
    parts = set(parts)
    for name, parameter in model.named_parameters():
        if family.part_of(name) in parts:
            parameter.requires_grad_(False)


def model_folder(settings: ModelSettings) -> Path:
    """The folder of the model that training starts from; of a hub model the snapshot, fetched if it is not there yet.

    What `iadr1 fetch` brought is used without a network. The folder is named after the commit.

    Raises:
        UserError: the name is unknown here and to the hub, or it was not fetched and there is no network.
    """
    if settings.name == "mini":
        return base_model_dir()
    if Path(settings.name).is_dir():
        return require_weights(settings.name)
    known = named(settings.name)
    if known is None and settings.name.count("/") != 1:
        raise UserError(
            f"unknown model {settings.name}: use one of {', '.join(MODELS)}, a hub id (owner/name) or a model folder"
        )
    hub_id = known.hub_id if known and known.hub_id else settings.name
    return require_weights(download_once(hub_id, settings.revision, kind="model", patterns=MODEL_FILES))


def tell_pictures_per_prompt(trainer: Any) -> None:
    """Let a GRPOTrainer train a model that must be told how many pictures each prompt has (LLaVA-OneVision).

    Its processor returns the key `batch_num_images`, which TRL 1.16 hands on to a method that does not know it. The
    trainer knows the numbers itself (`num_images`), so the key is dropped, and each forward pass of the model takes the
    numbers of its own rows.
    """
    original = trainer._get_per_token_logps_and_entropies
    waiting: list[int] = []

    def logps(*args: Any, batch_num_images: Any = None, num_images: list[int] | None = None, **kwargs: Any) -> Any:
        waiting[:] = num_images or []
        try:
            return original(*args, num_images=num_images, **kwargs)
        finally:
            waiting.clear()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if waiting:
            rows = len(kwargs["input_ids"])
            kwargs["batch_num_images"] = torch.tensor(waiting[:rows])
            del waiting[:rows]
        return args, kwargs

    trainer._get_per_token_logps_and_entropies = logps
    for policy in (trainer.model, trainer.ref_model):
        if policy is not None:
            policy.register_forward_pre_hook(before, with_kwargs=True)


def see_each_picture_once(tower: nn.Module) -> None:
    """Let a vision tower look once at each distinct picture of a batch, with the same outputs and gradients.

    In SC-GRPO all completions of a group bring the same picture, so that most of the tower's work would be repetition.
    """
    places: list[torch.Tensor] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        pixels = args[0] if args else kwargs["pixel_values"]
        distinct, place = torch.unique(pixels.flatten(1), dim=0, return_inverse=True)
        places.append(place)
        distinct = distinct.unflatten(1, pixels.shape[1:])
        return ((distinct, *args[1:]), kwargs) if args else (args, kwargs | {"pixel_values": distinct})

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        place = places.pop()
        for name, value in output.items():
            output[name] = tuple(v[place] for v in value) if isinstance(value, tuple) else value[place]
        return output

    tower.register_forward_pre_hook(before, with_kwargs=True)
    tower.register_forward_hook(after, with_kwargs=True)


def read_each_prompt_once(model: PreTrainedModel) -> None:
    """Let the language model of a Llava read each distinct prompt of a batch once, with the same outputs and gradients.

    In SC-GRPO all completions of a group follow the same prompt, which holds two thirds of the mini VLM's tokens. The
    prompt ends where the labels begin, or, in generation, where the first pass ends. Needs the key-value cache, so not
    for training with gradient checkpointing.
    """
    language_model = model.model.language_model
    read = language_model.forward
    prompt_length = [0]

    def note_prompt(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        labels = kwargs.get("labels")
        prompt_length[0] = 0 if labels is None else int((labels != -100).any(0).int().argmax())

    def forward(
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        first_pass = past_key_values is not None and past_key_values.get_seq_length() == 0
        length = inputs_embeds.shape[1] if first_pass else prompt_length[0]
        if not length or (past_key_values is not None and not first_pass):
            return read(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        _, place = torch.unique(inputs_embeds[:, :length].detach().flatten(1), dim=0, return_inverse=True)
        # Not torch.unique's own rows: the gradient must reach the embeddings.
        row = torch.stack([(place == group).int().argmax() for group in range(int(place.max()) + 1)])
        prompts = read(
            inputs_embeds=inputs_embeds[row, :length],
            attention_mask=attention_mask[row, :length],
            position_ids=None if position_ids is None else position_ids.expand(len(place), -1)[row, :length],
            **kwargs | {"use_cache": True},
        )
        cache = DynamicCache() if past_key_values is None else past_key_values
        for number, layer in enumerate(prompts.past_key_values.layers):
            cache.update(layer.keys.index_select(0, place), layer.values.index_select(0, place), number)
        states = prompts.last_hidden_state.index_select(0, place)
        if length < inputs_embeds.shape[1]:
            rest = read(
                inputs_embeds=inputs_embeds[:, length:],
                attention_mask=attention_mask,
                position_ids=None if position_ids is None else position_ids[:, length:],
                past_key_values=cache,
                **kwargs | {"use_cache": True},
            )
            states = torch.cat([states, rest.last_hidden_state], dim=1)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=cache if first_pass else None)

    model.register_forward_pre_hook(note_prompt, with_kwargs=True)
    language_model.forward = forward


def parameter_count(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the three parts: tower, projector, language model (tied embeddings counted once)."""
    family = FAMILIES[model.config.model_type]
    counts = {"tower": 0, "projector": 0, "language model": 0}
    for name, parameter in model.named_parameters():
        counts[family.part_of(name)] += parameter.numel()
    return counts


# ---------------------------------------------------------------------------------------- sentence embeddings
