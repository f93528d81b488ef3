"""A training stage as a folder, whatever trains in it: taken up again, watched, saved whole or not at all.

`model/` (loads with `from_pretrained`), `adapter/` (with LoRA), `log.csv`, `stage.json`. A stage whose inputs have not
changed is used again. What is trained lies in `unfinished/` until it is whole, and only then takes the place of an
older stage; one that was killed goes on from the last of its `checkpoints/` there. With several processes the first one
writes, and the others wait for it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import sys
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from iadr1_lib.errors import UserError
from iadr1_lib.files import raise_if_full, read_object, write_json
from iadr1_lib.models import load_model

DevScore = Callable[[PreTrainedModel, ProcessorMixin], float]
_ADVICE = (
    "nothing was changed by it, and the last checkpoint is kept; lower the learning rate, or look for a broken record, "
    "then run the stage again"
)
_LATE_ADVICE = (
    "lower the learning rate, or look for a broken record; then remove the newest checkpoint and run the stage again"
)
_PARTS = ("checkpoints", "model", "adapter", "best.json", "log.csv", "begun.json", "stage.json")


def _restore_to_cpu(storage: Any, location: str) -> Any:
    return storage if location.startswith("cpu:") else None


# Of several processes on a CPU each calls its device "cpu:0", which torch.load does not know: no checkpoint would load.
torch.serialization.register_package(100, lambda storage: None, _restore_to_cpu)


def process_state() -> PartialState:
    """How many processes train, and which of them this is. Without a GPU they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def say(text: str) -> None:
    """Print in the first process."""
    if process_state().is_main_process:
        print(text, flush=True)


# ---------------------------------------------------------------------------------------------- beginning


def fingerprint(model_dir: Path, records: Path, *settings: Any, seed: int) -> str:
    """Hash of what a stage is made from: weights, records, settings, seed.

    Not of the pictures that records name, nor of code and library versions: after a change there, use --force.
    """
    digest = hashlib.sha256()
    for file in sorted(model_dir.glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    digest.update(records.read_bytes())
    digest.update(json.dumps([*map(asdict, settings), seed], sort_keys=True).encode())
    return digest.hexdigest()


def work_folder(out: Path) -> Path:
    """Where a stage is trained before it takes its place in `out`."""
    return out / "unfinished"


def is_finished(out: Path, wanted: str) -> bool:
    """Whether `out` holds a finished stage with the fingerprint `wanted`."""
    state = process_state()
    if state.is_main_process:
        _put_in_place(out)  # a kill may have come in between
    state.wait_for_everyone()
    if not any((out / "model").glob("*.safetensors")):
        return False
    return bool(read_object(out / "stage.json", {"fingerprint": ""}, fingerprint=str)["fingerprint"] == wanted)


def prepare(out: Path, wanted: str, anew: bool = False) -> str | None:
    """Make the folder to work in; the checkpoint to go on from, or None. Unfinished work from other inputs (all of it,
    where the stage is to be trained anew) is cleared away, a finished stage is not."""
    state, work = process_state(), work_folder(out)
    if state.is_main_process:
        if anew:
            _remove(work)
        _make_ready(work, wanted)
    state.wait_for_everyone()
    return get_last_checkpoint(str(work / "checkpoints")) if (work / "checkpoints").is_dir() else None


def _make_ready(work: Path, wanted: str) -> None:
    begun = work / "begun.json"
    if read_object(begun, {"fingerprint": ""}, fingerprint=str)["fingerprint"] == wanted:
        for checkpoint in (work / "checkpoints").glob("checkpoint-*"):
            fault = checkpoint_fault(checkpoint)
            if fault:
                print(
                    f"{checkpoint} is left out: {fault}; the one before it is used, if there is one",
                    flush=True,
                )
                shutil.rmtree(checkpoint)
        if any((work / "checkpoints").glob("checkpoint-*")):
            return
    _remove(work)
    write_json(begun, {"fingerprint": wanted})


def _put_in_place(out: Path) -> None:
    """Let a stage that was trained to its end take the place of an older one; after a kill in between, go on."""
    work, ready = work_folder(out), out / "finished"
    if (work / "stage.json").exists():
        for part in _PARTS:
            _remove(out / part)
        work.rename(ready)
    if ready.exists():
        for part in _PARTS:  # stage.json comes last
            if (ready / part).exists():
                (ready / part).rename(out / part)
        _remove(ready)


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


def _seconds_so_far(out: Path) -> float:
    """How long a broken-off run had trained when it saved its last checkpoint."""
    seconds: float = read_object(out / "begun.json").get("seconds", 0.0)
    return seconds


# ---------------------------------------------------------------------------------------------- watching


def write_log(history: list[dict[str, Any]], path: Path) -> None:
    """The trainer's log as CSV, one line per logged step, empty where a value was not logged."""
    rows = [row for row in history if "train_runtime" not in row]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = ["step", *[k for k in keys if k != "step"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class StageLog(TrainerCallback):
    """Writes log.csv as the run goes, prints a line every few steps, scores on dev; may keep the best model so far.

    Args:
        out: the folder that the stage is trained in.
        dev_score: scores the model every `settings.dev_every` steps, in the first process.
        settings: of the stage; `keep` says whether the best model is kept.
        show: names of logged values to print.
    """

    def __init__(
        self, out: Path, processor: ProcessorMixin, dev_score: DevScore | None, settings: Any, show: list[str]
    ):
        self.out, self.processor, self.dev_score, self.show = out, processor, dev_score, show
        self.every = settings.dev_every
        self.keeps_best = dev_score is not None and settings.keep == "best"
        self.start = time.time() - _seconds_so_far(out)

    def on_save(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            begun = self.out / "begun.json"
            write_json(begun, json.loads(begun.read_text()) | {"seconds": time.time() - self.start})

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        if not state.is_world_process_zero:
            return
        write_log(state.log_history, self.out / "log.csv")
        if any(not math.isfinite((logs or {}).get(key, 0.0)) for key in ("loss", "grad_norm")):
            # Where gradients are spread over processes, on_pre_optimizer_step sees none of them.
            raise UserError(f"the loss is not a number at step {state.global_step} of {self.out}: {_LATE_ADVICE}")
        if logs and state.global_step % (10 * args.logging_steps) == 0:
            values = " ".join(
                f"{k.split('/')[-2 if k.endswith('/mean') else -1]} {logs[k]:.3f}" for k in self.show if k in logs
            )
            print(f"step {state.global_step}/{state.max_steps} {time.time() - self.start:.0f} s {values}", flush=True)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if gradients and not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise UserError(f"the gradient is not a number at step {state.global_step + 1} of {self.out}: {_ADVICE}")

    def on_step_end(self, args, state, control, model=None, **kwargs):  # type: ignore[no-untyped-def]
        last = state.global_step == state.max_steps
        if self.dev_score is None or not (state.global_step % self.every == 0 or last):
            return
        if state.is_world_process_zero:
            self.score_on_dev(model, state)
        process_state().wait_for_everyone()

    def score_on_dev(self, model: PreTrainedModel, state: Any) -> None:
        assert self.dev_score is not None
        training = model.training
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            score = self.dev_score(model.eval(), self.processor)  # must not change the training's course
        model.train(training)
        state.log_history.append({"step": state.global_step, "dev_score": score})
        print(f"step {state.global_step}: dev score {score:.1f}", flush=True)
        if self.keeps_best:
            self.keep_if_best(model, state.global_step, score)

    def keep_if_best(self, model: PreTrainedModel, step: int, score: float) -> None:
        best_file = self.out / "best.json"
        best = read_object(best_file, dev_score=(int, float))
        if best is None or score > best["dev_score"]:
            save_model(model, self.processor, self.out / _part_saved(model))
            write_json(best_file, {"step": step, "dev_score": score})


class StepClock(TrainerCallback):
    """Logs where the seconds of a step of SC-GRPO go, beside the whole, which the trainer logs as step_time."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.watch(trainer, "_generate", lambda: "generation")
        self.watch(trainer, "_calculate_rewards", lambda: "rewards")
        self.watch(
            trainer, "_get_per_token_logps_and_entropies", lambda: "policy" if torch.is_grad_enabled() else "reference"
        )
        self.watch(trainer.accelerator, "backward", lambda: "backward")

    def watch(self, owner: Any, method: str, part: Callable[[], str]) -> None:
        """Let `owner.method` add its seconds to the part that `part()` names."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[part()] += time.perf_counter() - start

        setattr(owner, method, timed)

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        for part, seconds in self.seconds.items():
            self.trainer._metrics["train"][f"seconds/{part}"].append(seconds)
        self.seconds.clear()


# ---------------------------------------------------------------------------------------------- ending


def _is_adapted(model: Any) -> bool:
    return hasattr(model, "peft_config")


def _part_saved(model: Any) -> str:
    """ "adapter" for a model with LoRA, of which only the adapter is saved as it trains; else "model"."""
    return "adapter" if _is_adapted(model) else "model"


def save_model(
    model: PreTrainedModel, processor: ProcessorMixin, folder: Path, save: Callable[[str], None] | None = None
) -> None:
    """Write beside, then swap: a full disk or a kill leaves the old model whole.

    Args:
        save: writes the weights into the folder it is given; by default `model.save_pretrained`. Called in every
            process, since a model that is spread over several must be gathered.
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
    except (OSError, SafetensorError) as error:  # the latter is what a full disk gives where weights are written
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(f"could not write {folder} ({error}); free some disk space and run the stage again") from error
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    state.wait_for_everyone() if save else None


def export_merged(base: Path, adapter: Path, processor: ProcessorMixin, out: Path) -> Path:
    """Merge a LoRA adapter into the model it was trained on and write a plain model folder.

    The base is loaded anew in its own precision even if it was trained in 4 bits, so that no rounding is merged in; and
    on the CPU, since the trained model still fills the GPU.
    """
    from peft import PeftModel

    model, _ = load_model(base, "cpu")
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    save_model(merged, processor, out)
    return out


def run_stage(
    trainer: Any, out: Path, model_dir: Path, log: StageLog, resume: str | None, facts: dict[str, Any]
) -> Path:
    """Train to the end, save the model, write stage.json, put all in place in `out`; returns the model's folder.

    Raises:
        UserError: the disk is full, a number is none, or a dev check would have to be made by one of several processes
            that have a share of the weights each, which would wait for the others for ever.
    """
    state, work = process_state(), work_folder(out)
    start = time.time() - _seconds_so_far(work)
    adapted, sharded = _is_adapted(trainer.model), trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if sharded and log.dev_score and state.num_processes > 1:
        raise UserError(
            "the dev check is made by one process, which has only a share of the weights with this engine: train with "
            "--engine single or ddp, or in a run folder without world/"
        )
    if not (adapted or sharded):
        # The trainer would load a checkpoint by the model's names of weights, but save_pretrained writes those of
        # published models: for Llava nothing would match, and the run would go on from the start with a mere warning.
        trainer._load_from_checkpoint = lambda folder: trainer.model.load_state_dict(
            load_model(folder, "cpu")[0].state_dict()
        )
    trainer.remove_callback(PrinterCallback)  # StageLog prints instead, and less often
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError):
            raise_if_full(error, work)
            raise
        raise UserError(
            f"could not write a checkpoint in {work} ({error}); free some disk space and run the stage again"
        ) from error
    except RuntimeError as error:
        if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # torch.save on a full disk
            raise UserError(
                f"could not write a checkpoint in {work}; free some disk space and run the stage again"
            ) from error
        # torch.multinomial's words for weights that are no numbers; on a GPU it only trips an assertion there.
        if "probability tensor" not in str(error) and "device-side assert" not in str(error):
            raise
        step = trainer.state.global_step + 1
        raise UserError(f"the model's probabilities are not numbers at step {step} of {work}: {_ADVICE}") from error
    if not log.keeps_best:
        model = trainer.accelerator.unwrap_model(trainer.model)
        save = trainer.save_model if sharded else None
        if sharded or state.is_main_process:
            save_model(model, log.processor, work / _part_saved(model), save)
    if state.is_main_process:
        if adapted:
            export_merged(model_dir, work / "adapter", log.processor, work / "model")
        write_log(trainer.state.log_history, work / "log.csv")
        facts |= {"seconds": round(time.time() - start, 1), "steps": trainer.state.global_step}
        facts |= {"processes": state.num_processes}
        write_json(work / "stage.json", facts)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        _put_in_place(out)
    state.wait_for_everyone()
    return out / "model"


def stage_note(model_dir: Path | str) -> dict[str, Any]:
    """What the training stage noted beside its model; empty for a model that no stage of ours made.

    Raises UserError for a grid or a length that is no number.
    """
    path = Path(model_dir).absolute().parent / "stage.json"
    note: dict[str, Any] = read_object(path, {})
    for key, most in (("grid", 5), ("answer_tokens", sys.maxsize)):
        if key in note and not (type(note[key]) is int and 1 <= note[key] <= most):
            raise UserError(f"{path} has the {key} {note[key]!r}, which no stage writes: train the stage again")
    return note
