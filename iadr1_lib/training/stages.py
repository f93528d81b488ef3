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
import time
import zipfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from iadr1_lib.errors import UserError
from iadr1_lib.files import raise_if_full, read_object, write_json
from iadr1_lib.models import ModelSettings, load_model
from iadr1_lib.training.saving import export_merged, part_to_save, print_once, process_state, save_model
from iadr1_lib.training.settings import StageSettings
from iadr1_lib.training.stage_log import ADVICE, StageLog, write_log

_PARTS = ("checkpoints", "model", "adapter", "best.json", "log.csv", "begun.json", "stage.json")  # stage.json last


def fingerprint(model_dir: Path, records: Path, settings: StageSettings, model: ModelSettings, seed: int) -> str:
    """Hash of what a stage is made from: weights, records, settings, seed.

    Not of the pictures that records name, nor of code and library versions: after a change there, use --force. How a
    step is shared among processes and passes does not count.
    """
    digest = hashlib.sha256()
    for file in sorted(model_dir.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    digest.update(records.read_bytes())
    values = asdict(settings) | {"step_size": settings.step_size(process_state().num_processes)}
    del values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
    digest.update(json.dumps([values, asdict(model), seed], sort_keys=True).encode())
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


def run_stage(
    trainer: Any, folder: StageFolder, model_dir: Path, log: StageLog, resume: str | None, facts: dict[str, Any]
) -> Path:
    """Train to the end, save the model and stage.json, put all in place; returns the model's folder.

    Raises:
        UserError: the disk is full; a number is not finite; or one process would have to make a dev check with only
            its shard of the weights, and would wait for the others for ever.
    """
    state, work = process_state(), folder.work
    adapted, sharded = part_to_save(trainer.model) == "adapter", trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if sharded and log.dev_score and state.num_processes > 1:
        raise UserError(
            "the dev check is made by one process, which has only a share of the weights with this engine: train with "
            "--engine single or ddp, or in a run folder without world/"
        )
    if not (adapted or sharded):
        # The trainer would load a checkpoint by the model's own names of weights, but save_pretrained writes those of
        # published models: for Llava none matches, and the run would start again with a mere warning.
        trainer._load_from_checkpoint = lambda checkpoint: trainer.model.load_state_dict(
            load_model(checkpoint, "cpu")[0].state_dict()
        )
    trainer.remove_callback(PrinterCallback)  # StageLog prints instead, and less often
    _train(trainer, work, resume)
    if not log.keeps_best and (sharded or state.is_main_process):
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_model(model, log.processor, work / part_to_save(model), trainer.save_model if sharded else None)
    if state.is_main_process:
        if adapted:
            export_merged(model_dir, work / "adapter", log.processor, work / "model")
        write_log(trainer.state.log_history, work / "log.csv")
        facts |= {"seconds": round(time.time() - log.start, 1), "steps": trainer.state.global_step}
        write_json(work / "stage.json", facts | {"processes": state.num_processes})
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        folder.put_in_place()
    state.wait_for_everyone()
    return folder.model


def _train(trainer: Any, work: Path, resume: str | None) -> None:
    """Train to the end; a full disk and probabilities that are not finite become a UserError."""
    if resume:
        _let_torch_load_to_cpu_0()
    full = f"could not write a checkpoint in {work}; free some disk space and run the stage again"
    try:
        trainer.train(resume_from_checkpoint=resume)
    except SafetensorError as error:
        raise UserError(f"{full} ({error})") from error
    except OSError as error:
        raise_if_full(error, work)
        raise
    except RuntimeError as error:
        text = str(error)
        if "inline_container" in text or "PytorchStreamWriter" in text:  # torch.save on a full disk
            raise UserError(full) from error
        # What torch.multinomial says of weights that are no numbers; on a GPU only an assertion fails there.
        if "probability tensor" not in text and "device-side assert" not in text:
            raise
        step = trainer.state.global_step + 1
        raise UserError(f"the model's probabilities are not numbers at step {step} of {work}: {ADVICE}") from error


@cache
def _let_torch_load_to_cpu_0() -> None:
    """Each of several processes on a CPU calls its device "cpu:0", which torch.load does not know by itself."""

    def restore(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(100, lambda storage: None, restore)


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
