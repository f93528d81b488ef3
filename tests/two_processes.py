"""Run by test_engines, alone or in two processes: one stage on a recorded batch of completions.

python two_processes.py STAGE MODEL RECORDS OUT STEPS
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import test_training as settings_of
from trl import GRPOTrainer

from iadr1_lib import training
from iadr1_lib.stages import process_state


def recorded(self: Any, prompt_ids: Any, images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any) -> Any:
    """The same completions for the same picture, whichever process asks: drawn from the picture's pixels."""
    group, made = self.num_generations, []
    for number, shown in enumerate(images):
        seed = int(np.asarray(shown[0], dtype=np.int64).sum()) * 10 + number % group
        made.append(np.random.default_rng(seed).integers(10, 250, size=4 + seed % 3).tolist())
    return made, None


def main(stage: str, model: str, records: str, out: str, steps: str) -> None:
    if stage == "pa_sft":
        settings: Any = replace(settings_of.SFT, epochs=1.0, micro_batch=4 // process_state().num_processes)
        training.train_pa_sft(model, records, out, settings)
        return
    advantages: list[float] = []
    score = GRPOTrainer._generate_and_score_completions

    def noted(self: Any, inputs: Any) -> Any:
        scored = score(self, inputs)
        advantages.extend(scored["advantages"].tolist())
        return scored

    GRPOTrainer._generate_single_turn = recorded
    GRPOTrainer._generate_and_score_completions = noted
    honest = training.rewards.reward_functions
    training.rewards.reward_functions = lambda *a: [settings_of.consistency_reward, *honest(*a)[1:]]
    micro_batch = 4 // process_state().num_processes
    training.train_sc_grpo(model, records, out, replace(settings_of.GRPO, steps=int(steps), micro_batch=micro_batch))
    Path(f"{out}.advantages.{process_state().process_index}.json").write_text(json.dumps(advantages))


if __name__ == "__main__":
    main(*sys.argv[1:])
