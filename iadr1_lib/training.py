"""PA-SFT and SC-GRPO: thin set-ups of TRL's SFTTrainer and GRPOTrainer.

A stage is a folder: `model/` (loads with `from_pretrained`), `log.csv`, `checkpoints/`, `stage.json`. A stage whose
inputs have not changed is used again; one that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Image, Sequence, disable_progress_bars
from safetensors import SafetensorError
from transformers import (
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PrinterCallback,
    ProcessorMixin,
    TrainerCallback,
)
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from iadr1_lib import rewards
from iadr1_lib.answer import parse_answer
from iadr1_lib.models import (
    load_model,
    load_processor,
    read_each_prompt_once,
    require_weights,
    see_each_picture_once,
)
from iadr1_lib.records import read_rows
from iadr1_lib.runs import UserError, write_json

disable_progress_bars()

DevScore = Callable[[PreTrainedModel, ProcessorMixin], float]


@dataclass(frozen=True)
class PaSftSettings:
    """Settings of PA-SFT; the profiles say where each value comes from.

    `keep` says which model a stage leaves behind: the last, or the best of its checks on dev.
    """

    learning_rate: float
    epochs: float
    batch: int
    warmup_steps: int
    weight_decay: float
    schedule: str
    max_grad_norm: float
    dev_every: int
    bf16: bool
    freeze_tower: bool
    keep: Literal["best", "last"] = "best"


@dataclass(frozen=True)
class ScGrpoSettings:
    """Settings of SC-GRPO. `prompts` questions with `group` completions each make one step.

    `micro_batch` completions go through the backward pass at a time; it changes memory, not the result.
    `rewards` is the mode of the rewards, `reward_parts` the names of those that are paid (none: all of the mode's).
    `keep` is as in PaSftSettings.
    """

    learning_rate: float
    steps: int
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
    dev_every: int
    bf16: bool
    reward_parts: tuple[str, ...] = ()
    keep: Literal["best", "last"] = "best"


# ---------------------------------------------------------------------------------------------- data


def pa_sft_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """Rows of pa_sft.json as prompt + completion + images: only then does TRL keep the loss off the prompt."""
    table = [
        {
            "images": row["images"] if isinstance(row["images"], list) else [row["images"]],
            "prompt": [{"role": "user", "content": row["messages"][0]["content"].replace("<image>", "").strip()}],
            "completion": [{"role": "assistant", "content": row["messages"][1]["content"]}],
        }
        for row in rows
    ]
    return Dataset.from_list(table).cast_column("images", Sequence(Image()))


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


def sc_grpo_dataset(rows: list[dict[str, Any]], mode: str) -> Dataset:
    """Rows of sc_grpo.json as prompt + images + solution (read by the rewards)."""
    rewards.check_solutions([row["solution"] for row in rows], mode=mode)
    table = [
        {
            "images": row["image"] if isinstance(row["image"], list) else [row["image"]],
            "prompt": [{"role": "user", "content": row["problem"].replace("<image>", "").strip()}],
            "solution": row["solution"],
        }
        for row in rows
    ]
    return Dataset.from_list(table).cast_column("images", Sequence(Image()))


# ---------------------------------------------------------------------------------------------- stages


def _fingerprint(model_dir: Path, records: Path, settings: Any, seed: int) -> str:
    """Hash of what a stage is made from: weights, records, settings, seed.

    Not of the pictures that records name, nor of code and library versions: after a change there, use --force.
    """
    digest = hashlib.sha256()
    for file in sorted(model_dir.glob("*.safetensors")):
        digest.update(file.read_bytes())
    digest.update(records.read_bytes())
    digest.update(json.dumps([asdict(settings), seed], sort_keys=True).encode())
    return digest.hexdigest()


def stage_is_finished(out: Path, fingerprint: str) -> bool:
    """Whether `out` holds a finished stage made from the same inputs."""
    record = out / "stage.json"
    if not record.exists() or not any((out / "model").glob("*.safetensors")):
        return False
    return json.loads(record.read_text())["fingerprint"] == fingerprint


def _prepare(out: Path, fingerprint: str) -> str | None:
    """Make the stage folder; the checkpoint to go on from, or None. Work from other inputs is cleared away."""
    begun = out / "begun.json"
    if begun.exists() and json.loads(begun.read_text())["fingerprint"] == fingerprint:
        for checkpoint in (out / "checkpoints").glob("checkpoint-*"):
            if not (checkpoint / "trainer_state.json").exists():  # written last: the kill came while saving
                shutil.rmtree(checkpoint)
        last = get_last_checkpoint(str(out / "checkpoints")) if (out / "checkpoints").is_dir() else None
        if last is None:
            write_json(begun, {"fingerprint": fingerprint})
        return last
    for part in ("checkpoints", "model"):
        shutil.rmtree(out / part, ignore_errors=True)
    for part in ("best.json", "stage.json", "log.csv"):
        (out / part).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(begun, {"fingerprint": fingerprint})
    return None


def _seconds_so_far(out: Path) -> float:
    """How long a broken-off run had trained when it saved its last checkpoint."""
    seconds: float = json.loads((out / "begun.json").read_text()).get("seconds", 0.0)
    return seconds


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """The trainer's log as CSV, one line per logged step, empty where a value was not logged."""
    rows = [row for row in history if "train_runtime" not in row]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = ["step", *[k for k in keys if k != "step"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class _StageLog(TrainerCallback):
    """Writes log.csv as the run goes, prints a line every few steps, scores on dev; may keep the best model so far."""

    def __init__(
        self,
        out: Path,
        processor: ProcessorMixin,
        dev_score: DevScore | None,
        settings: PaSftSettings | ScGrpoSettings,
        show: list[str],
    ):
        self.out, self.processor, self.dev_score, self.show = out, processor, dev_score, show
        self.every = settings.dev_every
        self.keeps_best = dev_score is not None and settings.keep == "best"
        self.start = time.time() - _seconds_so_far(out)

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        begun = self.out / "begun.json"
        write_json(begun, json.loads(begun.read_text()) | {"seconds": time.time() - self.start})

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        write_log(state.log_history, self.out / "log.csv")
        if logs and state.global_step % (10 * args.logging_steps) == 0:
            values = " ".join(
                f"{k.split('/')[-2 if k.endswith('/mean') else -1]} {logs[k]:.3f}" for k in self.show if k in logs
            )
            print(
                f"step {state.global_step}/{state.max_steps} {time.time() - self.start:.0f} s {values}",
                flush=True,
            )

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        last = state.global_step == state.max_steps
        if self.dev_score is not None and (state.global_step % self.every == 0 or last):
            self.score_on_dev(model, state)

    def score_on_dev(self, model: PreTrainedModel, state: Any) -> None:
        assert self.dev_score is not None
        generator = torch.get_rng_state()
        training = model.training
        score = self.dev_score(model.eval(), self.processor)
        model.train(training)
        torch.set_rng_state(generator)  # scoring must not change the training's course
        state.log_history.append({"step": state.global_step, "dev_score": score})
        print(f"step {state.global_step}: dev score {score:.1f}", flush=True)
        if self.keeps_best:
            self.keep_if_best(model, state.global_step, score)

    def keep_if_best(self, model: PreTrainedModel, step: int, score: float) -> None:
        best_file = self.out / "best.json"
        best = json.loads(best_file.read_text()) if best_file.exists() else None
        if best is None or score > best["dev_score"]:
            _save(model, self.processor, self.out / "model")
            write_json(best_file, {"step": step, "dev_score": score})


def _save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write beside, then swap: a full disk or a kill leaves the old model whole."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk gives where weights are written
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"could not write {folder} ({error}); free some disk space and run the stage again") from error
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


class _StepClock(TrainerCallback):
    """Logs where the seconds of a step of SC-GRPO go, beside the whole, which the trainer logs as step_time."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.watch(trainer, "_generate", lambda: "generation")
        self.watch(trainer, "_calculate_rewards", lambda: "rewards")
        self.watch(
            trainer, "_get_per_token_logps_and_entropies", lambda: "policy" if torch.is_grad_enabled() else "reference"
        )
        self.watch(trainer.accelerator, "backward", lambda: "backward")

    def watch(self, owner: Any, method: str, part: Callable[[], str]) -> None:
        """Let `owner.method` add its seconds to the part that `part()` names."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part()] += time.perf_counter() - start

        setattr(owner, method, timed)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        for part, seconds in self.seconds.items():
            self.trainer._metrics["train"][f"seconds/{part}"].append(seconds)
        self.seconds.clear()


def _run_stage(
    trainer: Any, out: Path, fingerprint: str, settings: Any, seed: int, resume: str | None, best_kept: bool
) -> Path:
    start = time.time() - _seconds_so_far(out)
    # The trainer would load a checkpoint by the model's names of weights, but save_pretrained writes those of published
    # models: for Llava nothing would match, and the run would go on from the start model with a mere warning.
    trainer._load_from_checkpoint = lambda folder: trainer.model.load_state_dict(load_model(folder)[0].state_dict())
    trainer.remove_callback(PrinterCallback)  # _StageLog prints instead, and less often
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SafetensorError as error:
        raise UserError(
            f"could not write a checkpoint in {out} ({error}); free some disk space and run the stage again"
        ) from error
    if not best_kept:
        _save(trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class, out / "model")
    write_log(trainer.state.log_history, out / "log.csv")
    facts = {"fingerprint": fingerprint, "settings": asdict(settings), "seed": seed}
    facts |= {"seconds": round(time.time() - start, 1), "steps": trainer.state.global_step}
    write_json(out / "stage.json", facts)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return out / "model"


def _common(out: Path, seed: int, settings: PaSftSettings | ScGrpoSettings) -> dict[str, Any]:
    """Arguments both trainers share."""
    return {
        "output_dir": str(out / "checkpoints"),
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": settings.dev_every,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": settings.bf16,
        "learning_rate": settings.learning_rate,
        "warmup_steps": settings.warmup_steps,
        "lr_scheduler_type": settings.schedule,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "gradient_checkpointing": False,  # recomputes every activation; the mini VLM's fit in memory
        "dataloader_num_workers": 0,
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
    }


def _accumulation(settings: ScGrpoSettings) -> int:
    """Micro-batches per step; UserError if they do not make up the step exactly."""
    completions = settings.prompts * settings.group
    accumulation, rest = divmod(completions, settings.micro_batch)
    if rest or not accumulation:
        raise UserError(
            f"sc_grpo.micro_batch {settings.micro_batch} does not divide the {completions} completions of a step "
            f"(prompts {settings.prompts} x group {settings.group}): set one that does"
        )
    return accumulation


def train_pa_sft(
    model_dir: Path | str,
    records: Path | str,
    out: Path | str,
    settings: PaSftSettings,
    seed: int = 0,
    dev_score: DevScore | None = None,
) -> Path:
    """Stage one: next-token loss on the tagged answer with its reasoning (paper, PA-SFT).

    Args:
        model_dir: the model to start from.
        records: pa_sft.json.
        dev_score: scores the model every `dev_every` steps. Without it the last model is kept.

    Returns:
        The model folder.
    """
    model_dir, records, out = require_weights(model_dir), Path(records), Path(out)
    rows = read_rows(records)
    fingerprint = _fingerprint(model_dir, records, settings, seed)
    if stage_is_finished(out, fingerprint):
        return out / "model"
    resume = _prepare(out, fingerprint)
    model, processor = load_model(model_dir)
    model.model.vision_tower.requires_grad_(not settings.freeze_tower)
    config = SFTConfig(
        **_common(out, seed, settings),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch,
        max_length=None,  # the default of 1024 would cut image tokens of the large models
        completion_only_loss=True,
        logging_steps=2,
    )
    callback = _StageLog(out, processor, dev_score, settings, ["loss", "mean_token_accuracy"])
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=pa_sft_dataset(rows),
        processing_class=processor,
        callbacks=[callback],
    )
    return _run_stage(trainer, out, fingerprint, settings, seed, resume, callback.keeps_best)


def train_sc_grpo(
    model_dir: Path | str,
    records: Path | str,
    out: Path | str,
    settings: ScGrpoSettings,
    seed: int = 0,
    dev_score: DevScore | None = None,
) -> Path:
    """Stage two: GRPO with the structured reward (paper, SC-GRPO), on-policy: each completion serves one step.

    Arguments and result as `train_pa_sft`; `records` is sc_grpo.json.

    Raises:
        ValueError: a solution names neither yes nor no (its row is told), before anything is trained.
        UserError: `micro_batch` does not divide the completions of a step.
    """
    model_dir, records, out = require_weights(model_dir), Path(records), Path(out)
    rows = read_rows(records)
    fingerprint = _fingerprint(model_dir, records, settings, seed)
    if stage_is_finished(out, fingerprint):
        return out / "model"
    dataset = sc_grpo_dataset(
        alternate_labels(rows, seed), settings.rewards
    )  # a bad record is told before anything old is cleared away
    accumulation = _accumulation(settings)
    resume = _prepare(out, fingerprint)
    processor = load_processor(model_dir)
    config = GRPOConfig(
        **_common(out, seed, settings),
        model_init_kwargs={"dtype": "float32"},
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        num_generations=settings.group,
        num_iterations=settings.iterations,
        beta=settings.beta,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_completion_length=settings.max_completion,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        reward_weights=rewards.reward_weights(settings.rewards, settings.reward_parts),
        logging_steps=2,
        log_completions=False,
        shuffle_dataset=False,  # they come in a drawn order already
    )
    shown = [
        "reward",
        "rewards/accuracy_reward/mean",
        "completions/mean_length",
        "frac_reward_zero_std",
        "kl",
    ]
    callback = _StageLog(out, processor, dev_score, settings, shown)
    trainer = GRPOTrainer(
        model=str(model_dir),  # a path: with beta > 0 TRL loads the reference model from it
        reward_funcs=rewards.reward_functions(settings.rewards, settings.reward_parts),
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=[callback],
    )
    trainer.add_callback(_StepClock(trainer))
    for policy in (trainer.model, trainer.ref_model):
        if isinstance(policy, LlavaForConditionalGeneration):
            see_each_picture_once(policy.model.vision_tower)
            read_each_prompt_once(policy)
    return _run_stage(trainer, out, fingerprint, settings, seed, resume, callback.keeps_best)
