"""What a training needs, before anything is loaded: parameters, tokens, steps, memory, and what to lower.

Parameters are counted with transformers' own classes on the meta device, which holds shapes and no numbers. Weights,
gradients and optimizer states follow from bytes per parameter, exactly in float32. Activations are constants per token
and width of a layer: 0.83 to 1.19 times the measured ones of miniatures of the five classes (tests/test_planning.py).

On one H200 the peaks of `tests/gpu_check.py` were 0.95 and 1.26 times this plan (LLaVA-OneVision-0.5B, all weights,
PA-SFT and SC-GRPO), 1.02 and 1.04 times (Qwen2.5-VL-3B, LoRA). Not measured: sharding, four bits, vLLM.

Sources: Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3, for bytes per parameter in mixed precision; Korthikanti
et al. (arXiv 2205.05198), section 4, for activations per layer; Dettmers et al., QLoRA (arXiv 2305.14314), section 3,
for four bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from iadr1_lib.errors import UserError
from iadr1_lib.models import FAMILIES, ModelSettings, Tokens, meta_model, parameter_count, tokens_of
from iadr1_lib.records import Stage
from iadr1_lib.runs import Profile
from iadr1_lib.training.launch import EngineSettings
from iadr1_lib.training.settings import PaSftSettings, ScGrpoSettings

GIB = 2**30
FREE_SHARE = 0.1  # of the GPU: CUDA's own and fragments; our choice, not measured
PA_SFT_RECORDS, SC_GRPO_PROMPTS = 2900, 3000  # paper, Expert-AD
PROMPT_TEXT, RECORD_TEXT = 64, 512  # tokens of question and chat marks; of an answer with reasoning: our choices
NF4_BYTES = 0.5 + 0.127 / 8  # QLoRA: four bits, and 0.127 bits of constants after double quantization
HEAD_ROWS, HEAD_WORDS = 4096, 32768  # the tile of logits that TRL's fused head makes at a time (chunked_logprob.py)

# Bytes that a layer keeps for the backward pass, per token: times hidden size, times inner size of the MLP. From the
# tensors that its blocks save (two norms, attention without a score matrix, MLP), checked on the miniatures. "gated":
# RMSNorm and a gated MLP (all five language models, Qwen2.5-VL's tower); "plain": LayerNorm and two linear layers.
KEPT = {
    ("gated", "float32"): (44, 16),
    ("gated", "bfloat16"): (30, 8),
    ("plain", "float32"): (36, 10),
    ("plain", "bfloat16"): (22, 5),
}
ENDS = 3  # last norm and head, or projector: as many times the input of a layer
RECOMPUTED = 2  # with checkpointing one layer's activations lie there at a time, and their gradients

Sharding = Literal["none", "ddp", "zero3", "fsdp2"]
_SHARDING: dict[str, Sharding] = {"single": "none", "ddp": "ddp", "zero3": "zero3", "fsdp2": "fsdp2"}


@dataclass(frozen=True)
class PlanSettings:
    """What the plan needs to know of a training.

    micro_batch: sequences of a backward pass of PA-SFT per GPU; grpo_micro_batch: completions likewise in SC-GRPO.
    batch, prompts: records, and questions, of a step over all GPUs. images: per prompt, 1, or 2 with a reference.
    max_pixels: images are made smaller than this before the processor sees them. beta: above 0 a reference model is
    needed (LoRA switches its adapter off instead). gpu_gib: memory of one GPU.
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

    @property
    def is_sharded(self) -> bool:
        """Whether weights, gradients and optimizer states are divided among the GPUs."""
        return self.sharding in ("zero3", "fsdp2")


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU, at the worst shape of images.

    `total` is the peak: what always lies there, and the larger of a backward pass and a generation.
    """

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    activations: float
    logits: float
    reference: float
    generation: float
    total: float


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
    """The result of `plan`. `parameters`: by part of the model."""

    model: str
    settings: PlanSettings
    parameters: dict[str, int]
    tokens: Tokens
    stages: tuple[StagePlan, ...]
    advice: tuple[str, ...]


def plan(model: str, settings: PlanSettings) -> Plan:
    """Say what training `model` (short name, hub id, or a folder with config.json) needs, for both stages.

    Raises:
        UserError: the model is unknown, or settings contradict each other.
    """
    for name in ("rank", "processes", "micro_batch", "batch", "prompts", "group", "grpo_micro_batch", "max_completion"):
        if getattr(settings, name) < 1:
            raise UserError(f"{name} is {getattr(settings, name)}: it must be at least 1")
    if settings.max_pixels < 28 * 28:
        raise UserError(f"max_pixels {settings.max_pixels} is less than one token's 28 x 28: set at least 784")
    if settings.four_bit and not settings.lora:
        raise UserError("four_bit needs lora: weights of four bits cannot be trained themselves")
    if settings.four_bit and settings.sharding == "zero3":
        raise UserError("four_bit does not go with ZeRO-3 here: choose ddp or fsdp2")
    shapes = meta_model(model)
    tokens = tokens_of(shapes.config, settings.max_pixels, settings.images)
    stages = _stages(shapes, settings, tokens)
    return Plan(model, settings, parameter_count(shapes), tokens, stages, tuple(_advice(shapes, settings, stages)))


def _stages(model: Any, settings: PlanSettings, tokens: Tokens) -> tuple[StagePlan, ...]:
    steps: dict[Stage, int] = {
        "pa_sft": math.ceil(math.ceil(PA_SFT_RECORDS / settings.batch) * settings.epochs),
        "sc_grpo": settings.steps or math.ceil(SC_GRPO_PROMPTS / settings.prompts),
    }
    plans = []
    for stage, count in steps.items():
        memory, trained = memory_of(model, settings, stage, tokens), trained_and_frozen(model, settings, stage)[0]
        fits = memory.total <= settings.gpu_gib * (1 - FREE_SHARE)
        plans.append(StagePlan(stage, trained, _sequence(settings, stage, tokens), count, memory, fits))
    return tuple(plans)


def _sequence(settings: PlanSettings, stage: Stage, tokens: Tokens) -> int:
    """Longest sequence in tokens: question, images at the worst shape, answer."""
    answer = RECORD_TEXT if stage == "pa_sft" else settings.max_completion
    return PROMPT_TEXT + settings.images * tokens.worst + answer


def _advice(model: Any, settings: PlanSettings, stages: tuple[StagePlan, ...]) -> Iterator[str]:
    """Lower in order, what costs least first, until both stages fit, passing over what brings nothing.

    Each step keeps those before it.
    """
    shorter, passes = settings.max_completion // 2, "with as many more gradient_accumulation_steps"
    steps: list[tuple[str, dict[str, Any]]] = [
        ("gradient_checkpointing: true", {"gradient_checkpointing": True}),
        (f"sc_grpo.per_device_train_batch_size: 1, {passes}", {"grpo_micro_batch": 1}),
        (f"pa_sft.per_device_train_batch_size: 1, {passes}", {"micro_batch": 1}),
        ("dtype: bfloat16", {"bf16": True}),
        ("lora: true", {"lora": True}),
        ("four_bit: true", {"lora": True, "four_bit": True}),
        (f"max_pixels: {settings.max_pixels // 2}", {"max_pixels": max(784, settings.max_pixels // 2)}),
        (f"max_completion_length: {shorter}", {"max_completion": max(1, shorter)}),
    ]
    if settings.processes > 1 and settings.sharding in ("none", "ddp"):
        steps.insert(0, ("config: fsdp2", {"sharding": "fsdp2"}))
    for step, change in steps:
        if all(stage.fits for stage in stages):
            return
        if change.get("four_bit") and settings.sharding == "zero3":
            continue
        before = max(stage.memory.total for stage in stages)
        settings = replace(settings, **change)
        stages = _stages(model, settings, tokens_of(model.config, settings.max_pixels, settings.images))
        needed = max(stage.memory.total for stage in stages)
        if needed < before:
            yield f"{step} (then {needed:.1f} GiB)"
    if not all(stage.fits for stage in stages):
        yield f"and still it will not fit {settings.gpu_gib:g} GiB: choose a smaller model or a larger GPU"


# ---------------------------------------------------------------------------------------------- memory


def trained_and_frozen(model: Any, settings: PlanSettings, stage: Stage) -> tuple[int, int]:
    """Parameters of the base model and its adapters that are trained, and that are not."""
    parts = parameter_count(model)
    if settings.lora:
        return sum(settings.rank * (inputs + outputs) for inputs, outputs in _adapted(model)), sum(parts.values())
    frozen = sum(parts[part] for part in FAMILIES[model.config.model_type].frozen) if stage == "pa_sft" else 0
    return sum(parts.values()) - frozen, frozen


def _adapted(model: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of each linear layer that LoRA adapts; peft matches the whole name, too."""
    targets = FAMILIES[model.config.model_type].lora_targets
    layers = [module for name, module in model.named_modules() if re.fullmatch(targets, name)]
    return [(layer.in_features, layer.out_features) for layer in layers]


def memory_of(model: Any, settings: PlanSettings, stage: Stage, tokens: Tokens) -> Memory:
    """Estimate the memory of one GPU. `model`: on the meta device."""
    text, family, width = model.config.text_config, FAMILIES[model.config.model_type], 2 if settings.bf16 else 4
    share = 1 / settings.processes if settings.is_sharded else 1.0
    whole = sum(parameter_count(model).values()) * width
    trained, frozen = trained_and_frozen(model, settings, stage)
    weight, gradient, optimizer = _bytes_per_parameter(settings)
    packed = sum(inputs * outputs for inputs, outputs in _adapted(model)) if settings.four_bit else 0
    block = sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    largest = max(block, text.vocab_size * text.hidden_size)

    rows, answer = settings.grpo_micro_batch, settings.max_completion
    if stage == "pa_sft":
        rows, answer = settings.micro_batch, RECORD_TEXT
    sequence = _sequence(settings, stage, tokens)
    tower_trained = not settings.lora and not (stage == "pa_sft" and "tower" in family.frozen)
    patches = rows * settings.images * tokens.patches if tower_trained else 0
    reference = generation = 0.0
    if stage == "sc_grpo":
        reference = whole * share if settings.beta > 0 and not settings.lora else 0.0
        reference += whole if settings.vllm == "colocate" else 0.0  # vLLM's own copy of the weights
        generation = _generation_bytes(text, settings, sequence, whole)
    fixed = (
        (trained * weight + packed * NF4_BYTES + (frozen - packed) * width) * share,
        trained * gradient * share,
        trained * optimizer * share,
        2 * largest * width if settings.is_sharded else 0.0,  # the block at work, and the next one
    )
    activations = sum(activation_bytes(model.config, settings, rows * sequence, patches))
    backward = (activations, _head_bytes(text, settings, rows * answer))
    total = sum(fixed) + reference + max(sum(backward), generation)
    return Memory(*(value / GIB for value in (*fixed, *backward, reference, generation, total)))


def _bytes_per_parameter(settings: PlanSettings) -> tuple[int, int, int]:
    """(weight, gradient, optimizer) bytes of a trained parameter, before sharding.

    float32: 4, 4, and 8 for AdamW's two moments. bfloat16: DeepSpeed keeps a bfloat16 weight and gradient, and a
    float32 master copy with the moments (ZeRO, section 3: 2 + 2 + 12). Autocast keeps float32 weights and gradients,
    and a bfloat16 copy of each weight during a pass; FSDP2 makes that copy block by block (`gathered`). DDP holds
    each gradient a second time, in its buckets.
    """
    if settings.sharding == "zero3" and settings.bf16:
        return 2, 2, 12
    copy = 2 if settings.bf16 and settings.sharding != "fsdp2" else 0
    return 4 + copy, 8 if settings.sharding == "ddp" else 4, 8


def activation_bytes(config: Any, settings: PlanSettings, tokens: int, patches: int) -> tuple[float, float]:
    """(bytes kept for the backward pass, bytes of the layer that checkpointing computes anew).

    Args:
        tokens: of the language model, over all rows of a backward pass.
        patches: of the tower, likewise; 0 where it gets no gradient and keeps nothing.
    """
    precision = "bfloat16" if settings.bf16 else "float32"
    stream = 2 if settings.sharding == "zero3" and settings.bf16 else 4  # autocast keeps sums between layers in float32
    text, vision = config.text_config, config.vision_config
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
    depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    kind = "gated" if vision.model_type.startswith("qwen2_5") else "plain"
    kept, layer = 0.0, 0.0
    for shape, layers, hidden, mlp, count in (
        ("gated", text.num_hidden_layers, text.hidden_size, text.intermediate_size, tokens),
        (kind, depth, width, inner, patches),
    ):
        by_width, by_inner = KEPT[shape, precision]
        whole, each = (by_width * hidden + by_inner * mlp) * count, stream * hidden * count
        kept += layers * (each if settings.gradient_checkpointing else whole) + ENDS * each
        layer = max(layer, whole)
    return kept, RECOMPUTED * layer if settings.gradient_checkpointing else 0.0


def _head_bytes(text: Any, settings: PlanSettings, scored: int) -> float:
    """Bytes of the loss over `scored` tokens of answers.

    TRL's fused head (trl/kernels/chunked_logprob.py) makes no whole logits: it holds one tile of them and, in float32,
    the gradients of the hidden states and of the head's weight, which LoRA does not train.
    """
    tile = min(scored, HEAD_ROWS) * min(text.vocab_size, HEAD_WORDS) * (2 if settings.bf16 else 4)
    weight = 0 if settings.lora else text.vocab_size * text.hidden_size
    return tile + 4 * (scored * text.hidden_size + weight)


def _generation_bytes(text: Any, settings: PlanSettings, sequence: int, whole: int) -> float:
    """Bytes of keys, values and logits while transformers answers; `whole`: of the weights, which TRL gathers."""
    if settings.vllm == "server":
        return 0
    answers = math.ceil(settings.prompts * settings.group / settings.processes)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * (2 if settings.bf16 else 4)
    gathered = whole if settings.vllm == "off" and settings.is_sharded else 0
    return answers * (sequence * cache + 4 * text.vocab_size) + gathered


# ---------------------------------------------------------------------------------------------- profiles


def settings_of(profile: Profile) -> PlanSettings:
    """The plan's settings from a profile's sections `model`, `engine`, `pa_sft` and `sc_grpo`.

    Raises:
        UserError: a section is missing or wrong, or the engine is none of the plan's.
    """
    model, engine = profile.settings("model", ModelSettings), profile.settings("engine", EngineSettings)
    sft, grpo = profile.settings("pa_sft", PaSftSettings), profile.settings("sc_grpo", ScGrpoSettings)
    if engine.config not in _SHARDING:
        raise UserError(f"profile {profile.name}: engine.config is {engine.config}; choose from {', '.join(_SHARDING)}")
    return PlanSettings(
        lora=model.lora_rank > 0,
        rank=model.lora_rank or PlanSettings.rank,
        four_bit=model.four_bit,
        gradient_checkpointing=model.gradient_checkpointing,
        bf16=model.dtype == "bfloat16",
        processes=engine.processes,
        sharding=_SHARDING[engine.config],
        micro_batch=sft.per_device_train_batch_size,
        batch=sft.step_size(engine.processes),
        epochs=sft.num_train_epochs,
        prompts=grpo.step_size(engine.processes) // grpo.num_generations,
        group=grpo.num_generations,
        grpo_micro_batch=grpo.per_device_train_batch_size,
        steps=grpo.max_steps if grpo.max_steps > 0 else None,
        max_pixels=max(sft.max_pixels or 0, grpo.max_pixels or 0) or PlanSettings.max_pixels,
        max_completion=grpo.max_completion_length,
        beta=grpo.beta,
        gpu_gib=engine.gpu_gib or PlanSettings.gpu_gib,
        vllm=engine.vllm,
    )
