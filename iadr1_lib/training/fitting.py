"""A stage's passes and the memory of its GPU: chosen before it trains, halved when a step does not fit after all.

What is chosen changes no step: only in how many passes it is taken, and what a pass recomputes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import get_last_checkpoint

from iadr1_lib.errors import UserError
from iadr1_lib.models import FAMILIES, meta_model, model_config
from iadr1_lib.records import Stage
from iadr1_lib.training import plan
from iadr1_lib.training.launch import EngineSettings, engine_here
from iadr1_lib.training.settings import AUTO, PaSftSettings
from iadr1_lib.training.stages import Inputs, StageFolder, print_once, process_state


def fit(inputs: Inputs, vllm: Mapping[str, Any] | None = None) -> Inputs:
    """The inputs with the micro-batch and checkpointing that `plan.choose` finds, where they are "auto"; prints them.

    A model of a class that the plan does not know is trained in the smallest passes, with checkpointing. Without a GPU
    24 GiB are taken for there.

    Args:
        vllm: GRPOConfig's arguments, if vLLM generates.
    """
    settings, model = inputs.settings, inputs.model
    if AUTO not in (settings.per_device_train_batch_size, model.gradient_checkpointing):
        return inputs
    processes = process_state().num_processes
    engine = EngineSettings(engine_here(), processes, vllm=vllm["vllm_mode"] if vllm else "off")
    planned = plan.of_stage(settings, engine, plan.of_model(model, engine, settings.bf16))
    stage: Stage = "pa_sft" if isinstance(settings, PaSftSettings) else "sc_grpo"
    if model_config(inputs.model_dir)["model_type"] in FAMILIES:
        planned = replace(planned, gpu_gib=plan.memory_there(planned.gpu_gib))
        chosen = plan.choose(meta_model(str(inputs.model_dir)), planned, stage)
        rows, recomputes = chosen.micro_batch, chosen.gradient_checkpointing
        print_once(f"{chosen} of {planned.gpu_gib:.0f}")
    else:
        rows, recomputes = planned.rows(stage) or 1, planned.gradient_checkpointing is not False
    if settings.per_device_train_batch_size == AUTO:
        settings = settings.in_passes(rows)
    return replace(inputs, settings=settings, model=replace(model, gradient_checkpointing=recomputes))


class OutOfMemory(Exception):
    """A step did not fit. `smaller`: inputs for the same steps in smaller passes."""

    def __init__(self, smaller: Inputs):
        super().__init__()
        self.smaller = smaller


def until_it_fits(train: Callable[[Inputs, bool], Path], inputs: Inputs) -> Path:
    """Train; after each OutOfMemory go on from the last checkpoint, or begin again, with what it says.

    accelerate's `find_executable_batch_size` and the trainer's `auto_find_batch_size` would halve the step, too.

    Args:
        train: (inputs, whether it goes on) -> the model's folder.
    """
    goes_on = False
    while True:
        try:
            return train(inputs, goes_on)
        except OutOfMemory as error:
            inputs, goes_on = error.smaller, True
        gc.collect()  # the trainer's parts refer to each other
        torch.cuda.empty_cache()


def smaller(inputs: Inputs, folder: StageFolder) -> Inputs:
    """The same steps in passes half as large; those of one sample with checkpointing. Says so.

    Raises:
        UserError: nothing is smaller; or there are other processes, which wait for this one and would for ever.
    """
    settings, model = inputs.settings, inputs.model
    batch, processes = settings.per_device_train_batch_size, process_state().num_processes
    if isinstance(batch, int) and batch > 1:
        settings = settings.in_passes(batch // 2)
        change = f"per_device_train_batch_size {settings.per_device_train_batch_size}"
    elif not model.gradient_checkpointing:
        model, change = replace(model, gradient_checkpointing=True), "gradient checkpointing"
    else:
        raise UserError(
            "the GPU's memory does not hold one sample with gradient checkpointing: take LoRA or four bits, smaller "
            "pictures (max_pixels), shorter answers, or a larger GPU (iadr1 plan says what each saves)"
        )
    if processes > 1:
        raise UserError(
            f"out of memory in one of {processes} processes: set {change} in the profile and run the stage again; it "
            "goes on from its last checkpoint"
        )
    checkpoint = get_last_checkpoint(str(folder.checkpoints)) if folder.checkpoints.is_dir() else None
    print_once(f"out of memory: goes on from {Path(checkpoint).name if checkpoint else 'the beginning'} with {change}")
    return replace(inputs, settings=settings, model=model)
