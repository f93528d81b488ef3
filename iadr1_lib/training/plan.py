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
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from iadr1_lib.data import recorded_folder
from iadr1_lib.errors import UserError
from iadr1_lib.models import FAMILIES, Tokens, meta_model, meta_model_named, named, parameter_count, tokens_of
from iadr1_lib.runs import Profile

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
Stage = Literal["pa_sft", "sc_grpo"]
Vllm = Literal["off", "server", "colocate"]


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
    vllm: Vllm = "off"

    @property
    def is_sharded(self) -> bool:
        """Whether weights, gradients and optimizer states are divided among the GPUs."""
        return self.sharding in ("zero3", "fsdp2")


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU, at the worst shape of images."""

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
    """The result of `plan`. `parameters` by part; `difference`: how a configuration on the disk disagrees."""

    model: str
    settings: PlanSettings
    parameters: dict[str, int]
    tokens: Tokens
    stages: tuple[StagePlan, ...]
    advice: tuple[str, ...]
    difference: str | None

    def as_json(self) -> dict[str, Any]:
        """For machines: the fields, and each stage's total."""
        fields = asdict(self)
        for entry, stage in zip(fields["stages"], self.stages, strict=True):
            entry["memory"]["total"] = stage.memory.total
        return fields


def sequence_of(settings: PlanSettings, stage: Stage, tokens: Tokens) -> int:
    """Longest sequence in tokens: question, images at the worst shape, answer."""
    answer = RECORD_TEXT if stage == "pa_sft" else settings.max_completion
    return PROMPT_TEXT + settings.images * tokens.worst + answer


# ---------------------------------------------------------------------------------------------- memory


def bytes_per_parameter(settings: PlanSettings) -> tuple[int, int, int]:
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
    tower_width = getattr(vision, "embed_dim", None) or vision.hidden_size
    tower_inner = getattr(vision, "intermediate_size", None) or tower_width * vision.mlp_ratio
    tower_depth = getattr(vision, "depth", None) or vision.num_hidden_layers
    kind = "gated" if vision.model_type.startswith("qwen2_5") else "plain"
    kept, layer = 0.0, 0.0
    for shape, depth, width, inner, count in (
        ("gated", text.num_hidden_layers, text.hidden_size, text.intermediate_size, tokens),
        (kind, tower_depth, tower_width, tower_inner, patches),
    ):
        by_width, by_inner = KEPT[shape, precision]
        whole = (by_width * width + by_inner * inner) * count
        each = stream * width * count
        kept += depth * (each if settings.gradient_checkpointing else whole) + ENDS * each
        layer = max(layer, whole)
    return kept, RECOMPUTED * layer if settings.gradient_checkpointing else 0.0


def _adapted(model: Any) -> list[tuple[int, int]]:
    """(inputs, outputs) of each linear layer that LoRA adapts; peft matches the whole name, too."""
    targets = FAMILIES[model.config.model_type].lora_targets
    layers = [module for name, module in model.named_modules() if re.fullmatch(targets, name)]
    return [(layer.in_features, layer.out_features) for layer in layers]


def trained_and_frozen(model: Any, settings: PlanSettings, stage: Stage) -> tuple[int, int]:
    """Parameters of the base model and its adapters that are trained, and that are not."""
    parts = parameter_count(model)
    if settings.lora:
        return sum(settings.rank * (inputs + outputs) for inputs, outputs in _adapted(model)), sum(parts.values())
    frozen = sum(parts[part] for part in FAMILIES[model.config.model_type].frozen) if stage == "pa_sft" else 0
    return sum(parts.values()) - frozen, frozen


def head_bytes(text: Any, settings: PlanSettings, scored: int) -> float:
    """Bytes of the loss over `scored` tokens of answers.

    TRL's fused head (trl/kernels/chunked_logprob.py) makes no whole logits: it holds one tile of them and, in float32,
    the gradients of the hidden states and of the head's weight, which LoRA does not train.
    """
    tile = min(scored, HEAD_ROWS) * min(text.vocab_size, HEAD_WORDS) * (2 if settings.bf16 else 4)
    weight = 0 if settings.lora else text.vocab_size * text.hidden_size
    return tile + 4 * (scored * text.hidden_size + weight)


def generation_bytes(text: Any, settings: PlanSettings, sequence: int, whole: int) -> float:
    """Bytes of keys, values and logits while transformers answers; `whole`: of the weights, which TRL gathers."""
    if settings.vllm == "server":
        return 0
    answers = math.ceil(settings.prompts * settings.group / settings.processes)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * (2 if settings.bf16 else 4)
    gathered = whole if settings.vllm == "off" and settings.is_sharded else 0
    return answers * (sequence * cache + 4 * text.vocab_size) + gathered


def memory_of(model: Any, settings: PlanSettings, stage: Stage, tokens: Tokens) -> Memory:
    """Estimate the memory of one GPU. `model`: on the meta device."""
    text, family, width = model.config.text_config, FAMILIES[model.config.model_type], 2 if settings.bf16 else 4
    share = 1 / settings.processes if settings.is_sharded else 1.0
    whole = sum(parameter_count(model).values()) * width
    trained, frozen = trained_and_frozen(model, settings, stage)
    weight, gradient, optimizer = bytes_per_parameter(settings)
    packed = sum(inputs * outputs for inputs, outputs in _adapted(model)) if settings.four_bit else 0
    block = sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    largest = max(block, text.vocab_size * text.hidden_size)

    rows, answer = settings.grpo_micro_batch, settings.max_completion
    if stage == "pa_sft":
        rows, answer = settings.micro_batch, RECORD_TEXT
    sequence = sequence_of(settings, stage, tokens)
    tower_trained = not settings.lora and not (stage == "pa_sft" and "tower" in family.frozen)
    patches = rows * settings.images * tokens.patches if tower_trained else 0
    reference = generation = 0.0
    if stage == "sc_grpo":
        reference = whole * share if settings.beta > 0 and not settings.lora else 0.0
        reference += whole if settings.vllm == "colocate" else 0.0  # vLLM's own copy of the weights
        generation = generation_bytes(text, settings, sequence, whole)
    values = (
        (trained * weight + packed * NF4_BYTES + (frozen - packed) * width) * share,
        trained * gradient * share,
        trained * optimizer * share,
        2 * largest * width if settings.is_sharded else 0.0,  # the block at work, and the next one
        sum(activation_bytes(model.config, settings, rows * sequence, patches)),
        head_bytes(text, settings, rows * answer),
        reference,
        generation,
    )
    return Memory(*(value / GIB for value in values))


# ---------------------------------------------------------------------------------------------- the plan


def plan(model: str, settings: PlanSettings) -> Plan:
    """Say what training `model` (short name, hub id, or a folder with config.json) needs, for both stages.

    Raises:
        UserError: the model is unknown, or settings contradict each other.
    """
    _check(settings)
    shapes = meta_model_named(model)
    tokens = tokens_of(shapes.config, settings.max_pixels, settings.images)
    stages = tuple(_stage_plan(shapes, settings, stage, tokens) for stage in get_args(Stage))
    advice = () if all(stage.fits for stage in stages) else tuple(_advice(shapes, settings))
    parameters = parameter_count(shapes)
    return Plan(model, settings, parameters, tokens, stages, advice, _difference(model, parameters))


def _difference(model: str, parameters: dict[str, int]) -> str | None:
    """How the real configuration, where `iadr1 fetch` or the hub's cache has it, disagrees with the table of sizes."""
    from transformers import AutoConfig

    known = named(model)
    if known is None or known.hub_id is None:
        return None
    try:
        real = AutoConfig.from_pretrained(str(recorded_folder(known.hub_id) or known.hub_id), local_files_only=True)
    except (OSError, ValueError):
        return None
    counted = parameter_count(meta_model(real))
    parts = [f"{part} {counted[part] - n:+,}" for part, n in parameters.items() if counted[part] != n]
    return f"the configuration on the disk has other parameters: {', '.join(parts)}" if parts else None


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


def _stage_plan(model: Any, settings: PlanSettings, stage: Stage, tokens: Tokens) -> StagePlan:
    if stage == "pa_sft":
        steps = math.ceil(math.ceil(PA_SFT_RECORDS / settings.batch) * settings.epochs)
    else:
        steps = settings.steps or math.ceil(SC_GRPO_PROMPTS / settings.prompts)
    memory = memory_of(model, settings, stage, tokens)
    trained, _ = trained_and_frozen(model, settings, stage)
    return StagePlan(stage, trained, sequence_of(settings, stage, tokens), steps, memory, _fits(memory.total, settings))


def _fits(gib: float, settings: PlanSettings) -> bool:
    return gib <= settings.gpu_gib * (1 - FREE_SHARE)


def _advice(model: Any, settings: PlanSettings) -> Iterator[str]:
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
    needed = _peak(model, settings)
    for step, change in steps:
        if change.get("four_bit") and settings.sharding == "zero3":
            continue
        settings = replace(settings, **change)
        before, needed = needed, _peak(model, settings)
        if needed < before:
            yield f"{step} (then {needed:.1f} GiB)"
        if _fits(needed, settings):
            return
    yield f"and still it will not fit {settings.gpu_gib:g} GiB: choose a smaller model or a larger GPU"


def _peak(model: Any, settings: PlanSettings) -> float:
    """GiB of the stage that needs more."""
    tokens = tokens_of(model.config, settings.max_pixels, settings.images)
    return max(memory_of(model, settings, stage, tokens).total for stage in get_args(Stage))


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
    config, vllm = engine.get("config", "single"), engine.get("vllm", "off")
    if config not in _SHARDING:
        raise UserError(f"profile {profile.name}: engine.config is {config}; choose from {', '.join(_SHARDING)}")
    if vllm not in get_args(Vllm):
        raise UserError(f"profile {profile.name}: engine.vllm is {vllm}; choose off, server or colocate")
    processes = engine.get("processes", 1)
    completions = _step(grpo, processes)
    values = {
        **{key: model.get(key) for key in ("four_bit", "gradient_checkpointing")},
        **{key: engine.get(key) for key in ("processes", "gpu_gib")},
        "lora": bool(model.get("lora_rank")),
        "rank": model.get("lora_rank") or None,
        "bf16": model.get("dtype", "bfloat16") in ("bfloat16", "bf16"),
        "sharding": _SHARDING[config],
        "vllm": vllm,
        "batch": _step(sft, processes),
        "micro_batch": sft.get("per_device_train_batch_size"),
        "epochs": sft.get("num_train_epochs"),
        "prompts": completions // grpo.get("num_generations", 1) if completions else None,
        "group": grpo.get("num_generations"),
        "grpo_micro_batch": grpo.get("per_device_train_batch_size"),
        "steps": grpo["max_steps"] if grpo.get("max_steps", -1) > 0 else None,
        "max_completion": grpo.get("max_completion_length"),
        "beta": grpo.get("beta"),
        "max_pixels": max(sft.get("max_pixels") or 0, grpo.get("max_pixels") or 0) or None,
    }
    chosen: dict[str, Any] = {key: value for key, value in values.items() if value is not None}
    return PlanSettings(**chosen)
