"""PA-SFT and SC-GRPO: thin set-ups of TRL's SFTTrainer and GRPOTrainer, the same for every model and engine.

`stages` owns the folder that a stage leaves behind, `models` what differs between models.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import PrinterCallback
from transformers.utils import is_torch_tf32_available
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from iadr1_lib import models, rewards
from iadr1_lib.data import checked_rows
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import raise_if_full, write_json
from iadr1_lib.models import GenerationSettings, ModelSettings
from iadr1_lib.records import Stage, grid_of, read_rows, row_notes
from iadr1_lib.training import speed
from iadr1_lib.training.dataset import alternate_labels, eos_suffix, pa_sft_dataset, sc_grpo_dataset
from iadr1_lib.training.fitting import OutOfMemory, fit, smaller, until_it_fits
from iadr1_lib.training.settings import RELEASED, PaSftSettings, ScGrpoSettings
from iadr1_lib.training.speed import Speed
from iadr1_lib.training.stage_log import ADVICE, DevScore, StageLog, StepClock, Thaw, write_log
from iadr1_lib.training.stages import (
    Inputs,
    StageFolder,
    export_merged,
    fingerprint,
    part_to_save,
    print_once,
    process_state,
    save_model,
    stage_note,
)

ConfigT = TypeVar("ConfigT", SFTConfig, GRPOConfig)


def train_pa_sft(
    model_dir: Path | str,
    records: Path | str,
    out: Path | str,
    settings: PaSftSettings,
    seed: int = 0,
    dev_score: DevScore | None = None,
    model: ModelSettings | None = None,
    force: bool = False,
) -> Path:
    """Stage one: next-token loss on the tagged answer with its reasoning (paper, PA-SFT).

    Args:
        model_dir: the model to start from.
        records: pa_sft.json.
        out: the folder of the stage; a finished one with the same inputs is used again.
        dev_score: scores the model every `save_steps` steps. Without it the last model is kept.
        model: how its weights are loaded and which of them are trained; its name selects the released learning rate.
        force: train a finished stage again; it stays until the new one is whole.

    Returns:
        The model folder.

    Raises:
        UserError: the start model, a record, a picture or a setting is faulty; nothing was trained or removed.
    """
    model = model or ModelSettings()
    if settings.learning_rate == RELEASED:
        known = models.named(model.name)
        settings = replace(settings, learning_rate=known.pa_sft_rate if known else 1e-5)
    inputs = Inputs(models.require_weights(model_dir), Path(records), settings, model, seed)
    return until_it_fits(partial(_pa_sft, Path(out), dev_score, force), inputs)


def _pa_sft(out: Path, dev_score: DevScore | None, force: bool, inputs: Inputs, goes_on: bool) -> Path:
    folder, rows = _open(inputs, out, "pa_sft", force or goes_on)
    if not rows:
        return folder.model
    inputs = fit(inputs)
    settings = inputs.settings
    assert isinstance(settings, PaSftSettings)
    processor, family = models.load_processor(inputs.model_dir), models.family_of(inputs.model_dir)
    config = _config(
        SFTConfig,
        folder,
        inputs,
        max_length=None,  # the default of 1024 would cut image tokens of the large models
        completion_only_loss=True,
    )
    resume = folder.prepare(force and not goes_on)
    # After the configuration: only then does DeepSpeed shard the weights while they are loaded.
    policy = models.load_for_training(inputs.model_dir, inputs.model)
    frozen = family.frozen if settings.frozen == RELEASED else settings.frozen
    thaw = []
    if settings.frozen_share < 1:
        thaw, frozen = [Thaw(models.parameters_of(policy, family, frozen), settings.frozen_share)], ()
    models.freeze(policy, family, frozen)
    dataset = pa_sft_dataset(rows, eos_suffix(processor), settings.max_pixels)
    lengths = [len(processor.tokenizer(row["messages"][-1]["content"])["input_ids"]) for row in rows]
    meter = _speed(inputs, dataset, frozen, answer=mean(lengths))
    log = StageLog(folder.work, processor, dev_score, settings, ["loss", "mean_token_accuracy"], meter)
    trainer = SFTTrainer(
        model=policy,
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[log, *thaw],
        peft_config=models.lora_config(inputs.model_dir, inputs.model),
    )
    more = {"grid": grid_of(rows[0]), "answer_tokens": max(lengths) + 1}  # one more ends the answer
    return _run(trainer, folder, inputs, log, resume, more)


def train_sc_grpo(
    model_dir: Path | str,
    records: Path | str,
    out: Path | str,
    settings: ScGrpoSettings,
    seed: int = 0,
    dev_score: DevScore | None = None,
    model: ModelSettings | None = None,
    vllm: Mapping[str, Any] | None = None,
    force: bool = False,
    generation: GenerationSettings | None = None,
) -> Path:
    """Stage two: GRPO with the structured reward (paper, SC-GRPO), on-policy: each completion serves one step.

    Arguments, result and errors as `train_pa_sft`, but for:

    Args:
        records: sc_grpo.json.
        vllm: GRPOConfig's arguments for rollouts by vLLM (`EngineSettings.rollouts`); without them transformers
            generates.
        generation: how transformers generates.
    """
    inputs = Inputs(models.require_weights(model_dir), Path(records), settings, model or ModelSettings(), seed)
    return until_it_fits(partial(_sc_grpo, Path(out), dev_score, vllm, force, generation), inputs)


def _sc_grpo(
    out: Path,
    dev_score: DevScore | None,
    vllm: Mapping[str, Any] | None,
    force: bool,
    generation: GenerationSettings | None,
    inputs: Inputs,
    goes_on: bool,
) -> Path:
    folder, rows = _open(inputs, out, "sc_grpo", force or goes_on)
    if not rows:
        return folder.model
    inputs = fit(inputs, vllm)
    settings = inputs.settings
    assert isinstance(settings, ScGrpoSettings)
    grid, start = grid_of(rows[0]), inputs.model_dir
    if (known := stage_note(start).get("grid", grid)) != grid:
        raise UserError(
            f"{start} was trained on places of a grid of {known} x {known} cells, and those of {inputs.records} are of "
            f"{grid} x {grid}: write records with the same grid"
        )
    dataset = sc_grpo_dataset(alternate_labels(rows, inputs.seed), settings.rewards, settings.max_pixels)
    processor, family = models.load_processor(start), models.family_of(start)
    if vllm:
        no_image_tokens: dict[str, Any] = {"bad_words": list(family.image_marks)}
    else:
        no_image_tokens = {"suppress_tokens": models.image_token_ids(start, processor)}
    config = _config(
        GRPOConfig,
        folder,
        inputs,
        **(vllm or {}),
        num_train_epochs=1,
        steps_per_generation=settings.gradient_accumulation_steps,  # on-policy
        reward_weights=rewards.reward_weights(settings.rewards, settings.reward_parts),
        generation_kwargs=no_image_tokens,
        model_init_kwargs=models.weights_arguments(inputs.model),
        shuffle_dataset=False,  # alternate_labels did
        log_completions=False,
    )
    resume = folder.prepare(force and not goes_on)
    shown = ["reward", "rewards/accuracy_reward/mean", "completions/mean_length", "frac_reward_zero_std", "kl"]
    meter, clock = _speed(inputs, dataset, frozen=settings.frozen), StepClock()
    log = StageLog(folder.work, processor, dev_score, settings, shown, meter)
    paid = (settings.rewards, settings.reward_parts, grid, settings.taught_sentences)
    first, *others = rewards.reward_functions(*paid)
    trainer = GRPOTrainer(
        model=str(start),  # a path: with beta > 0 TRL loads the reference model from it
        reward_funcs=[clock.watch(first), *others],
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[log, clock],
        peft_config=models.lora_config(start, inputs.model),
    )
    if settings.frozen:
        models.freeze(trainer.model, family, settings.frozen)
    if family.counts_pictures:
        models.pass_image_counts(trainer)
    if not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        for policy in (trainer.model, trainer.ref_model):
            if policy is not None:
                models.share_group_work(policy)
    models.speed_up_generation(trainer, generation or GenerationSettings())
    more = {"vllm": dict(vllm) if vllm else None, "grid": grid, "answer_tokens": settings.max_completion_length}
    return _run(trainer, folder, inputs, log, resume, more)


def _open(inputs: Inputs, out: Path, stage: Stage, force: bool) -> tuple[StageFolder, list[dict[str, Any]]]:
    """The stage's folder, and its checked rows, or none if the stage is finished; prints what the rows' form lacks."""
    rows = read_rows(inputs.records)
    folder = StageFolder(out, fingerprint(inputs))
    if folder.is_finished() and not force:
        return folder, []
    rows = checked_rows(rows, stage, inputs.records, inputs.records.parent)  # relative paths start from the file
    for note in row_notes(rows, stage):
        print_once(f"{inputs.records}: {note}")
    return folder, rows


def _speed(inputs: Inputs, dataset: Dataset, frozen: Sequence[str], answer: float | None = None) -> Speed:
    """What measures the stage; the first record stands for all. Without a GPU there is no rate to compare with."""
    processes, arithmetic = process_state().num_processes, None
    if torch.cuda.is_available():
        width, height = dataset[0]["images"][0].size
        arithmetic = speed.arithmetic(inputs.model_dir, (height, width), frozen, inputs.model.lora_rank)
    return Speed(inputs.settings.step_size(processes), processes, answer, arithmetic)


def _config(kind: type[ConfigT], folder: StageFolder, inputs: Inputs, **more: Any) -> ConfigT:
    """The trainer's configuration: the profile's settings, what the stage folder needs, and `more`."""
    checkpointing, on_gpu = bool(inputs.model.gradient_checkpointing), torch.cuda.is_available()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")  # by default beside checkpoints, which go
    try:
        return kind(
            **inputs.settings.for_trl(),
            **more,
            output_dir=str(folder.checkpoints),
            seed=inputs.seed,
            data_seed=inputs.seed,
            save_strategy="steps",
            save_total_limit=2,  # if the newest is damaged, the one before it is there
            logging_steps=2,
            logging_nan_inf_filter=False,  # StageLog reports them
            disable_tqdm=True,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
            dataloader_num_workers=_workers(),
            dataloader_pin_memory=on_gpu,
            # What autocast leaves in float32 need not be exact either. The mini VLM's profiles have no bf16.
            tf32=True if inputs.settings.bf16 and is_torch_tf32_available() else None,
            remove_unused_columns=False,
            ddp_find_unused_parameters=True,  # some families do not use the last weights of the tower
            use_cpu=not on_gpu,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind.__name__} refuses the settings of this stage: {one_line(error, 400)}") from error


def _workers() -> int:
    """Processes that open pictures while the GPU works; a processor that trains has nothing to spare.

    They change no number: which rows come when is decided in this process. Only where processes are forked: others
    would have to be sent the data set.
    """
    forked = torch.cuda.is_available() and sys.platform == "linux"
    return min(4, os.cpu_count() or 1) if forked else 0  # four open and scale some hundred pictures a second


def _run(
    trainer: Any, folder: StageFolder, inputs: Inputs, log: StageLog, resume: str | None, more: dict[str, Any]
) -> Path:
    """Train to the end, save the model and stage.json (with `more`), put all in place; returns the model's folder.

    Raises:
        UserError: the disk is full; a number is not finite; or one process would have to make a dev check with only
            its shard of the weights, and would wait for the others for ever.
    """
    state, work = process_state(), folder.work
    adapted, sharded = part_to_save(trainer.model) == "adapter", trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if sharded and log.dev_score and state.num_processes > 1:
        raise UserError(
            "the dev check is made by one process, which has only a share of the weights with this engine: train with "
            "--engine single or ddp"
        )
    if not (adapted or sharded):
        # The trainer would load a checkpoint by the model's own names of weights, but save_pretrained writes those of
        # published models: for Llava none matches, and the run would start again with a mere warning.
        trainer._load_from_checkpoint = lambda checkpoint: trainer.model.load_state_dict(
            models.load_model(checkpoint, "cpu")[0].state_dict()
        )
    trainer.remove_callback(PrinterCallback)  # StageLog prints instead, and less often
    try:
        _train(trainer, work, resume)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(smaller(inputs, folder)) from error
    if not log.keeps_best and (sharded or state.is_main_process):
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_model(model, log.processor, work / part_to_save(model), trainer.save_model if sharded else None)
    if state.is_main_process:
        if adapted:
            export_merged(inputs.model_dir, work / "adapter", log.processor, work / "model")
        write_log(trainer.state.log_history, work / "log.csv")
        more |= {"seconds": round(time.time() - log.start, 1), "steps": trainer.state.global_step}
        more |= speed.summary(trainer.state.log_history)
        facts = {"fingerprint": folder.fingerprint, **inputs.facts(), **more, "processes": state.num_processes}
        write_json(work / "stage.json", facts)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        folder.put_in_place()
    state.wait_for_everyone()
    return folder.model


def _train(trainer: Any, work: Path, resume: str | None) -> None:
    """Train to the end; a full disk and probabilities that are not finite become a UserError."""
    if resume:
        _let_torch_load_to_cpu_0()
    full = f"could not write a checkpoint in {work}; free some disk space and run the stage again"
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SafetensorError as error:
        raise UserError(f"{full} ({error})") from error
    except OSError as error:
        raise_if_full(error, work)
        raise
    except RuntimeError as error:
        text = str(error)
        if "inline_container" in text or "PytorchStreamWriter" in text:  # torch.save on a full disk
            raise UserError(full) from error
        # What torch.multinomial says of weights that are no numbers; on a GPU only an assertion fails there.
        if "probability tensor" not in text and "device-side assert" not in text:
            raise
        step = trainer.state.global_step + 1
        raise UserError(f"the model's probabilities are not numbers at step {step} of {work}: {ADVICE}") from error


@cache
def _let_torch_load_to_cpu_0() -> None:
    """Each of several processes on a CPU calls its device "cpu:0", which torch.load does not know by itself."""

    def restore(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(100, lambda storage: None, restore)
