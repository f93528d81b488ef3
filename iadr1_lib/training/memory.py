"""Memory of one GPU in training, estimated from shapes alone.

Parameters are counted with transformers' own classes on the meta device, which holds shapes and no numbers. Weights,
gradients and optimizer states follow from bytes per parameter, exactly in float32. Activations are constants per token
and width of a layer: 0.83 to 1.19 times the measured ones of miniatures of the five classes (tests/test_planning.py).

On one H200 the peaks of `tests/gpu_check.py` were 0.94 and 0.92 times this estimate (LLaVA-OneVision-0.5B, all weights,
PA-SFT and SC-GRPO), 1.02 and 0.96 times (Qwen2.5-VL-3B, LoRA), and 1.08 times with passes of 8 and no checkpointing
(the same, PA-SFT). SC-GRPO's second was 1.26 times an earlier estimate: what generation, its cache and a float32
reference take was added by reading the code of transformers, TRL and `models`, and not measured again. Not measured at
all: sharding, four bits, vLLM.

Sources: Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3, for bytes per parameter in mixed precision; Korthikanti
et al. (arXiv 2205.05198), section 4, for activations per layer; Dettmers et al., QLoRA (arXiv 2305.14314), section 3,
for four bits.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from iadr1_lib.models import FAMILIES, Tokens, parameter_count
from iadr1_lib.records import Stage

GIB = 2**30
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


@dataclass(frozen=True)
class PlanSettings:
    """What the plan needs to know of a training.

    Attributes:
        bf16: the arithmetic. Weights are kept in it, too, with LoRA and ZeRO-3; elsewhere they are float32.
        gradient_checkpointing: None: only if memory asks for it.
        micro_batch: sequences of a backward pass of PA-SFT per GPU; grpo_micro_batch: completions likewise in SC-GRPO.
            None: as many as are fastest.
        batch, prompts: records, and questions, of a step over all GPUs.
        images: per prompt, 1, or 2 with a reference.
        max_pixels: images are made smaller than this before the processor sees them; grpo_max_pixels: likewise in
            SC-GRPO, if it is another number.
        beta: above 0 a reference model is needed (LoRA switches its adapter off instead).
        gpu_gib: memory of one GPU.
        shares_prompts: SC-GRPO reads a prompt of several completions, and its pictures, once (`models.batching`), but
            for weights that are sharded.
    """

    lora: bool = False
    rank: int = 16
    four_bit: bool = False
    gradient_checkpointing: bool | None = True
    bf16: bool = True
    processes: int = 1
    sharding: Sharding = "none"
    micro_batch: int | None = 1
    batch: int = 8
    epochs: float = 1.0
    prompts: int = 6
    group: int = 4
    grpo_micro_batch: int | None = 4
    steps: int | None = None
    images: int = 1
    max_pixels: int = 512 * 512
    grpo_max_pixels: int | None = None
    max_completion: int = 512
    beta: float = 0.04
    gpu_gib: float = 24.0
    vllm: Literal["off", "server", "colocate"] = "off"
    shares_prompts: bool = True

    def rows(self, stage: Stage) -> int | None:
        """Sequences of a backward pass on one GPU."""
        return self.micro_batch if stage == "pa_sft" else self.grpo_micro_batch

    def share(self, stage: Stage) -> int:
        """Sequences of a step on one GPU."""
        samples = self.batch if stage == "pa_sft" else self.prompts * self.group
        return math.ceil(samples / self.processes)

    def distinct(self, stage: Stage, rows: int) -> int:
        """Prompts that are read, at most, for so many sequences at once: TRL shuffles the completions of a step."""
        shared = stage == "sc_grpo" and self.shares_prompts and not self.is_sharded
        return min(rows, math.ceil(self.share(stage) / self.group)) if shared else rows

    @property
    def weight_bytes(self) -> int:
        """Of a weight that is kept, not of the copy that autocast makes."""
        return 2 if self.bf16 and (self.lora or self.sharding == "zero3") else 4

    @property
    def is_sharded(self) -> bool:
        """Whether weights, gradients and optimizer states are divided among the GPUs."""
        return self.sharding in ("zero3", "fsdp2")


@dataclass(frozen=True)
class Memory:
    """GiB on one GPU, at the worst shape of images.

    `total` is the peak: what always lies there, and the larger of a backward pass and a generation, which finds no
    gradients.
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


def sequence_of(settings: PlanSettings, stage: Stage, tokens: Tokens) -> int:
    """Longest sequence in tokens: question, images at the worst shape, answer."""
    return PROMPT_TEXT + settings.images * tokens.worst + _answer(settings, stage)


def _answer(settings: PlanSettings, stage: Stage) -> int:
    return RECORD_TEXT if stage == "pa_sft" else settings.max_completion


def pass_tokens(settings: PlanSettings, stage: Stage, tokens: Tokens) -> int:
    """Tokens that the language model reads in a backward pass. Checkpointing has no cache, so it shares no prompts."""
    rows, answer = settings.rows(stage) or 1, _answer(settings, stage)
    prompts = rows if settings.gradient_checkpointing else settings.distinct(stage, rows)
    return prompts * (sequence_of(settings, stage, tokens) - answer) + rows * answer


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
    """Estimate the memory of one GPU. `model`: on the meta device; the settings leave nothing open (`plan.choose`)."""
    text, family, width = model.config.text_config, FAMILIES[model.config.model_type], settings.weight_bytes
    share = 1 / settings.processes if settings.is_sharded else 1.0
    whole = sum(parameter_count(model).values()) * width
    trained, frozen = trained_and_frozen(model, settings, stage)
    weight, gradient, optimizer = _bytes_per_parameter(settings)
    packed = sum(inputs * outputs for inputs, outputs in _adapted(model)) if settings.four_bit else 0
    block = sum(p.numel() for p in model.model.language_model.layers[0].parameters())
    largest = max(block, text.vocab_size * text.hidden_size)

    rows = settings.rows(stage) or 1
    tower_trained = not settings.lora and not (stage == "pa_sft" and "tower" in family.frozen)
    patches = settings.distinct(stage, rows) * settings.images * tokens.patches if tower_trained else 0
    reference = cache = generation = 0.0
    if stage == "sc_grpo":
        reference = whole * share if settings.beta > 0 and not settings.lora else 0.0
        reference += whole if settings.vllm == "colocate" else 0.0  # vLLM's own copy of the weights
        cache, generation = _generation_bytes(model.config, settings, tokens)
        generation += whole if settings.vllm == "off" and settings.is_sharded else 0  # TRL gathers the weights
    fixed = (
        (trained * weight + packed * NF4_BYTES + (frozen - packed) * width) * share,
        trained * gradient * share,
        trained * optimizer * share,
        2 * largest * (2 if settings.bf16 else 4) if settings.is_sharded else 0.0,  # the block at work, the next one
    )
    activations = sum(activation_bytes(model.config, settings, pass_tokens(settings, stage, tokens), patches))
    backward = (activations, _head_bytes(text, settings, rows * _answer(settings, stage)))
    # DeepSpeed and FSDP keep their room for gradients.
    no_gradients = generation - (0.0 if settings.is_sharded else fixed[1])
    # A compiled generation keeps its cache between the steps (models.generation).
    total = sum(fixed) + reference + cache + max(sum(backward), no_gradients)
    return Memory(*(value / GIB for value in (*fixed, *backward, reference, cache + generation, total)))


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
    depth, width, inner = tower_shape(vision)
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


def _generation_bytes(config: Any, settings: PlanSettings, tokens: Tokens) -> tuple[float, float]:
    """Bytes of a generation by transformers, which reads all prompts of a step at once: of its cache, and of the rest.

    First the tower sees the pictures. LLaVA's classes ask it for the states of all layers, and hold them until the last
    is there (`output_hidden_states=True`). Then the language model keeps keys and values, and works on one layer.
    """
    if settings.vllm == "server":
        return 0, 0
    text, (depth, width, _) = config.text_config, tower_shape(config.vision_config)
    answers, number = settings.share("sc_grpo"), 2 if settings.bf16 else 4
    prompts, sequence = settings.distinct("sc_grpo", answers), sequence_of(settings, "sc_grpo", tokens)
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = answers * sequence * 2 * text.num_hidden_layers * text.num_key_value_heads * head_size * number
    logits = 4 * answers * text.vocab_size
    if settings.vllm == "colocate":
        return kept, logits
    states = depth if hasattr(config, "vision_feature_layer") else 1  # beside the last, which all answers need
    tower = (prompts * states + answers) * settings.images * tokens.patches * width * settings.weight_bytes
    read = prompts * (sequence - settings.max_completion)
    layer = read * (3 * text.intermediate_size * number + 2 * text.hidden_size * 4)  # gate, up and product; sums
    return kept, max(tower, layer, logits)


def tower_shape(vision: Any) -> tuple[int, int, int]:
    """Layers, hidden size, and inner size of the MLP, of a tower by its configuration."""
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or width * vision.mlp_ratio
    return getattr(vision, "depth", None) or vision.num_hidden_layers, width, inner
