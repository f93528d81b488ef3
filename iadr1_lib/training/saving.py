"""Models on the disk, written by one of several processes while the others wait."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from iadr1_lib.errors import UserError
from iadr1_lib.models import load_model


def process_state() -> PartialState:
    """How many processes train, and which of them this is. Without a GPU they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def print_once(text: str) -> None:
    """Print in the first process."""
    if process_state().is_main_process:
        print(text, flush=True)


def part_to_save(model: Any) -> str:
    """ "adapter" for a model with LoRA, of which only the adapter is saved while it trains; else "model"."""
    return "adapter" if hasattr(model, "peft_config") else "model"


def save_model(
    model: PreTrainedModel, processor: ProcessorMixin, folder: Path, save: Callable[[str], None] | None = None
) -> None:
    """Write beside, then swap: a full disk or a kill leaves the old model whole.

    Args:
        save: writes the weights into the folder it is given; by default `model.save_pretrained`. It is called in every
            process, since a model that is sharded over several must be gathered.

    Raises:
        UserError: the model could not be written.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    state = process_state()
    if state.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    state.wait_for_everyone() if save else None
    try:
        (save or model.save_pretrained)(str(temporary))
        if state.is_main_process:
            processor.save_pretrained(temporary)
    except (OSError, SafetensorError) as error:  # safetensors raises the latter on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"could not write {folder} ({error}); free some disk space and run the stage again") from error
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    state.wait_for_everyone() if save else None


def export_merged(base: Path, adapter: Path, processor: ProcessorMixin, out: Path) -> None:
    """Merge a LoRA adapter into the model it was trained on and write a plain model folder.

    The base is loaded again in its own precision even if it was trained in 4 bits, so that no rounding is merged in;
    and on the CPU, since the trained model still fills the GPU.
    """
    from peft import PeftModel

    model, _ = load_model(base, "cpu")
    save_model(PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(), processor, out)
