"""A training stage as a folder: `model/`, `adapter/` (with LoRA), `log.csv`, `best.json`, `stage.json`.

A finished stage whose inputs have not changed is used again. A stage trains in `unfinished/` and takes the place of an
older one only when it is whole; one that was killed goes on from the last of `unfinished/checkpoints/`. Of several
processes the first one writes, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_utils import get_last_checkpoint

from iadr1_lib.data import content_hash, pictures_of
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_object, write_json
from iadr1_lib.models import ModelSettings, load_model
from iadr1_lib.records import read_rows
from iadr1_lib.training.settings import SHARING, StageSettings

_PARTS = ("checkpoints", "model", "adapter", "best.json", "log.csv", "begun.json", "stage.json")  # stage.json last


def process_state() -> PartialState:
    """How many processes train, and which of them this is. Without a GPU they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def print_once(text: str) -> None:
    """Print in the first process."""
    if process_state().is_main_process:
        print(text, flush=True)


@dataclass(frozen=True)
class Inputs:
    """What a stage is made from: the model that it starts from, records, settings, seed."""

    model_dir: Path
    records: Path
    settings: StageSettings
    model: ModelSettings
    seed: int

    def facts(self) -> dict[str, Any]:
        """What stage.json says of them. The folder of a hub model is named after the commit that was loaded."""
        facts = {"settings": asdict(self.settings), "model": asdict(self.model), "seed": self.seed}
        if (self.model_dir.parent / "revision.json").exists():
            facts["start"] = {"commit": self.model_dir.name, "repository": self.model_dir.parent.name}
        return facts


def fingerprint(inputs: Inputs) -> str:
    """Hash of what a stage is made from: weights, records with their pictures, settings, seed.

    Not of code and library versions: after a change there, use --force. How a step is shared among processes and passes
    does not count, nor does checkpointing: another card may ask for another. Nor does where the pictures lie: a run
    that was copied to another machine keeps its stages.
    """
    digest = hashlib.sha256()
    for file in sorted(inputs.model_dir.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    for row in read_rows(inputs.records):
        said = {key: row[key] for key in row if key not in ("image", "images")} if isinstance(row, dict) else row
        digest.update(json.dumps(said, sort_keys=True).encode())
        for image in pictures_of([row], inputs.records.parent):
            digest.update(content_hash(image).encode() if image.is_file() else b"missing")
    step_size = inputs.settings.step_size(process_state().num_processes)
    values = {key: value for key, value in asdict(inputs.settings).items() if key not in (*SHARING, "report_to")}
    model = asdict(inputs.model) | {"gradient_checkpointing": False}
    digest.update(json.dumps([values | {"step_size": step_size}, model, inputs.seed], sort_keys=True).encode())
    return digest.hexdigest()


class StageFolder:
    """The folder of one stage.

    Attributes:
        fingerprint: of the inputs that the stage is wanted for.
        work: where it is trained.
        checkpoints: of the trainer, in `work`.
        model: where its model lies in the end.
    """

    def __init__(self, path: Path, fingerprint: str = ""):
        self.path, self.fingerprint = path, fingerprint
        self.work, self.model = path / "unfinished", path / "model"
        self.checkpoints = self.work / "checkpoints"

    def is_finished(self) -> bool:
        """Whether the stage is there, made from the inputs with this fingerprint."""
        state = process_state()
        if state.is_main_process:
            self.put_in_place()  # a kill may have interrupted that
        state.wait_for_everyone()
        return any(self.model.glob("*.safetensors")) and self._is_made_from_these(self.path / "stage.json")

    def prepare(self, force: bool) -> str | None:
        """Make the folder to work in; returns the checkpoint to go on from, or None.

        Unfinished work from other inputs is removed, with `force` all of it. A finished stage stays.
        """
        state = process_state()
        if state.is_main_process:
            begun = self.work / "begun.json"
            if force or not self._is_made_from_these(begun) or not self._whole_checkpoints():
                _remove(self.work)
                write_json(begun, {"fingerprint": self.fingerprint})
        state.wait_for_everyone()
        return get_last_checkpoint(str(self.checkpoints)) if self.checkpoints.is_dir() else None

    def put_in_place(self) -> None:
        """Let a stage that was trained to its end take the place of an older one.

        After a kill in between, the next call goes on: the old stage.json is removed last, the new one moved last.
        """
        if not (self.work / "stage.json").exists():
            return
        if (self.path / "stage.json").exists():
            for part in _PARTS:
                _remove(self.path / part)
        for part in _PARTS:
            if (self.work / part).exists():
                _remove(self.path / part)
                (self.work / part).rename(self.path / part)
        _remove(self.work)

    def _is_made_from_these(self, note: Path) -> bool:
        values = read_object(note, {"fingerprint": ""}, fingerprint=str)
        return bool(values["fingerprint"] == self.fingerprint)

    def _whole_checkpoints(self) -> list[Path]:
        """The checkpoints that can be loaded; damaged ones are named and removed."""
        whole = []
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if fault := checkpoint_fault(checkpoint):
                print_once(f"{checkpoint} is left out: {fault}; the one before it is used, if there is one")
                shutil.rmtree(checkpoint)
            else:
                whole.append(checkpoint)
        return whole


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def checkpoint_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, without reading their content; None if they are whole."""
    if not (checkpoint / "trainer_state.json").exists():  # written last: the kill came while saving
        return "it was not saved to its end"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        for file in checkpoint.rglob("*.safetensors"):
            with safe_open(file, "pt") as weights:
                weights.keys()
        for file in (*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth"), *checkpoint.rglob("*.bin")):
            zipfile.ZipFile(file).close()  # torch writes zip archives, whose table of contents stands at the end
    except (ValueError, OSError, SafetensorError, zipfile.BadZipFile) as error:
        return f"a file is damaged ({error})"
    return None


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


def stage_note(model_dir: Path | str) -> dict[str, Any]:
    """The stage.json beside a stage's model; empty for a model that no stage of ours made.

    Raises:
        UserError: its grid or its length of answers is not a sensible number.
    """
    path = Path(model_dir).absolute().parent / "stage.json"
    note: dict[str, Any] = read_object(path, {})
    for key, most in (("grid", 5), ("answer_tokens", sys.maxsize)):
        if key in note and not (type(note[key]) is int and 1 <= note[key] <= most):
            raise UserError(f"{path} has the {key} {note[key]!r}, which no stage writes: train the stage again")
    return note
