"""PA-SFT and SC-GRPO as thin set-ups of TRL's trainers; a stage as a folder."""

from iadr1_lib.training.launch import EngineSettings, require_vllm
from iadr1_lib.training.plan import Plan, PlanSettings, settings_of
from iadr1_lib.training.stages import StageLog, process_state, save_model, stage_note, work_folder
from iadr1_lib.training.trainers import (
    VLLM_LENGTH,
    PaSftSettings,
    ScGrpoSettings,
    pa_sft_dataset,
    sc_grpo_dataset,
    train_pa_sft,
    train_sc_grpo,
)

__all__ = [
    "VLLM_LENGTH",
    "EngineSettings",
    "PaSftSettings",
    "Plan",
    "PlanSettings",
    "ScGrpoSettings",
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
    "work_folder",
]
