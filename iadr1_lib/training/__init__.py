"""PA-SFT and SC-GRPO as thin set-ups of TRL's trainers; a stage as a folder.

In come a model folder, records (pa_sft.json or sc_grpo.json) and the settings of a profile; out comes a stage folder
with the trained model, its log and stage.json. Begin with `trainers`, then `dataset` (a record becomes a training row).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iadr1_lib.training.launch import VLLM_LENGTH, EngineSettings, require_vllm
from iadr1_lib.training.settings import PaSftSettings, ScGrpoSettings

if TYPE_CHECKING:
    from iadr1_lib.training.dataset import pa_sft_dataset, sc_grpo_dataset
    from iadr1_lib.training.plan import Plan, PlanSettings, settings_of
    from iadr1_lib.training.saving import process_state, save_model
    from iadr1_lib.training.stage_log import StageLog
    from iadr1_lib.training.stages import StageFolder, stage_note
    from iadr1_lib.training.trainers import train_pa_sft, train_sc_grpo

_NEED_TORCH = {  # loaded when they are asked for, so that an engine starts at once
    "Plan": "plan",
    "PlanSettings": "plan",
    "StageFolder": "stages",
    "StageLog": "stage_log",
    "pa_sft_dataset": "dataset",
    "process_state": "saving",
    "save_model": "saving",
    "sc_grpo_dataset": "dataset",
    "settings_of": "plan",
    "stage_note": "stages",
    "train_pa_sft": "trainers",
    "train_sc_grpo": "trainers",
}

__all__ = [
    "VLLM_LENGTH",
    "EngineSettings",
    "PaSftSettings",
    "Plan",
    "PlanSettings",
    "ScGrpoSettings",
    "StageFolder",
    "StageLog",
    "pa_sft_dataset",
    "process_state",
    "require_vllm",
    "save_model",
    "sc_grpo_dataset",
    "settings_of",
    "stage_note",
    "train_pa_sft",
    "train_sc_grpo",
]


def __getattr__(name: str) -> Any:
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
