"""PA-SFT and SC-GRPO: thin set-ups of TRL's SFTTrainer and GRPOTrainer, the same for every model and engine.

What a stage leaves on the disk is the affair of `stages`, what differs between models that of `families`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import LlavaForConditionalGeneration, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from iadr1_lib import rewards
from iadr1_lib.answer import parse_answer
from iadr1_lib.data import checked_rows, open_image, shrink
from iadr1_lib.errors import UserError
from iadr1_lib.models import (
    ModelSettings,
    deduplicate_images,
    family_of,
    freeze,
    image_token_ids,
    load_for_training,
    load_processor,
    lora_config,
    named,
    pass_image_counts,
    require_weights,
    share_prefix,
    weights_arguments,
)
from iadr1_lib.records import Stage, checked_row, grid_of, read_rows, row_notes
from iadr1_lib.training.stages import (
    DevScore,
    StageLog,
    StepClock,
    fingerprint,
    is_finished,
    prepare,
    process_state,
    run_stage,
    say,
    stage_note,
    work_folder,
)

disable_progress_bars()

RELEASED = "released"
VLLM_LENGTH = 8192  # tokens of prompt and completion; some models' own limit of 128k would not fit beside the weights


@dataclass(frozen=True)
class PaSftSettings:
    """Settings of PA-SFT; the profiles say where each value comes from.

    Attributes:
        batch: records of one optimiser step, over all processes.
        micro_batch: records of one pass in one process; it changes memory, not the result. None: as many as there are.
        learning_rate: "released": as released for the model (1e-5 for one that the paper has not).
        frozen: parts ("tower", "projector", "language model") that stay as they are; "released": as released for the
            model's family.
        max_pixels: pictures with more are made smaller; None leaves them.
        keep: the model that the stage leaves behind: the last, or the best of its checks on dev.
    """

    learning_rate: float | Literal["released"]
    epochs: float
    batch: int
    micro_batch: int | None
    warmup_steps: int
    weight_decay: float
    schedule: str
    max_grad_norm: float
    max_pixels: int | None
    dev_every: int
    bf16: bool
    frozen: tuple[str, ...] | Literal["released"]
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class ScGrpoSettings:
    """Settings of SC-GRPO. `prompts` questions with `group` completions each make one step, over all processes.

    Attributes:
        steps: optimiser steps; None asks every question once.
        micro_batch: completions of one pass in one process; it changes memory, not the result.
        rewards: the mode of the rewards.
        reward_parts: the names of those that are paid (none: all of the mode's).
        max_pixels, keep: as in PaSftSettings.
    """

    learning_rate: float
    steps: int | None
    prompts: int
    group: int
    micro_batch: int
    beta: float
    temperature: float
    top_p: float
    top_k: int
    max_completion: int
    warmup_steps: int
    schedule: str
    weight_decay: float
    max_grad_norm: float
    loss_type: str
    scale_rewards: str
    iterations: int
    rewards: str
    max_pixels: int | None
    dev_every: int
    bf16: bool
    reward_parts: tuple[str, ...] = ()
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class VllmSettings:
    """vLLM for the rollouts of SC-GRPO.

    Attributes:
        mode: "server" (`trl vllm-serve`, a process with its own GPU) or "colocate" (in the training processes).
        url: where the server listens.
        memory: share of a GPU's memory that vLLM takes where it is colocated.
    """

    mode: Literal["server", "colocate"]
    url: str = "http://localhost:8000"
    memory: float = 0.3


# ---------------------------------------------------------------------------------------------- data


def _with_pictures(table: list[dict[str, Any]], max_pixels: int | None) -> Dataset:
    """The table as a data set whose `images`, paths, are opened as everywhere when they are read, and made smaller."""

    def opened(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return rows | {"images": [[shrink(open_image(path), max_pixels) for path in group] for group in rows["images"]]}

    return Dataset.from_list(table).with_transform(opened)


def pa_sft_dataset(rows: list[dict[str, Any]], end: str = "", max_pixels: int | None = None) -> Dataset:
    """Rows of pa_sft.json as prompt + completion + images: only then does TRL keep the loss off the prompt.

    The completion is the last turn. `end` closes it, for models whose chat template does not (`closing_mark`).
    """
    table = []
    for row in (checked_row(row, "pa_sft") for row in rows):
        *prompt, answer = row["messages"]
        completion = [answer | {"content": answer["content"] + end}]
        table.append({"images": row["images"], "prompt": prompt, "completion": completion})
    return _with_pictures(table, max_pixels)


def closing_mark(processor: ProcessorMixin) -> str:
    """The end-of-sequence token if the model's chat template leaves it out (LLaVA-1.5's does), else nothing.

    A model that never sees the end of an answer does not learn to stop.
    """
    turns = [{"role": role, "content": [{"type": "text", "text": "word"}]} for role in ("user", "assistant")]
    end: str = processor.tokenizer.eos_token
    return "" if processor.apply_chat_template(turns).rstrip().endswith(end) else end


def alternate_labels(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows of sc_grpo.json in an order drawn by the seed, normal and defective ones spread evenly over it.

    A step has few questions. If most of them happen to be normal, it pushes the policy to No whatever it sees, and the
    share of Yes walks from step to step.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    labels = [parse_answer(rows[i]["solution"]).answer for i in order]
    counts = {label: labels.count(label) for label in set(labels)}
    seen: defaultdict[str | None, int] = defaultdict(int)
    places = []
    for label in labels:
        places.append((seen[label] + 0.5) / counts[label])
        seen[label] += 1
    return [rows[order[k]] for k in sorted(range(len(rows)), key=lambda k: (places[k], str(labels[k])))]


def sc_grpo_dataset(rows: list[dict[str, Any]], mode: str, max_pixels: int | None = None) -> Dataset:
    """Rows of sc_grpo.json as prompt + images + solution (read by the rewards)."""
    rewards.check_solutions([row["solution"] for row in rows], mode=mode)
    table = [
        {
            "images": row["image"],
            "prompt": [{"role": "user", "content": row["problem"]}],
            "solution": row["solution"],
        }
        for row in (checked_row(row, "sc_grpo") for row in rows)
    ]
    return _with_pictures(table, max_pixels)


# ---------------------------------------------------------------------------------------------- stages


def _common(out: Path, seed: int, settings: PaSftSettings | ScGrpoSettings, model: ModelSettings) -> dict[str, Any]:
    """Arguments both trainers share."""
    return {
        "output_dir": str(out / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": settings.dev_every,
        "save_total_limit": 2,  # should the newest be damaged, the one before it is there
        "report_to": "none",
        "logging_nan_inf_filter": False,  # StageLog tells them
        "disable_tqdm": True,
        "bf16": settings.bf16,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": model.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if model.gradient_checkpointing else None,
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": True,  # some families leave weights of the tower's end out of a picture's path
        "use_cpu": not torch.cuda.is_available(),
    }


def accumulation(whole: int, micro_batch: int, what: str, key: str) -> int:
    """Passes that make up a step of `whole` samples, `micro_batch` at a time in each process.

    Raises:
        UserError: they do not make up the step exactly.
    """
    processes = process_state().num_processes
    passes, rest = divmod(whole, micro_batch * processes)
    if rest or not passes:
        raise UserError(
            f"{key} {micro_batch} in {processes} process(es) does not divide the {whole} {what} of a step: "
            "set one that does"
        )
    return passes


def _rows_to_train_on(rows: list[dict[str, Any]], records: Path, stage: Stage) -> list[dict[str, Any]]:
    """Checked rows, whose relative paths start from the folder of the file; what one may not expect of them is said."""
    rows = checked_rows(rows, stage, records, records.parent)
    for note in row_notes(rows, stage):
        say(f"{records}: {note}")
    return rows


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
        dev_score: scores the model every `dev_every` steps. Without it the last model is kept.
        model: how its weights are loaded and which of them are trained; its name tells the released learning rate.
        force: train again what is finished; the finished stage stays until then.

    Returns:
        The model folder.

    Raises:
        UserError: the start model, a record or a picture is faulty, before anything is trained or removed.
    """
    model_dir, records, out, model = require_weights(model_dir), Path(records), Path(out), model or ModelSettings()
    rows = read_rows(records)
    wanted = fingerprint(model_dir, records, settings, model, seed=seed)
    if is_finished(out, wanted) and not force:
        return out / "model"
    rows = _rows_to_train_on(rows, records, "pa_sft")
    micro_batch = settings.micro_batch or settings.batch // process_state().num_processes
    passes = accumulation(settings.batch, micro_batch, "records", "pa_sft.micro_batch")
    processor = load_processor(model_dir)
    resume = prepare(out, wanted, force)
    known = named(model.name)
    if settings.learning_rate == RELEASED:
        settings = replace(settings, learning_rate=known.pa_sft_rate if known else 1e-5)
    config = SFTConfig(
        **_common(work_folder(out), seed, settings, model),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=passes,
        max_length=None,  # the default of 1024 would cut image tokens of the large models
        completion_only_loss=True,
        logging_steps=2,
    )
    # After the configuration: only then does DeepSpeed spread the weights as they are loaded.
    policy, family = load_for_training(model_dir, model), family_of(model_dir)
    freeze(policy, family, family.frozen if settings.frozen == RELEASED else settings.frozen)
    log = StageLog(work_folder(out), processor, dev_score, settings, ["loss", "mean_token_accuracy"])
    trainer = SFTTrainer(
        model=policy,
        args=config,
        train_dataset=pa_sft_dataset(rows, closing_mark(processor), settings.max_pixels),
        processing_class=processor,
        callbacks=[log],
        peft_config=lora_config(model_dir, model),
    )
    longest = max(len(processor.tokenizer(row["messages"][-1]["content"])["input_ids"]) for row in rows)
    facts = _facts(wanted, model_dir, settings, model, seed)
    facts |= {"grid": grid_of(rows[0]), "answer_tokens": longest + 1}  # and the mark that ends the answer
    return run_stage(trainer, out, model_dir, log, resume, facts)


def train_sc_grpo(
    model_dir: Path | str,
    records: Path | str,
    out: Path | str,
    settings: ScGrpoSettings,
    seed: int = 0,
    dev_score: DevScore | None = None,
    model: ModelSettings | None = None,
    vllm: VllmSettings | None = None,
    force: bool = False,
) -> Path:
    """Stage two: GRPO with the structured reward (paper, SC-GRPO), on-policy: each completion serves one step.

    Arguments and result as `train_pa_sft`; `records` is sc_grpo.json. Without `vllm`, transformers generates.

    Raises:
        UserError: as `train_pa_sft`, or `micro_batch` does not divide the completions of a step.
    """
    model_dir, records, out, model = require_weights(model_dir), Path(records), Path(out), model or ModelSettings()
    rows = read_rows(records)
    wanted = fingerprint(model_dir, records, settings, model, seed=seed)
    if is_finished(out, wanted) and not force:
        return out / "model"
    rows = _rows_to_train_on(rows, records, "sc_grpo")
    grid = grid_of(rows[0])
    if (known := stage_note(model_dir).get("grid", grid)) != grid:
        raise UserError(
            f"{model_dir} has learnt places of a grid of {known} x {known} cells, and those of {records} are of {grid} "
            f"x {grid}: write records with the same grid"
        )
    # A bad record, and a batch that cannot be, are told before anything old is cleared away.
    dataset = sc_grpo_dataset(alternate_labels(rows, seed), settings.rewards, settings.max_pixels)
    passes = accumulation(settings.prompts * settings.group, settings.micro_batch, "completions", "sc_grpo.micro_batch")
    resume = prepare(out, wanted, force)
    processor = load_processor(model_dir)
    config = GRPOConfig(
        **_common(work_folder(out), seed, settings, model),
        **_rollouts(vllm),
        model_init_kwargs=weights_arguments(model),
        max_steps=settings.steps or -1,
        num_train_epochs=1,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes,
        num_generations=settings.group,
        num_iterations=settings.iterations,
        beta=settings.beta,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_completion_length=settings.max_completion,
        generation_kwargs=_forbidden(model_dir, processor, vllm),
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        reward_weights=rewards.reward_weights(settings.rewards, settings.reward_parts),
        logging_steps=2,
        log_completions=False,
        shuffle_dataset=False,  # they come in a drawn order already
    )
    shown = ["reward", "rewards/accuracy_reward/mean", "completions/mean_length", "frac_reward_zero_std", "kl"]
    log = StageLog(work_folder(out), processor, dev_score, settings, shown)
    trainer = GRPOTrainer(
        model=str(model_dir),  # a path: with beta > 0 TRL loads the reference model from it
        reward_funcs=rewards.reward_functions(settings.rewards, settings.reward_parts, grid),
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[log],
        peft_config=lora_config(model_dir, model),
    )
    trainer.add_callback(StepClock(trainer))
    if family_of(model_dir).counts_pictures:
        pass_image_counts(trainer)
    for policy in (trainer.model, trainer.ref_model):
        # Both lean on the plain module and on its key-value cache.
        plain = isinstance(policy, LlavaForConditionalGeneration) and not model.gradient_checkpointing
        if plain and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            deduplicate_images(policy.model.vision_tower)
            share_prefix(policy)
    facts = _facts(wanted, model_dir, settings, model, seed) | {"vllm": asdict(vllm) if vllm else None}
    facts |= {"grid": grid, "answer_tokens": settings.max_completion}
    return run_stage(trainer, out, model_dir, log, resume, facts)


def _forbidden(model_dir: Path, processor: ProcessorMixin, vllm: VllmSettings | None) -> dict[str, Any]:
    """Generation settings that keep image marks out of the completions."""
    if vllm is None:
        return {"suppress_tokens": image_token_ids(model_dir, processor)}
    return {"bad_words": list(family_of(model_dir).image_marks)}


def _rollouts(vllm: VllmSettings | None) -> dict[str, Any]:
    """Arguments of GRPOConfig that hand generation to vLLM; none where transformers generates."""
    if vllm is None:
        return {}
    own = {"vllm_server_base_url": vllm.url} if vllm.mode == "server" else {"vllm_gpu_memory_utilization": vllm.memory}
    return {"use_vllm": True, "vllm_mode": vllm.mode, "vllm_max_model_length": VLLM_LENGTH, **own}


def _facts(wanted: str, model_dir: Path, settings: Any, model: ModelSettings, seed: int) -> dict[str, Any]:
    """What stage.json says. The folder of a hub model is named after the commit that was loaded."""
    said = {"fingerprint": wanted, "settings": asdict(settings), "model": asdict(model), "seed": seed}
    if (model_dir.parent / "revision.json").exists():
        said["start"] = {"commit": model_dir.name, "repository": model_dir.parent.name}
    return said
