"""What a training will need, said before anything is loaded: parameters, tokens, steps, memory, and what to lower.

Parameters are counted with transformers' own classes on the meta device, which holds shapes and no numbers. Memory is
an estimate from the shapes, held against measured miniatures of the five classes on a processor
(tests/test_planning.py): weights, gradients and optimiser states agree exactly in float32; what is kept for the
backward pass was estimated at 0.99 to 1.12 times the measured (float32: whole, frozen tower, LoRA, checkpointing),
0.93 to 1.25 times under bfloat16 autocast, 1.09 to 1.54 times in bfloat16 throughout. Not measured: anything on a GPU,
sharding, the tile of the fused head, the layer that checkpointing computes anew, generation, four bits.
A tenth of the GPU is left free for CUDA's own.

Sources: bytes per parameter of mixed precision from Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3;
activations per layer after Korthikanti et al. (arXiv 2205.05198), section 4, written out anew for the blocks of today's
transformers (RMSNorm in float32, gated MLP, attention that keeps no score matrix); four bits with double quantisation
from Dettmers et al., QLoRA (arXiv 2305.14314), section 3.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from iadr1_lib.errors import UserError, one_line
from iadr1_lib.models import FAMILIES, Family, model_config, named
from iadr1_lib.runs import Profile, base_model_dir, project_root

GIB = 2**30
PARTS = ("tower", "projector", "language model")
FREE_SHARE = 0.1  # of the GPU: CUDA's own and fragments; our choice, not measured
PA_SFT_RECORDS, SC_GRPO_PROMPTS = 2900, 3000  # paper, Expert-AD
PROMPT_TEXT, RECORD_TEXT = 64, 512  # tokens of question and chat marks; of an answer with reasoning: our choices
NF4_BYTES = 0.5 + 0.127 / 8  # QLoRA, section 3: four bits, and 0.127 bits of constants after double quantisation
HEAD_ROWS, HEAD_WORDS = 4096, 32768  # the tile of logits that TRL's fused head makes at a time (chunked_logprob.py)

Sharding = Literal["none", "ddp", "zero3", "fsdp2"]
Stage = Literal["pa_sft", "sc_grpo"]


@dataclass(frozen=True)
class PlanSettings:
    """What the plan needs to know of a training.

    micro_batch: sequences of a backward pass of PA-SFT per GPU; grpo_micro_batch: completions likewise in SC-GRPO.
    batch, prompts: records, and questions, of a step over all GPUs. images: per prompt, 1, or 2 with a reference.
    max_pixels: pictures are made smaller than this before the processor sees them. beta: above 0 a reference model is
    needed (LoRA has it for nothing: the adapter is switched off). gpu_gib: memory of one GPU.
    """

    lora: bool = False
    rank: int = 16
    four_bit: bool = False
    gradient_checkpointing: bool = True
    bf16: bool = True
    processes: int = 1
    sharding: Sharding = "none"
    micro_batch: int = 1
    batch: int = 8
    epochs: float = 1.0
    prompts: int = 6
    group: int = 4
    grpo_micro_batch: int = 4
    steps: int | None = None
    images: int = 1
    max_pixels: int = 512 * 512
    max_completion: int = 512
    beta: float = 0.04
    gpu_gib: float = 24.0
    vllm: Literal["off", "server", "colocate"] = "off"


@dataclass(frozen=True)
class Tokens:
    """Tokens of a picture in the language model, for a square and for the worst shape; patches that the tower sees."""

    square: int
    worst: int
    worst_shape: tuple[int, int]  # height, width in pixels
    patches: int  # of the worst shape


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU, at the worst shape of pictures."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    activations: float
    logits: float
    reference: float
    generation: float

    @property
    def total(self) -> float:
        """Peak: what always lies there, and the larger of a backward pass and a generation."""
        fixed = self.weights + self.gradients + self.optimiser + self.gathered + self.reference
        return fixed + max(self.activations + self.logits, self.generation)


@dataclass(frozen=True)
class StagePlan:
    """One stage: trained parameters, longest sequence in tokens, steps, memory, and whether it fits."""

    stage: Stage
    trainable: int
    sequence: int
    steps: int
    memory: Memory
    fits: bool


@dataclass(frozen=True)
class Plan:
    """All that `plan` finds out. `parameters` by part; `difference` tells how a configuration at hand disagrees."""

    model: str
    settings: PlanSettings
    parameters: dict[str, int]
    tokens: Tokens
    stages: tuple[StagePlan, ...]
    advice: tuple[str, ...]
    difference: str | None

    def as_json(self) -> dict[str, Any]:
        """For machines: the fields, and each stage's total."""
        found = asdict(self)
        for said, stage in zip(found["stages"], self.stages, strict=True):
            said["memory"]["total"] = stage.memory.total
        return found


# ---------------------------------------------------------------------------------------------- shapes


def sizes() -> dict[str, Any]:
    """The table of sizes in data/model_sizes.json, by short name."""
    table: dict[str, Any] = json.loads((project_root() / "data" / "model_sizes.json").read_text(encoding="utf-8"))
    return {name: entry for name, entry in table.items() if isinstance(entry, dict)}


def configuration(model: str) -> Any:
    """transformers' configuration of a short name, hub id or folder. UserError for anything else."""
    from transformers import AutoConfig

    known = named(model)
    if known is not None and known.hub_id is not None:
        return _configuration_of_sizes(sizes()[known.name], known.family)
    folder = base_model_dir() if known is not None else Path(model)
    if not folder.is_dir():
        listed = ", ".join([*sizes(), "mini"])
        raise UserError(f"unknown model {model}: choose from {listed}, or name a folder with a config.json")
    model_type = model_config(folder)["model_type"]
    if model_type not in FAMILIES:
        raise UserError(f"a model of type {model_type} cannot be planned: {', '.join(FAMILIES)} can")
    return AutoConfig.from_pretrained(str(folder))


def _configuration_of_sizes(entry: dict[str, Any], family: Family) -> Any:
    from transformers import CONFIG_MAPPING

    text = {key: value for key, value in entry["text"].items() if key != "family"}
    vision = {key: value for key, value in entry["vision"].items() if key != "family"}
    if family.picture_tokens != "area":
        text["model_type"] = entry["text"]["family"]
        vision["model_type"] = f"{entry['vision']['family']}_vision_model"
    tied = text["tie_word_embeddings"]
    return CONFIG_MAPPING[family.model_type](text_config=text, vision_config=vision, tie_word_embeddings=tied)


def _cached_configuration(hub_id: str) -> Any:
    """The real configuration where the hub's cache or `iadr1 fetch` has it, else None. Needs no network."""
    from transformers import AutoConfig

    from iadr1_lib.models import fetched_folder

    try:
        return AutoConfig.from_pretrained(str(fetched_folder(hub_id) or hub_id), local_files_only=True)
    except (OSError, ValueError):
        return None


def _meta_model(config: Any) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def count_parameters(model: Any, family: Family) -> dict[str, int]:
    """Parameters by part; tied embeddings count once."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[family.part_of(name)] += parameter.numel()
    return counts


def lora_layers(model: Any, family: Family) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of each linear layer that LoRA adapts; peft matches the whole name, too."""
    for name, module in model.named_modules():
        if re.fullmatch(family.lora_targets, name):
            yield module.in_features, module.out_features


@dataclass(frozen=True)
class Shapes:
    """What the formulas need of a model."""

    config: Any
    family: Family
    parameters: dict[str, int]
    adapted: tuple[tuple[int, int], ...]
    largest: int  # parameters of the largest block, or of the embeddings: what sharding gathers at a time

    def lora_parameters(self, rank: int) -> int:
        return sum(rank * (inputs + outputs) for inputs, outputs in self.adapted)


def shapes_of(config: Any) -> Shapes:
    """Build the model on the meta device and take its measure."""
    model, family = _meta_model(config), FAMILIES[config.model_type]
    text = model.model.language_model
    layer = sum(p.numel() for p in text.layers[0].parameters())
    embeddings = text.embed_tokens.weight.numel()
    layers = tuple(lora_layers(model, family))
    return Shapes(config, family, count_parameters(model, family), layers, max(layer, embeddings))


@lru_cache(maxsize=8)
def _shapes_by_name(model: str, root: Path) -> Shapes:
    try:
        return shapes_of(configuration(model))
    except UserError:
        raise
    except Exception as error:  # each class of models checks its configuration with errors of its own
        raise UserError(f"the configuration of {model} cannot be used ({one_line(error)}): fetch it again") from error


# ---------------------------------------------------------------------------------------------- tokens


def image_tokens(config: Any, height: int, width: int, images: int = 1) -> tuple[int, int]:
    """(tokens in the language model, patches that the tower sees) of one picture, by the processors' own functions.

    `images` matters to LLaVA-OneVision: with several pictures in a prompt each is seen whole, without tiles.
    """
    vision = config.vision_config
    kind = FAMILIES[config.model_type].picture_tokens
    if kind == "area":
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        patches = int(Qwen2VLImageProcessorPil().get_number_of_image_patches(height, width))
        return patches // vision.spatial_merge_size**2, patches
    side = vision.image_size // vision.patch_size
    classes = 1 if vision.model_type == "clip_vision_model" else 0  # CLIP's class token, which "default" drops
    if kind == "fixed":
        kept = classes if config.vision_feature_select_strategy == "full" else 0
        return side**2 + kept, side**2 + classes
    if config.model_type == "llava_onevision" and images > 1:
        return side**2 + 1, side**2
    return _tiled_tokens(config, height, width, side, classes)


def _tiled_tokens(config: Any, height: int, width: int, side: int, classes: int) -> tuple[int, int]:
    from transformers.image_processing_utils import select_best_resolution
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    tile = config.vision_config.image_size
    one_vision = config.model_type == "llava_onevision"
    processor = object.__new__(LlavaOnevisionProcessor if one_vision else LlavaNextProcessor)  # no tokenizer needed
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints)
    processor.num_image_tokens, processor.num_additional_image_tokens = side**2, classes
    processor.patch_size = config.vision_config.patch_size
    processor.vision_aspect_ratio = getattr(config, "vision_aspect_ratio", None)
    tokens = processor._get_number_of_features(height, width, tile, tile)
    tokens -= config.vision_feature_select_strategy == "default"
    rows, columns = (length // tile for length in select_best_resolution([height, width], config.image_grid_pinpoints))
    return int(tokens), (rows * columns + 1) * (side**2 + classes)


def tokens_of(config: Any, max_pixels: int, images: int = 1) -> Tokens:
    """Tokens of a square picture of `max_pixels` pixels, and of the worst shape up to 1:8 with as many."""
    side = math.isqrt(max_pixels)
    square, _ = image_tokens(config, side, side, images)
    found = []
    for eighths in range(8, 65):
        short = max(1, math.isqrt(max_pixels * 8 // eighths))
        long = max_pixels // short
        for shape in ((short, long), (long, short)):
            found.append((*image_tokens(config, *shape, images), shape))
    worst, _, shape = max(found, key=lambda one: (one[0], one[1]))
    return Tokens(square, worst, shape, max(patches for _, patches, _ in found))


# ---------------------------------------------------------------------------------------------- memory


def bytes_per_parameter(settings: PlanSettings) -> tuple[float, float, float]:
    """(weights, gradient, optimiser) bytes of a trained parameter, before sharding.

    float32: 4, 4, and 8 for AdamW's two moments. bfloat16: DeepSpeed keeps a bfloat16 weight and gradient, and a
    float32 master copy with the moments (ZeRO, section 3: 2 + 2 + 12). Autocast keeps float32 weights and gradients,
    and a bfloat16 copy of each weight during a pass; FSDP2 makes that copy block by block (`gathered`). DDP holds
    each gradient a second time, in its buckets.
    """
    if settings.sharding == "zero3" and settings.bf16:
        return 2, 2, 12
    copy = 2 if settings.bf16 and settings.sharding != "fsdp2" else 0
    return 4 + copy, 8 if settings.sharding == "ddp" else 4, 8


def widths(settings: PlanSettings) -> tuple[int, int]:
    """(bytes of a number that goes into a matrix product, bytes of one between the layers).

    Under autocast the sums between the layers stay in float32 (seen in the miniatures); DeepSpeed's weights are
    bfloat16 themselves, and so is everything between them.
    """
    width = 2 if settings.bf16 else 4
    return width, width if settings.sharding == "zero3" else 4


def text_layer_bytes(text: Any, width: int, stream: int, trained: bool = True) -> float:
    """Bytes that a layer of the language model keeps for the backward pass, per token; widths as in `widths`.

    Two RMSNorms (input in float32, normalised, scaled: the latter is the next linear layer's input); attention (query,
    key and value repeated to the heads of the query, output twice, since it is laid out anew, one float32 per head);
    gated MLP (gate, its SiLU, up, product). The normalised input is not kept where the norm's weight is not trained.
    """
    hidden = text.hidden_size
    heads = text.num_attention_heads
    query = heads * (getattr(text, "head_dim", None) or hidden // heads)
    norms = 2 * (4 + width + (stream if trained else 0)) * hidden
    return norms + 5 * width * query + 4 * heads + 4 * width * text.intermediate_size


def tower_layer_bytes(vision: Any, width: int, stream: int) -> float:
    """As `text_layer_bytes` for a layer of the tower, per patch.

    CLIP, SigLIP and Qwen2-VL: two LayerNorms (input, output), attention, MLP of two layers (QuickGELU keeps its input,
    a sigmoid and the product, GELU input and product). Qwen2.5-VL: RMSNorms and a gated MLP.
    """
    hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or hidden * vision.mlp_ratio
    attention = 5 * width * hidden + 4 * (getattr(vision, "num_heads", None) or vision.num_attention_heads)
    if vision.model_type.startswith("qwen2_5"):
        return 2 * (4 + width + stream) * hidden + attention + 4 * width * inner
    kept = 3 if "quick" in vision.hidden_act else 2
    return 2 * (width + stream) * hidden + attention + kept * width * inner


@dataclass(frozen=True)
class Stack:
    """Like layers one after another: how many, bytes that each keeps per token, hidden size, tokens."""

    layers: int
    bytes_per_token: float
    hidden: int
    tokens: int


def stacks_of(config: Any, settings: PlanSettings, tokens: int, patches: int, tower_trained: bool) -> list[Stack]:
    """The stacks of layers that keep something for the backward pass: a tower that gets no gradient does not."""
    width, stream = widths(settings)
    text, vision = config.text_config, config.vision_config
    each = text_layer_bytes(text, width, stream, not settings.lora)
    stacks = [Stack(text.num_hidden_layers, each, text.hidden_size, tokens)]
    if tower_trained:
        depth = getattr(vision, "depth", None) or vision.num_hidden_layers
        hidden = getattr(vision, "embed_dim", None) or vision.hidden_size
        stacks.append(Stack(depth, tower_layer_bytes(vision, width, stream), hidden, patches))
    return stacks


def kept_bytes(stacks: list[Stack], settings: PlanSettings) -> float:
    """Bytes that a forward pass keeps, without the logits; with checkpointing each layer keeps its input only."""
    if settings.gradient_checkpointing:
        return sum(stack.layers * widths(settings)[1] * stack.hidden * stack.tokens for stack in stacks)
    return sum(stack.layers * stack.bytes_per_token * stack.tokens for stack in stacks)


def ends_bytes(config: Any, settings: PlanSettings, tokens: int, patches: int, tower_trained: bool) -> float:
    """Bytes kept outside of the layers, which checkpointing does not spare.

    The last norm's input and normalised input, and the head's input; with a trained tower its pixels in float32, one
    more hidden state, and the projector's input, inner value and activation.
    """
    width, stream = widths(settings)
    vision, hidden = config.vision_config, config.text_config.hidden_size
    kept = (4 + stream + width) * hidden * tokens
    if tower_trained:
        pixels = 3 * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1)
        inner = getattr(vision, "embed_dim", None) or vision.hidden_size
        kept += patches * (4 * pixels + (stream + width) * inner + 2 * width * hidden)
    return kept


def recomputed_bytes(stacks: list[Stack], settings: PlanSettings) -> float:
    """Bytes of the one layer at a time that checkpointing computes anew."""
    return max(s.bytes_per_token * s.tokens for s in stacks) if settings.gradient_checkpointing else 0


def lora_activation_bytes(shapes: Shapes, settings: PlanSettings, tokens: int) -> float:
    """What the adapters keep: their inner values, `rank` per adapted layer and token."""
    if not settings.lora or settings.gradient_checkpointing:
        return 0
    return len(shapes.adapted) * settings.rank * tokens * (2 if settings.bf16 else 4)


def head_bytes(text: Any, settings: PlanSettings, scored: int) -> float:
    """The loss over `scored` tokens of answers: TRL's fused head, in PA-SFT and SC-GRPO alike, makes no whole logits.

    It holds one tile of them, and in float32 the gradients of the hidden states and of the head's weight (which LoRA
    does not train). Source: trl/kernels/chunked_logprob.py.
    """
    tile = min(scored, HEAD_ROWS) * min(text.vocab_size, HEAD_WORDS) * (2 if settings.bf16 else 4)
    weight = 0 if settings.lora else text.vocab_size * text.hidden_size
    return tile + 4 * (scored * text.hidden_size + weight)


def cache_bytes(text: Any, tokens: int, bf16: bool) -> float:
    """Key and value of each layer for `tokens` tokens."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * head * tokens * (2 if bf16 else 4)


def _trained(shapes: Shapes, settings: PlanSettings, stage: Stage) -> tuple[int, int]:
    """(trained, frozen) parameters of the base model and its adapters."""
    whole = sum(shapes.parameters.values())
    if settings.lora:
        return shapes.lora_parameters(settings.rank), whole
    frozen = sum(shapes.parameters[part] for part in shapes.family.frozen) if stage == "pa_sft" else 0
    return whole - frozen, frozen


def frozen_bytes(shapes: Shapes, settings: PlanSettings, frozen: int) -> float:
    """Bytes of the parameters that are not trained; four bits hold for the layers that LoRA adapts."""
    width = 2 if settings.bf16 else 4
    if not (settings.lora and settings.four_bit):
        return frozen * width
    packed = sum(inputs * outputs for inputs, outputs in shapes.adapted)
    return packed * NF4_BYTES + (frozen - packed) * width


def memory_of(shapes: Shapes, settings: PlanSettings, stage: Stage, tokens: Tokens) -> Memory:
    """Estimate the memory of one GPU; see the functions above for the formulas."""
    trained, frozen = _trained(shapes, settings, stage)
    weight, gradient, optimiser = bytes_per_parameter(settings)
    sharded = settings.sharding in ("zero3", "fsdp2")
    share = 1 / settings.processes if sharded else 1.0
    width = 2 if settings.bf16 else 4
    whole = sum(shapes.parameters.values())
    rows = settings.micro_batch if stage == "pa_sft" else settings.grpo_micro_batch
    text = shapes.config.text_config
    sequence = sequence_of(settings, stage, tokens)
    tower_trained = not settings.lora and not (stage == "pa_sft" and "tower" in shapes.family.frozen)
    patches = rows * settings.images * tokens.patches
    stacks = stacks_of(shapes.config, settings, rows * sequence, patches, tower_trained)
    activations = kept_bytes(stacks, settings) + recomputed_bytes(stacks, settings)
    activations += ends_bytes(shapes.config, settings, rows * sequence, patches, tower_trained)
    activations += lora_activation_bytes(shapes, settings, rows * sequence)
    logits = head_bytes(text, settings, rows * (RECORD_TEXT if stage == "pa_sft" else settings.max_completion))
    reference = generation = 0.0
    if stage == "sc_grpo":
        if settings.beta > 0 and not settings.lora:
            reference = whole * width * share
        if settings.vllm != "server":
            answers = math.ceil(settings.prompts * settings.group / settings.processes)
            generation = cache_bytes(text, answers * sequence, settings.bf16) + 4 * answers * text.vocab_size
        if settings.vllm == "off" and sharded:
            generation += whole * width  # TRL gathers the whole model to generate
        if settings.vllm == "colocate":
            reference += whole * width  # vLLM's own copy of the weights
    found = (
        trained * weight * share + frozen_bytes(shapes, settings, frozen) * share,
        trained * gradient * share,
        trained * optimiser * share,
        2 * shapes.largest * width if sharded else 0.0,  # the block at work and the one that is fetched meanwhile
        activations,
        logits,
        reference,
        generation,
    )
    return Memory(*(value / GIB for value in found))


def sequence_of(settings: PlanSettings, stage: Stage, tokens: Tokens) -> int:
    """Longest sequence in tokens: question, pictures at the worst shape, answer."""
    answer = RECORD_TEXT if stage == "pa_sft" else settings.max_completion
    return PROMPT_TEXT + settings.images * tokens.worst + answer


# ---------------------------------------------------------------------------------------------- the plan


def steps_of(settings: PlanSettings, stage: Stage) -> int:
    """Steps of a stage: 363 for PA-SFT and 500 for SC-GRPO with the released batches (paper's sizes of Expert-AD)."""
    if stage == "pa_sft":
        return math.ceil(math.ceil(PA_SFT_RECORDS / settings.batch) * settings.epochs)
    return settings.steps or math.ceil(SC_GRPO_PROMPTS / settings.prompts)


def _check(settings: PlanSettings) -> None:
    numbers = ("rank", "processes", "micro_batch", "batch", "prompts", "group", "grpo_micro_batch", "max_completion")
    for name in numbers:
        if getattr(settings, name) < 1:
            raise UserError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.images not in (1, 2):
        raise UserError(f"{settings.images} pictures per prompt: choose 1, or 2 with a reference")
    if settings.max_pixels < 28 * 28:
        raise UserError(f"max_pixels {settings.max_pixels} is less than one token's 28 x 28: set at least 784")
    if settings.four_bit and not settings.lora:
        raise UserError("four_bit needs lora: weights of four bits cannot be trained themselves")
    if settings.four_bit and settings.sharding == "zero3":
        raise UserError("four_bit does not go with ZeRO-3 here: choose ddp or fsdp2")


def plan(model: str, settings: PlanSettings) -> Plan:
    """Say what training `model` needs, for both stages.

    Args:
        model: short name, hub id, or a folder with config.json.

    Raises:
        UserError: the model is unknown, or settings contradict each other.
    """
    _check(settings)
    shapes = _shapes_by_name(model, project_root())
    tokens = tokens_of(shapes.config, settings.max_pixels, settings.images)
    stages = tuple(_stage_plan(shapes, settings, stage, tokens) for stage in ("pa_sft", "sc_grpo"))
    advice = () if all(stage.fits for stage in stages) else tuple(_advice(shapes, settings))
    return Plan(model, settings, shapes.parameters, tokens, stages, advice, _difference(model, shapes))


def _stage_plan(shapes: Shapes, settings: PlanSettings, stage: Any, tokens: Tokens) -> StagePlan:
    memory = memory_of(shapes, settings, stage, tokens)
    fits = memory.total <= settings.gpu_gib * (1 - FREE_SHARE)
    trained, _ = _trained(shapes, settings, stage)
    return StagePlan(stage, trained, sequence_of(settings, stage, tokens), steps_of(settings, stage), memory, fits)


def _difference(model: str, shapes: Shapes) -> str | None:
    known = named(model)
    real = _cached_configuration(known.hub_id) if known is not None and known.hub_id else None
    if real is None:
        return None
    counted = shapes_of(real).parameters
    told = [f"{part} {counted[part] - n:+,}" for part, n in shapes.parameters.items() if counted[part] != n]
    return f"the configuration on the disk has other parameters: {', '.join(told)}" if told else None


def _lowered(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    """What may be lowered, what costs least first; each step keeps those before it."""
    now, shorter, passes = settings, settings.max_completion // 2, "with as many more gradient_accumulation_steps"
    steps: tuple[tuple[str, dict[str, Any]], ...] = (
        ("gradient_checkpointing: true", {"gradient_checkpointing": True}),
        (f"sc_grpo.per_device_train_batch_size: 1, {passes}", {"grpo_micro_batch": 1}),
        (f"pa_sft.per_device_train_batch_size: 1, {passes}", {"micro_batch": 1}),
        ("dtype: bfloat16", {"bf16": True}),
        ("lora: true", {"lora": True}),
        ("four_bit: true", {"lora": True, "four_bit": True}),
        (f"max_pixels: {settings.max_pixels // 2}", {"max_pixels": max(784, settings.max_pixels // 2)}),
        (f"max_completion_length: {shorter}", {"max_completion": max(1, shorter)}),
    )
    if settings.processes > 1 and settings.sharding in ("none", "ddp"):
        yield "config: fsdp2", (now := replace(now, sharding="fsdp2"))
    for told, change in steps:
        if change.get("four_bit") and now.sharding == "zero3":
            continue
        lowered = replace(now, **change)
        if lowered != now:
            yield told, (now := lowered)


def _peak(shapes: Shapes, settings: PlanSettings) -> float:
    """GiB of the stage that needs more."""
    tokens = tokens_of(shapes.config, settings.max_pixels, settings.images)
    stages: tuple[Stage, ...] = ("pa_sft", "sc_grpo")
    return max(memory_of(shapes, settings, stage, tokens).total for stage in stages)


def _advice(shapes: Shapes, settings: PlanSettings) -> Iterator[str]:
    """Lower in order until both stages fit, passing over what brings nothing; say so if they never do."""
    needed = _peak(shapes, settings)
    for told, lowered in _lowered(settings):
        before, needed = needed, _peak(shapes, lowered)
        if needed < before:
            yield f"{told} (then {needed:.1f} GiB)"
        if needed <= settings.gpu_gib * (1 - FREE_SHARE):
            return
    yield f"and still it will not fit {settings.gpu_gib:g} GiB: choose a smaller model or a larger GPU"


# ---------------------------------------------------------------------------------------------- profiles

_SHARDING: dict[str, Sharding] = {"single": "none", "ddp": "ddp", "zero3": "zero3", "fsdp2": "fsdp2"}


def _step(section: dict[str, Any], processes: int) -> int | None:
    """Samples of an optimiser step over all processes; None where the section does not say."""
    if "per_device_train_batch_size" not in section:
        return None
    step: int = section["per_device_train_batch_size"] * section.get("gradient_accumulation_steps", 1) * processes
    return step


def settings_of(profile: Profile) -> PlanSettings:
    """The plan's settings from a profile's sections `model`, `engine`, `pa_sft` and `sc_grpo`.

    Keys that are not there keep the plan's default. UserError for a profile without those sections, and for a word
    that is none of the choices.
    """
    model, engine = profile.section("model"), profile.section("engine")
    sft, grpo = profile.section("pa_sft"), profile.section("sc_grpo")
    config = engine.get("config", "single")
    if config not in _SHARDING:
        raise UserError(f"profile {profile.name}: engine.config is {config}; choose from {', '.join(_SHARDING)}")
    dtype = model.get("dtype", "bfloat16")
    processes = engine.get("processes", 1)
    completions = _step(grpo, processes)
    said = {
        "lora": bool(model.get("lora_rank")),
        "rank": model.get("lora_rank") or None,
        "four_bit": model.get("four_bit"),
        "gradient_checkpointing": model.get("gradient_checkpointing"),
        "max_pixels": max(sft.get("max_pixels") or 0, grpo.get("max_pixels") or 0) or None,
        "bf16": dtype in ("bfloat16", "bf16"),
        "processes": engine.get("processes"),
        "sharding": _SHARDING[config],
        "gpu_gib": engine.get("gpu_gib"),
        "vllm": engine.get("vllm"),
        "batch": _step(sft, processes),
        "micro_batch": sft.get("per_device_train_batch_size"),
        "epochs": sft.get("num_train_epochs"),
        "prompts": completions // grpo.get("num_generations", 1) if completions else None,
        "group": grpo.get("num_generations"),
        "grpo_micro_batch": grpo.get("per_device_train_batch_size"),
        "steps": grpo["max_steps"] if grpo.get("max_steps", -1) > 0 else None,
        "max_completion": grpo.get("max_completion_length"),
        "beta": grpo.get("beta"),
    }
    chosen: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    if chosen.get("vllm", "off") not in ("off", "server", "colocate"):
        raise UserError(f"profile {profile.name}: engine.vllm is {chosen['vllm']}; choose off, server or colocate")
    return PlanSettings(**chosen)
