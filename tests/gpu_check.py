"""How fast both stages train here, and in how much memory: python tests/gpu_check.py --out found.json (make benchmark)

A few steps of both stages by the functions that `iadr1 train` calls, with the settings of the profile `gpu`: models of
the real sizes with random weights (nothing is downloaded) or a model's folder, pictures of the shape that asks for most
tokens, prompts and answers as long as the plan takes them to be. Printed are seconds a step, tokens a second, the share
of the card's bfloat16 rate, and the peak of memory beside that of `iadr1 plan`. --before takes the passes of the
released scripts, with checkpointing and without what `models` and `training` do for speed, so that one script gives
both numbers of a comparison. Each part runs in a process of its own, and the results so far are written after each.

Without a GPU memory and the share are not measured; --small makes that bearable (one layer, answers of 8 tokens, small
pictures, steps of 4 samples).
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import miniatures  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402
from trl import GRPOConfig, SFTConfig  # noqa: E402

from iadr1_lib.models import MODELS, ModelSettings, load_processor, meta_model, require_weights  # noqa: E402
from iadr1_lib.models.shapes import configuration  # noqa: E402
from iadr1_lib.records import Stage  # noqa: E402
from iadr1_lib.runs import commit, hardware, load_profile  # noqa: E402
from iadr1_lib.training import PaSftSettings, ScGrpoSettings, memory, speed, trainers  # noqa: E402
from iadr1_lib.training import plan as planning  # noqa: E402
from iadr1_lib.training.launch import EngineSettings  # noqa: E402
from iadr1_lib.training.stage_log import StageLog  # noqa: E402

PART_SECONDS = 240  # a part that takes longer is ended
STEPS: dict[Stage, int] = {"pa_sft": 4, "sc_grpo": 2}  # the first is no measure
DEFAULT = ["llava-onevision-0.5b:full", "qwen2.5-vl-3b"]
RELEASED: dict[Stage, int] = {"pa_sft": 1, "sc_grpo": 4}  # samples of a pass in the released scripts
FAST_PATHS = ("share_group_work", "speed_up_generation")  # of `models`


@dataclass(frozen=True)
class Case:
    """A stage of a model (short name or folder), with LoRA or, after ":full", all weights trained."""

    model: str
    full: bool
    stage: Stage

    @property
    def name(self) -> str:
        return f"{Path(self.model).name}.{'full' if self.full else 'lora'}.{self.stage}"


# ------------------------------------------------------------------------------------------------ real sizes


def random_model(case: Case, folder: Path, small: bool) -> Path:
    """The folder of a model of the real size with random weights and a miniature's processor at the real resolution.

    `small` cuts tower and language model to one layer, and the vocabulary. Made on the GPU, if there is one.
    """
    if folder.exists():
        return folder
    miniature, processor = miniatures.build(MODELS[case.model].family.model_type)
    config, pictures = configuration(case.model), processor.image_processor
    text, vision = config.text_config, config.vision_config
    if config.model_type == "llava_onevision":
        pictures.size = {"height": vision.image_size, "width": vision.image_size}
        pictures.image_grid_pinpoints = config.image_grid_pinpoints
        processor.num_image_tokens = (vision.image_size // vision.patch_size) ** 2
    else:
        pictures.size = type(pictures).size
        head = text.hidden_size // text.num_attention_heads
        sections = [head // 8, head * 3 // 16, head * 3 // 16]  # as published: 16, 24, 24 of a head of 128
        text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    for key in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        if hasattr(miniature.config, key):
            setattr(config, key, getattr(miniature.config, key))
    text.eos_token_id, text.pad_token_id = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    if small:
        text.vocab_size = 1024
        text.num_hidden_layers, text.layer_types = 1, text.layer_types[:1]
        setattr(vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers", 1)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32 if case.full else torch.bfloat16)
    for key in ("eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(text, key))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return folder


def filler(tokenizer: Any, count: int) -> str:
    """A text of so many tokens."""
    for piece in ("x", " x"):  # a letter of the miniatures, a word of others
        if len(tokenizer(piece * count, add_special_tokens=False).input_ids) == count:
            return piece * count
    return "x " * count


def write_records(case: Case, folder: Path, model: Path, shape: tuple[int, int], rows: int, answer: int) -> Path:
    """Records of pictures of noise (height, width in `shape`), with texts as long as the plan takes them to be."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, compress_level=1)
    processor = load_processor(model)
    tokenizer = processor.tokenizer
    marks = processor.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)
    question = "<image>" + filler(tokenizer, max(1, memory.PROMPT_TEXT - len(tokenizer(marks).input_ids)))
    tags = "<think></think><answer>No</answer>"
    thought = filler(tokenizer, max(1, answer - 2 - len(tokenizer(tags).input_ids)))
    completion = tags.replace("><", f">{thought}<", 1)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": completion}]
    solutions = ("<location>top</location><type>hole</type><answer>Yes</answer>", "<answer>No</answer>")
    table: list[dict[str, Any]] = []
    for number in range(rows):
        image = str(paths[number % len(paths)])
        if case.stage == "pa_sft":
            table.append({"messages": turns, "images": image})
        else:
            table.append({"image": image, "problem": question, "solution": solutions[number % 2]})
    file = folder / f"{case.stage}.json"
    file.write_text(json.dumps(table))
    return file


class Enough(Exception):
    """The steps were taken; saving the result would only cost time."""


class Watch(StageLog):
    """A StageLog that notes seconds, entries of the log and memory, and ends the stage before it saves anything."""

    seconds: list[float] = []  # from the end of one step to the end of the next; the first from the beginning
    logs: list[dict[str, float]] = []
    memory: dict[str, float] = {}
    passes = (0, False)  # samples of a pass, checkpointing
    begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        Watch.begun, Watch.seconds, Watch.logs, Watch.memory = time.perf_counter(), [], [], {}
        Watch.passes = args.per_device_train_batch_size, args.gradient_checkpointing
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # a larger pass may have been tried before

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        Watch.seconds.append(round(now - Watch.begun, 3))
        Watch.begun = now
        control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        super().on_log(args, state, control, logs=logs, **kwargs)
        if "loss" in (logs or {}):
            Watch.logs.append(dict(state.log_history[-1]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        note_memory("peak")
        raise Enough


def note_memory(name: str) -> None:
    """Note the peak of the GPU's memory so far."""
    if torch.cuda.is_available():
        Watch.memory.setdefault(name, round(torch.cuda.max_memory_allocated() / memory.GIB, 2))


def spread(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs between completions: a random model's would all get 0, and nothing would be learnt."""
    note_memory("generation")  # TRL calls the rewards before there is any gradient
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def stand_in(before: bool) -> None:
    """Put this script's parts in place of the trainers', and with `before` take the fast paths away."""
    honest = trainers.rewards.reward_functions
    trainers.rewards.reward_functions = lambda *args: [spread, *honest(*args)[1:]]
    parts: dict[str, Any] = {
        "StageLog": Watch,
        "SFTConfig": lambda **options: SFTConfig(**options | {"logging_steps": 1}),
        "GRPOConfig": lambda **options: GRPOConfig(**options | {"logging_steps": 1}),
        "fingerprint": lambda *args: "not for reuse",  # it would read all the weights
    }
    if before:
        parts |= {"_workers": lambda: 0, "is_torch_tf32_available": lambda: False}
        for name in FAST_PATHS:
            setattr(trainers.models, name, lambda *args: None)
    for name, part in parts.items():
        setattr(trainers, name, part)


def settings_of(case: Case, small: bool, before: bool) -> tuple[Any, ModelSettings]:
    """The settings of the stage and of the model."""
    profile, steps = load_profile("gpu"), STEPS[case.stage]
    model = replace(profile.settings("model", ModelSettings), name=Path(case.model).name)
    if case.full:  # the paper's way, which without a sharding engine needs float32 weights
        model = replace(model, dtype="float32", lora_rank=0, lora_alpha=0, lora_dropout=0.0)
    settings: Any = profile.settings(case.stage, PaSftSettings if case.stage == "pa_sft" else ScGrpoSettings)
    if case.stage == "pa_sft":
        settings = replace(settings, num_train_epochs=1.0, **{"learning_rate": "released"} if case.full else {})
    else:
        settings = replace(settings, max_steps=steps)
    if small:
        model = replace(model, dtype="float32")  # most processors are slow with bfloat16
        settings = replace(settings, bf16=False, max_pixels=112 * 112, per_device_step_size=4)
        settings = replace(settings, **{} if case.stage == "pa_sft" else {"max_completion_length": 8})
    if before:
        settings, model = settings.in_passes(RELEASED[case.stage]), replace(model, gradient_checkpointing=True)
    return settings, model


def measure(case: Case, folder: Path, small: bool, before: bool) -> dict[str, Any]:
    """Take the case's steps; what was measured beside what the plan estimates."""
    settings, model = settings_of(case, small, before)
    known = case.model in MODELS
    weights = folder / f"{case.model}.{'float32' if case.full else 'bfloat16'}"  # both stages share it
    start = random_model(case, weights, small) if known else require_weights(case.model)
    engine, shapes = EngineSettings(gpu_gib=planning.memory_there(24)), meta_model(str(start))
    wanted = planning.of_stage(settings, engine, planning.of_model(model, engine, settings.bf16))
    tokens = planning.choose(shapes, wanted, case.stage).tokens
    answer = 8 if small else memory.RECORD_TEXT if case.stage == "pa_sft" else settings.max_completion_length
    rows = settings.share // (1 if case.stage == "pa_sft" else settings.num_generations) * STEPS[case.stage]
    records = write_records(case, folder / "records", start, tokens.worst_shape, rows, answer)

    stand_in(before)
    train: Any = trainers.train_pa_sft if case.stage == "pa_sft" else trainers.train_sc_grpo
    with suppress(Enough):
        train(start, records, folder / "stage" / case.name, settings, model=model)
    rows, recomputes = Watch.passes
    taken = replace(wanted, micro_batch=rows, grpo_micro_batch=rows, gradient_checkpointing=recomputes)
    planned = planning.choose(shapes, replace(taken, shares_prompts=not before), case.stage)
    losses = [float(log["loss"]) for log in Watch.logs]
    last = Watch.logs[-1]
    result: dict[str, Any] = {
        "ok": len(losses) == STEPS[case.stage] and all(map(math.isfinite, losses)),
        "passes": f"{planned.passes} x {rows}{', checkpointing' if recomputes else ''}",
        "seconds_per_step": Watch.seconds,
        "seconds_writing": round(last.get("seconds/writing", 0.0), 2),
        **{column: last[column] for column in speed.COLUMNS if column in last},
        "losses": losses,
        "tokens_per_sequence": round(float(last["num_tokens"]) / (settings.share * STEPS[case.stage])),
        "tokens_planned": planned.sequence,
        "estimated": {key: round(value, 2) for key, value in asdict(planned.memory).items()},
        "measured": Watch.memory,
    }
    if "peak" in Watch.memory:
        result["ratio"] = round(Watch.memory["peak"] / planned.memory.total, 3)
    return result


# ------------------------------------------------------------------------------------------------ all of it


def in_a_process(case: Case, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run one part in a process of its own; its result, or the end of its output."""
    file = folder / "result.json"
    file.unlink(missing_ok=True)
    command = [
        sys.executable,
        __file__,
        "--part",
        json.dumps(asdict(case)),
        "--out",
        str(file),
        "--folder",
        str(folder),
    ]
    since = time.monotonic()
    try:
        run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=PART_SECONDS)
        found = json.loads(file.read_text()) if file.exists() and not run.returncode else None
        result: dict[str, Any] = found or {"ok": False, "error": (run.stderr or run.stdout)[-3000:]}
    except subprocess.TimeoutExpired:
        result = {"ok": False, "error": f"not done after {PART_SECONDS} s"}
    return result | {"seconds": round(time.monotonic() - since, 1)}


COLUMNS = ("part", "passes", "s/step", "of it writing", "tokens/s", "bf16 share", "GiB", "plan", "GiB/plan")


def row(name: str, result: dict[str, Any]) -> str:
    """A part's line of the table; the reason where it failed."""
    if "error" in result:
        return f"{name:34} failed: {result['error'].strip().splitlines()[-1]}"
    peak, share = result["measured"].get("peak", "-"), result.get("bf16_share", "-")
    cells = [result["passes"], result["seconds_per_step"][-1], result["seconds_writing"], result["tokens_per_second"]]
    cells += [share, peak, result["estimated"]["total"], result.get("ratio", "-")]
    return f"{name:34} {cells[0]:24}" + "".join(f"{cell!s:>14}" for cell in cells[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--model", action="append", help=f"name or folder, with :full for all weights ({DEFAULT})")
    parser.add_argument("--stage", choices=list(STEPS), help="only this stage")
    parser.add_argument("--seconds", type=float, default=1800, help="start no part after so many seconds")
    parser.add_argument("--folder", type=Path, help="for weights (up to 17 GB, removed at the end); a RAM disk is best")
    parser.add_argument("--before", action="store_true", help="small passes with checkpointing, no fast paths")
    parser.add_argument("--small", action="store_true", help="cut the models and what they do, to try this command")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        case = Case(**json.loads(options.part))
        options.out.write_text(json.dumps(measure(case, options.folder, options.small, options.before)))
        return 0
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    report: dict[str, Any] = {"machine": hardware(), "versions": {name: metadata.version(name) for name in libraries}}
    report |= {"commit": commit(), "before": options.before, "small": options.small, "parts": {}}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        report |= {"gpu": properties.name, "gpu_gib": round(properties.total_memory / memory.GIB, 1)}
    print(json.dumps(report), flush=True)
    print(f"{COLUMNS[0]:34} {COLUMNS[1]:24}" + "".join(f"{column:>14}" for column in COLUMNS[2:]), flush=True)
    begun, passed_on = time.monotonic(), [f"--{word}" for word in ("small", "before") if getattr(options, word)]
    folder = Path(tempfile.mkdtemp(prefix="gpu_check", dir=options.folder))
    try:
        for name in options.model or DEFAULT:
            model, _, full = name.partition(":")
            for stage in STEPS if options.stage is None else [options.stage]:
                case = Case(model, full == "full", stage)
                if time.monotonic() - begun > options.seconds:
                    print(f"left out for want of time: {case.name}", flush=True)
                    continue
                report["parts"][case.name] = in_a_process(case, folder, passed_on)
                options.out.write_text(json.dumps(report, indent=1))
                print(row(case.name, report["parts"][case.name]), flush=True)
            for weights in folder.glob(f"{Path(model).name}.*"):  # make room for the next
                shutil.rmtree(weights)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(part["ok"] for part in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
