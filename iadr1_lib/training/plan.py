"""What a training needs, before anything is loaded: parameters, tokens, steps, memory; what fits, and what to lower.

`choose` finds the micro-batch and says whether to checkpoint where a profile says "auto": for `iadr1 plan`, which shows
it, and by `fitting.fit` for the stages, which train by it. The memory is estimated in `memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from iadr1_lib.errors import UserError
from iadr1_lib.models import ModelSettings, Tokens, meta_model, parameter_count, tokens_of
from iadr1_lib.records import Stage
from iadr1_lib.runs import Profile
from iadr1_lib.training.launch import EngineSettings
from iadr1_lib.training.memory import (
    GIB,
    Memory,
    PlanSettings,
    Sharding,
    memory_of,
    pass_tokens,
    sequence_of,
    trained_and_frozen,
)
from iadr1_lib.training.settings import AUTO, PaSftSettings, ScGrpoSettings, StageSettings

FREE_SHARE = 0.1  # of the GPU: CUDA's own and fragments; our choice, not measured
PA_SFT_RECORDS, SC_GRPO_PROMPTS = 2900, 3000  # paper, Expert-AD
# Tokens below which a pass takes no less time, since the GPU waits for its kernels to be launched: Qwen2.5-VL-3B's took
# 0.67 s with 935 tokens and 0.83 to 1.1 s with 7,480, without checkpointing, on one H200.
SATURATING = 5000
RECOMPUTING = 4 / 3  # of the time of a pass: a forward pass more (Korthikanti et al., section 5)

_SHARDING: dict[str, Sharding] = {"single": "none", "ddp": "ddp", "zero3": "zero3", "fsdp2": "fsdp2"}


@dataclass(frozen=True)
class StagePlan:
    """One stage: trained parameters, tokens of a picture and of the longest sequence, steps, how a step is taken.

    micro_batch: sequences of a pass; passes: of a step on one GPU. fits: whether the memory is there.
    """

    stage: Stage
    trainable: int
    tokens: Tokens
    sequence: int
    steps: int
    micro_batch: int
    passes: int
    gradient_checkpointing: bool
    memory: Memory
    fits: bool

    def __str__(self) -> str:
        recomputing = "with" if self.gradient_checkpointing else "without"
        return (
            f"{self.passes} x {self.micro_batch} {'records' if self.stage == 'pa_sft' else 'completions'} a step, "
            f"{recomputing} gradient checkpointing: {self.memory.total:.1f} GiB by estimate"
        )


@dataclass(frozen=True)
class Plan:
    """The result of `plan`. `parameters`: by part of the model."""

    model: str
    settings: PlanSettings
    parameters: dict[str, int]
    stages: tuple[StagePlan, ...]
    advice: tuple[str, ...]


def plan(model: str, settings: PlanSettings) -> Plan:
    """Say what training `model` (short name, hub id, or a folder with config.json) needs, for both stages.

    Raises:
        UserError: the model is unknown, or settings contradict each other.
    """
    for name in ("rank", "processes", "micro_batch", "batch", "prompts", "group", "grpo_micro_batch", "max_completion"):
        if (value := getattr(settings, name)) is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    if settings.max_pixels < 28 * 28:
        raise UserError(f"max_pixels {settings.max_pixels} is less than one token's 28 x 28: set at least 784")
    if settings.four_bit and not settings.lora:
        raise UserError("four_bit needs lora: weights of four bits cannot be trained themselves")
    if settings.four_bit and settings.sharding == "zero3":
        raise UserError("four_bit does not go with ZeRO-3 here: choose ddp or fsdp2")
    shapes = meta_model(model)
    stages = _stages(shapes, settings)
    return Plan(model, settings, parameter_count(shapes), stages, tuple(_advice(shapes, settings, stages)))


def _stages(model: Any, settings: PlanSettings) -> tuple[StagePlan, ...]:
    return choose(model, settings, "pa_sft"), choose(model, settings, "sc_grpo")


def choose(model: Any, settings: PlanSettings, stage: Stage) -> StagePlan:
    """The plan of a stage, with the fastest passes that fit; where none does, with those of least memory.

    A pass takes as long as its tokens, or as the launching of its kernels, whichever is longer, and a third more with
    checkpointing. What the settings fix stays. TRL asks of a step that it holds whole groups of completions, not of a
    pass.

    Args:
        model: on the meta device.
    """
    pixels = (settings.grpo_max_pixels if stage == "sc_grpo" else None) or settings.max_pixels
    tokens, share = tokens_of(model.config, pixels, settings.images), settings.share(stage)
    divisors = [rows for rows in range(share, 0, -1) if share % rows == 0]
    fixed, checkpointing = settings.rows(stage), settings.gradient_checkpointing

    def planned(rows: int, recomputes: bool) -> tuple[float, StagePlan]:
        chosen = replace(settings, micro_batch=rows, grpo_micro_batch=rows, gradient_checkpointing=recomputes)
        memory, passes = memory_of(model, chosen, stage, tokens), math.ceil(share / rows)
        time = passes * max(pass_tokens(chosen, stage, tokens), SATURATING) * (RECOMPUTING if recomputes else 1)
        trained, sequence = trained_and_frozen(model, settings, stage)[0], sequence_of(settings, stage, tokens)
        fits = memory.total <= settings.gpu_gib * (1 - FREE_SHARE)
        return time, StagePlan(stage, trained, tokens, sequence, steps, rows, passes, recomputes, memory, fits)

    if stage == "pa_sft":
        steps = math.ceil(math.ceil(PA_SFT_RECORDS / settings.batch) * settings.epochs)
    else:
        steps = settings.steps or math.ceil(SC_GRPO_PROMPTS / settings.prompts)
    options = [
        planned(rows, recomputes)
        for recomputes in ((False, True) if checkpointing is None else (checkpointing,))
        for rows in (divisors if fixed is None else (fixed,))
    ]
    _, smallest = min(options, key=lambda option: option[1].memory.total)
    return min((option for option in options if option[1].fits), key=lambda option: option[0], default=(0, smallest))[1]


def _advice(model: Any, settings: PlanSettings, stages: tuple[StagePlan, ...]) -> Iterator[str]:
    """Lower in order, what costs least first, until both stages fit, passing over what brings nothing.

    Each step keeps those before it.
    """
    shorter, passes = settings.max_completion // 2, "with as many more gradient_accumulation_steps"
    pixels = max(settings.max_pixels, settings.grpo_max_pixels or 0)
    steps: list[tuple[str, dict[str, Any]]] = [
        ("gradient_checkpointing: true", {"gradient_checkpointing": True}),
        (f"sc_grpo.per_device_train_batch_size: 1, {passes}", {"grpo_micro_batch": 1}),
        (f"pa_sft.per_device_train_batch_size: 1, {passes}", {"micro_batch": 1}),
        ("dtype: bfloat16", {"bf16": True}),
        ("lora: true", {"lora": True}),
        ("four_bit: true", {"lora": True, "four_bit": True}),
        (f"max_pixels: {pixels // 2}", {"max_pixels": max(784, pixels // 2), "grpo_max_pixels": None}),
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
        stages = _stages(model, settings)
        needed = max(stage.memory.total for stage in stages)
        if needed < before:
            yield f"{step} (then {needed:.1f} GiB)"
    if not all(stage.fits for stage in stages):
        yield f"and still it will not fit {settings.gpu_gib:g} GiB: choose a smaller model or a larger GPU"


# ---------------------------------------------------------------------------------------------- profiles


def memory_there(otherwise: float) -> float:
    """GiB that are free on the GPU of this process, or of the one with least; `otherwise` where there is no GPU."""
    if not torch.cuda.is_available():
        return otherwise
    return min(gather_object([torch.cuda.mem_get_info()[0] / GIB]))


def settings_of(profile: Profile) -> PlanSettings:
    """The plan's settings from a profile's sections `model`, `engine`, `pa_sft` and `sc_grpo`.

    Raises:
        UserError: a section is missing or wrong, or the engine is none of the plan's.
    """
    model, engine = profile.settings("model", ModelSettings), profile.settings("engine", EngineSettings)
    sft, grpo = profile.settings("pa_sft", PaSftSettings), profile.settings("sc_grpo", ScGrpoSettings)
    if engine.config not in _SHARDING:
        raise UserError(f"profile {profile.name}: engine.config is {engine.config}; choose from {', '.join(_SHARDING)}")
    return of_stage(sft, engine, of_stage(grpo, engine, of_model(model, engine, sft.bf16)))


def of_model(model: ModelSettings, engine: EngineSettings, bf16: bool) -> PlanSettings:
    """What a model and an engine say to the plan. `bf16`: whether the stage computes in it."""
    checkpointing = model.gradient_checkpointing
    return PlanSettings(
        lora=model.lora_rank > 0,
        rank=model.lora_rank or PlanSettings.rank,
        four_bit=model.four_bit,
        gradient_checkpointing=None if checkpointing == AUTO else bool(checkpointing),
        bf16=model.dtype == "bfloat16" or (bf16 and not model.lora_rank),
        processes=engine.processes,
        sharding=_SHARDING[engine.config],
        gpu_gib=engine.gpu_gib or PlanSettings.gpu_gib,
        vllm=engine.vllm,
    )


def of_stage(stage: StageSettings, engine: EngineSettings, settings: PlanSettings) -> PlanSettings:
    """`settings` with what a stage says."""
    batch = stage.per_device_train_batch_size
    micro_batch, step = batch if isinstance(batch, int) else None, stage.step_size(engine.processes)
    if isinstance(stage, ScGrpoSettings):
        return replace(
            settings,
            prompts=step // stage.num_generations,
            group=stage.num_generations,
            grpo_micro_batch=micro_batch,
            steps=stage.max_steps if stage.max_steps > 0 else None,
            grpo_max_pixels=stage.max_pixels,
            max_completion=stage.max_completion_length,
            beta=stage.beta,
        )
    assert isinstance(stage, PaSftSettings)
    pixels = stage.max_pixels or PlanSettings.max_pixels
    return replace(settings, micro_batch=micro_batch, batch=step, epochs=stage.num_train_epochs, max_pixels=pixels)
