"""PA-SFT and SC-GRPO as thin set-ups of TRL's trainers; a stage as a folder.

In come a model folder, records (pa_sft.json or sc_grpo.json) and the settings of a profile; out comes a stage folder
with the trained model, its log and stage.json. Begin with `trainers`; in `dataset` a record becomes a training row.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iadr1_lib.training.launch import VLLM_LENGTH, EngineSettings, require_vllm
from iadr1_lib.training.settings import PaSftSettings, ScGrpoSettings

if TYPE_CHECKING:
    from iadr1_lib.training.dataset import alternate_labels, eos_suffix, pa_sft_dataset, sc_grpo_dataset
    from iadr1_lib.training.stages import stage_note
    from iadr1_lib.training.trainers import train_pa_sft, train_sc_grpo

_NEED_TORCH = {
    "alternate_labels": "dataset",
    "eos_suffix": "dataset",
    "pa_sft_dataset": "dataset",
    "sc_grpo_dataset": "dataset",
    "stage_note": "stages",
}
_NEED_TORCH |= {"train_pa_sft": "trainers", "train_sc_grpo": "trainers"}


def __getattr__(name: str) -> Any:  # torch is loaded with what needs it
    if name in _NEED_TORCH:
        return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
