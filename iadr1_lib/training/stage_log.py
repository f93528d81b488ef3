"""What watches a stage while it trains: its log, the dev checks, the best model so far, numbers that are not finite."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_object, write_json
from iadr1_lib.training.settings import StageSettings
from iadr1_lib.training.speed import Speed
from iadr1_lib.training.stages import part_to_save, process_state, save_model

DevScore = Callable[[PreTrainedModel, ProcessorMixin], float]
ADVICE = (
    "nothing was changed by it, and the last checkpoint is kept; lower the learning rate, or look for a broken record, "
    "then run the stage again"
)
LATE_ADVICE = (
    "lower the learning rate, or look for a broken record; then remove the newest checkpoint and run the stage again"
)


class StageLog(TrainerCallback):
    """Writes log.csv as the run goes, prints a line every few steps, scores on dev; may keep the best model so far.

    Args:
        work: the folder that the stage is trained in.
        dev_score: scores the model every `settings.save_steps` steps and at the end, in the first process.
        shown: names of logged values to print.
        speed: measures what the log says of it.
    """

    def __init__(
        self,
        work: Path,
        processor: ProcessorMixin,
        dev_score: DevScore | None,
        settings: StageSettings,
        shown: Sequence[str],
        speed: Speed,
    ):
        self.work, self.processor, self.dev_score, self.shown = work, processor, dev_score, shown
        self.speed, self.step_ended = speed, 0.0
        self.every = settings.save_steps
        self.keeps_best = dev_score is not None and settings.keep == "best"
        self.start = time.time()

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        # A run that goes on counts the seconds up to its last checkpoint.
        self.start = time.time() - read_object(self.work / "begun.json").get("seconds", 0.0)
        # SFTTrainer counts tokens from where it goes on, GRPOTrainer from the beginning.
        self.speed.begin(state.num_input_tokens_seen, state.global_step)

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            begun = self.work / "begun.json"
            write_json(begun, read_object(begun) | {"seconds": time.time() - self.start})
        self.speed.pause(self.step_ended)

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if not state.is_world_process_zero:
            return
        logs = logs or {}
        if state.log_history and "num_tokens" in logs:
            state.log_history[-1] |= self.speed.measure(logs, state.global_step)
        write_log(state.log_history, self.work / "log.csv")
        if any(not math.isfinite(logs.get(key, 0.0)) for key in ("loss", "grad_norm")):
            # Where gradients are sharded, on_pre_optimizer_step sees none of them.
            raise UserError(f"the loss is not a number at step {state.global_step} of {self.work}: {LATE_ADVICE}")
        if logs and state.global_step % (10 * args.logging_steps) == 0:
            names = {key: key.removesuffix("/mean").split("/")[-1] for key in self.shown}
            values = " ".join(f"{names[key]} {logs[key]:.3f}" for key in self.shown if key in logs)
            seconds = time.time() - self.start
            print(f"step {state.global_step}/{state.max_steps} {seconds:.0f} s {values}", flush=True)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise UserError(f"the gradient is not a number at step {state.global_step + 1} of {self.work}: {ADVICE}")

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        last, self.step_ended = state.global_step == state.max_steps, time.perf_counter()
        if self.dev_score is None or not (state.global_step % self.every == 0 or last):
            return
        if state.is_world_process_zero:
            self._score_on_dev(self.dev_score, model, state)
        process_state().wait_for_everyone()
        self.speed.pause(self.step_ended)
        self.step_ended = time.perf_counter()

    def _score_on_dev(self, dev_score: DevScore, model: PreTrainedModel, state: Any) -> None:
        training = model.training
        # The check must not change the course of the training.
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            score = dev_score(model.eval(), self.processor)
        model.train(training)
        state.log_history.append({"step": state.global_step, "dev_score": score})
        print(f"step {state.global_step}: dev score {score:.1f}", flush=True)
        if not self.keeps_best:
            return
        best = read_object(self.work / "best.json", dev_score=(int, float))
        if best is None or score > best["dev_score"]:
            save_model(model, self.processor, self.work / part_to_save(model))
            write_json(self.work / "best.json", {"step": state.global_step, "dev_score": score})


class StepClock(TrainerCallback):
    """Logs `seconds/writing` of SC-GRPO: from the start of a step until its completions are there to be rewarded.

    TRL calls the rewards after generation and the reference model's log-probabilities, and before the gradient. It logs
    the whole step as step_time.
    """

    begun = 0.0

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.begun = time.perf_counter()

    def watch(self, function: Callable[..., list[float]]) -> Callable[..., list[float]]:
        """A reward function, the first that TRL calls, which also logs the time."""

        @wraps(function)
        def reward(log_metric: Callable[[str, float], None], **kwargs: Any) -> list[float]:
            log_metric("seconds/writing", time.perf_counter() - self.begun)
            return function(log_metric=log_metric, **kwargs)

        return reward


class Thaw(TrainerCallback):
    """Trains `parameters` only after `share` of the steps; never those that are not trained at all (below an adapter).

    The trainer's optimizer, which is made before, leaves alone what has no gradient.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], share: float):
        self.parameters, self.share = parameters, share

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.parameters = [parameter for parameter in self.parameters if parameter.requires_grad]

    def on_step_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        for parameter in self.parameters:
            parameter.requires_grad_(state.global_step >= self.share * state.max_steps)


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """The trainer's log as CSV, one line per logged step, empty where a value was not logged."""
    rows = [row for row in history if "train_runtime" not in row]
    keys = dict.fromkeys(["step", *(key for row in rows for key in row)])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(keys), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
