"""PA-SFT and SC-GRPO as thin set-ups of TRL's trainers; a stage as a folder.

In come a model folder, records (pa_sft.json or sc_grpo.json) and the settings of a profile; out comes a stage folder
with the trained model, its log and stage.json. Begin with `trainers`; in `dataset` a record becomes a training row.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iadr1_lib.training.launch import VLLM_LENGTH, EngineSettings, require_vllm
from iadr1_lib.training.settings import PaSftSettings, ScGrpoSettings

if TYPE_CHECKING:
    from iadr1_lib.training.dataset import pa_sft_dataset, sc_grpo_dataset
    from iadr1_lib.training.plan import Plan, PlanSettings, settings_of
    from iadr1_lib.training.stages import stage_note
    from iadr1_lib.training.trainers import train_pa_sft, train_sc_grpo

__all__ = [
    "VLLM_LENGTH",
    "EngineSettings",
    "PaSftSettings",
    "Plan",
    "PlanSettings",
    "ScGrpoSettings",
    "pa_sft_dataset",
    "require_vllm",
    "sc_grpo_dataset",
    "settings_of",
    "stage_note",
    "train_pa_sft",
    "train_sc_grpo",
]

_NEED_TORCH = {  # loaded when they are asked for, so that what needs no torch starts at once
    "dataset": ["pa_sft_dataset", "sc_grpo_dataset"],
    "plan": ["Plan", "PlanSettings", "settings_of"],
    "stages": ["stage_note"],
    "trainers": ["train_pa_sft", "train_sc_grpo"],
}


def __getattr__(name: str) -> Any:
    for module, names in _NEED_TORCH.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
