"""PA-SFT and SC-GRPO: thin set-ups of TRL's SFTTrainer and GRPOTrainer, the same for every model and engine.

`stages` owns the folder that a stage leaves behind, `models` what differs between models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import LlavaForConditionalGeneration
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from iadr1_lib import rewards
from iadr1_lib.data import checked_rows
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.models import (
    ModelSettings,
    family_of,
    freeze,
    image_token_ids,
    load_for_training,
    load_processor,
    lora_config,
    named,
    read_each_prompt_once,
    require_weights,
    see_each_picture_once,
    tell_pictures_per_prompt,
    weights_arguments,
)
from iadr1_lib.records import Stage, grid_of, read_rows, row_notes
from iadr1_lib.training.dataset import alternate_labels, eos_suffix, pa_sft_dataset, sc_grpo_dataset
from iadr1_lib.training.settings import RELEASED, PaSftSettings, ScGrpoSettings, StageSettings
from iadr1_lib.training.stage_log import DevScore, StageLog, StepClock
from iadr1_lib.training.stages import StageFolder, fingerprint, print_once, run_stage, stage_note

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
    model_dir, records, model = require_weights(model_dir), Path(records), model or ModelSettings()
    rows = read_rows(records)
    folder = StageFolder(Path(out), fingerprint(model_dir, records, settings, model, seed))
    if folder.is_finished() and not force:
        return folder.model
    rows = _checked(rows, records, "pa_sft")
    processor, family = load_processor(model_dir), family_of(model_dir)
    if settings.learning_rate == RELEASED:
        known = named(model.name)
        settings = replace(settings, learning_rate=known.pa_sft_rate if known else 1e-5)
    config = _config(
        SFTConfig,
        folder,
        settings,
        model,
        seed,
        max_length=None,  # the default of 1024 would cut image tokens of the large models
        completion_only_loss=True,
    )
    resume = folder.prepare(force)
    # After the configuration: only then does DeepSpeed shard the weights while they are loaded.
    policy = load_for_training(model_dir, model)
    freeze(policy, family, family.frozen if settings.frozen == RELEASED else settings.frozen)
    log = StageLog(folder.work, processor, dev_score, settings, ["loss", "mean_token_accuracy"])
    trainer = SFTTrainer(
        model=policy,
        args=config,
        train_dataset=pa_sft_dataset(rows, eos_suffix(processor), settings.max_pixels),
        processing_class=processor,
        callbacks=[log],
        peft_config=lora_config(model_dir, model),
    )
    longest = max(len(processor.tokenizer(row["messages"][-1]["content"])["input_ids"]) for row in rows)
    facts = _facts(folder, model_dir, settings, model, seed)
    facts |= {"grid": grid_of(rows[0]), "answer_tokens": longest + 1}  # one more ends the answer
    return run_stage(trainer, folder, model_dir, log, resume, facts)


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
) -> Path:
    """Stage two: GRPO with the structured reward (paper, SC-GRPO), on-policy: each completion serves one step.

    Arguments and result as `train_pa_sft`, but for:

    Args:
        records: sc_grpo.json.
        vllm: GRPOConfig's arguments for rollouts by vLLM (`EngineSettings.rollouts`); without them transformers
            generates.

    Raises:
        UserError: as `train_pa_sft`; or the completions of a step are not a whole number of groups.
    """
    model_dir, records, model = require_weights(model_dir), Path(records), model or ModelSettings()
    rows = read_rows(records)
    folder = StageFolder(Path(out), fingerprint(model_dir, records, settings, model, seed))
    if folder.is_finished() and not force:
        return folder.model
    rows = _checked(rows, records, "sc_grpo")
    grid = grid_of(rows[0])
    if (known := stage_note(model_dir).get("grid", grid)) != grid:
        raise UserError(
            f"{model_dir} was trained on places of a grid of {known} x {known} cells, and those of {records} are of "
            f"{grid} x {grid}: write records with the same grid"
        )
    dataset = sc_grpo_dataset(alternate_labels(rows, seed), settings.rewards, settings.max_pixels)
    processor, family = load_processor(model_dir), family_of(model_dir)
    if vllm:
        no_image_tokens: dict[str, Any] = {"bad_words": list(family.image_marks)}
    else:
        no_image_tokens = {"suppress_tokens": image_token_ids(model_dir, processor)}
    config = _config(
        GRPOConfig,
        folder,
        settings,
        model,
        seed,
        **(vllm or {}),
        num_train_epochs=1,
        steps_per_generation=settings.gradient_accumulation_steps,  # on-policy
        reward_weights=rewards.reward_weights(settings.rewards, settings.reward_parts),
        generation_kwargs=no_image_tokens,
        model_init_kwargs=weights_arguments(model),
        shuffle_dataset=False,  # alternate_labels did
        log_completions=False,
    )
    resume = folder.prepare(force)
    shown = ["reward", "rewards/accuracy_reward/mean", "completions/mean_length", "frac_reward_zero_std", "kl"]
    log, clock = StageLog(folder.work, processor, dev_score, settings, shown), StepClock()
    trainer = GRPOTrainer(
        model=str(model_dir),  # a path: with beta > 0 TRL loads the reference model from it
        reward_funcs=clock.timed(rewards.reward_functions(settings.rewards, settings.reward_parts, grid)),
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[log, clock],
        peft_config=lora_config(model_dir, model),
    )
    if family.counts_pictures:
        tell_pictures_per_prompt(trainer)
    for policy in (trainer.model, trainer.ref_model):
        # Both need the plain module and its key-value cache.
        plain = isinstance(policy, LlavaForConditionalGeneration) and not model.gradient_checkpointing
        if plain and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            see_each_picture_once(policy.model.vision_tower)
            read_each_prompt_once(policy)
    facts = _facts(folder, model_dir, settings, model, seed) | {"vllm": dict(vllm) if vllm else None}
    facts |= {"grid": grid, "answer_tokens": settings.max_completion_length}
    return run_stage(trainer, folder, model_dir, log, resume, facts)


def _checked(rows: list[dict[str, Any]], records: Path, stage: Stage) -> list[dict[str, Any]]:
    """Checked rows, whose relative paths start from the folder of the file; prints what their form lacks."""
    rows = checked_rows(rows, stage, records, records.parent)
    for note in row_notes(rows, stage):
        print_once(f"{records}: {note}")
    return rows


def _config(
    kind: type[ConfigT], folder: StageFolder, settings: StageSettings, model: ModelSettings, seed: int, **more: Any
) -> ConfigT:
    """The trainer's configuration: the profile's settings, what the stage folder needs, and `more`."""
    try:
        return kind(
            **settings.for_trl(),
            **more,
            output_dir=str(folder.checkpoints),
            seed=seed,
            data_seed=seed,
            save_strategy="steps",
            save_total_limit=2,  # if the newest is damaged, the one before it is there
            logging_steps=2,
            logging_nan_inf_filter=False,  # StageLog reports them
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=model.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if model.gradient_checkpointing else None,
            dataloader_num_workers=0,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            ddp_find_unused_parameters=True,  # some families do not use the last weights of the tower
            use_cpu=not torch.cuda.is_available(),
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{kind.__name__} refuses the settings of this stage: {one_line(error, 400)}") from error


def _facts(
    folder: StageFolder, model_dir: Path, settings: StageSettings, model: ModelSettings, seed: int
) -> dict[str, Any]:
    """What stage.json holds. The folder of a hub model is named after the commit that was loaded."""
    facts = {"fingerprint": folder.fingerprint, "settings": asdict(settings), "model": asdict(model), "seed": seed}
    if (model_dir.parent / "revision.json").exists():
        facts["start"] = {"commit": model_dir.name, "repository": model_dir.parent.name}
    return facts
