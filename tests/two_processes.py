"""Run by test_engines, alone or in several processes: one stage of a tiny model.

python two_processes.py STAGE MODEL RECORDS OUT STEPS [recorded | KILL_AT]

"recorded" replays completions that depend on the picture only; a number kills the first process with
SIGKILL at the end of that step; 0 does neither.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import test_training as settings_of
from trl import GRPOTrainer

from iadr1_lib.training import trainers
from iadr1_lib.training.stage_log import StageLog
from iadr1_lib.training.stages import process_state


def recorded(self: Any, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any) -> Any:
    """The same completions for the same picture, whichever process asks: drawn from the picture's pixels."""
    completions = []
    for number, group in enumerate(images):
        seed = int(np.asarray(group[0], dtype=np.int64).sum()) * 10 + number % self.num_generations
        completions.append(np.random.default_rng(seed).integers(10, 250, size=4 + seed % 3).tolist())
    return completions, None


def note_advantages(advantages: list[float]) -> None:
    """Let GRPOTrainer add the advantages of this process's completions to the list."""
    score = GRPOTrainer._generate_and_score_completions

    def noted(self: Any, inputs: Any) -> Any:
        scored = score(self, inputs)
        advantages.extend(scored["advantages"].tolist())
        return scored

    GRPOTrainer._generate_and_score_completions = noted


def kill_at(step: int) -> None:
    """Kill the first process at the end of a step, before anything of that step is saved."""
    on_step_end = StageLog.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGKILL)
        on_step_end(self, args, state, control, **kwargs)

    StageLog.on_step_end = killed  # type: ignore[method-assign]


def main(stage: str, model: str, records: str, out: str, steps: str, what: str = "0") -> None:
    if what.isdigit() and int(what):
        kill_at(int(what))
    processes = process_state().num_processes
    if stage == "pa_sft":
        sft = replace(settings_of.SFT.in_processes(processes, planned=1), num_train_epochs=int(steps) / 3)
        trainers.train_pa_sft(model, records, out, sft)
        return
    advantages: list[float] = []
    note_advantages(advantages)
    if what == "recorded":
        GRPOTrainer._generate_single_turn = recorded
    honest = trainers.rewards.reward_functions
    trainers.rewards.reward_functions = lambda *a: [settings_of.consistency_reward, *honest(*a)[1:]]
    grpo = replace(settings_of.GRPO.in_processes(processes, planned=1), max_steps=int(steps))
    trainers.train_sc_grpo(model, records, out, grpo)
    Path(f"{out}.advantages.{process_state().process_index}.json").write_text(json.dumps(advantages))


if __name__ == "__main__":
    main(*sys.argv[1:])
