"""Measure on a GPU what `iadr1 plan` estimates: python tests/gpu_check.py --out found.json

Models of the real sizes with random weights (nothing is downloaded), pictures of the shape that asks for most tokens,
prompts and answers as long as the plan takes them to be; a few steps of both stages by the functions that `iadr1 train`
calls, with the settings of the profile `gpu`. Before that: whether a stage that was broken off goes on to the same
losses, and how fast the mini VLM answers, against the processor. Each part runs in a process of its own, and what was
found is written after each.

Times are seconds, memory is GiB. Without a GPU all is measured but memory; --small makes that bearable (one layer,
answers of 8 tokens, few records).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from iadr1_lib.models import load_processor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import miniatures  # noqa: E402
import numpy as np  # noqa: E402
import test_training  # noqa: E402
import tiny_vlm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, SFTConfig  # noqa: E402

from iadr1_lib.evaluation import prediction  # noqa: E402
from iadr1_lib.models import (  # noqa: E402
    MODELS,
    ModelSettings,
    load_model,
)
from iadr1_lib.runs import base_model_dir, hardware, load_profile  # noqa: E402
from iadr1_lib.training import (  # noqa: E402
    PaSftSettings,
    ScGrpoSettings,
    StageLog,
    trainers,
)
from iadr1_lib.training import plan as planning  # noqa: E402

PART_SECONDS = 200  # a part that takes longer is ended
PICTURES = 60  # answered by both devices
Stage = Literal["pa_sft", "sc_grpo"]


@dataclass(frozen=True)
class Case:
    """A stage of a model, all weights trained or LoRA; how many steps are taken (the first is no measure)."""

    model: str
    lora: bool
    stage: Stage
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model}.{'lora' if self.lora else 'full'}.{self.stage}"

    @property
    def weights(self) -> str:
        """Of the weights' folder, which both stages share."""
        return f"{self.model}.{'bfloat16' if self.lora else 'float32'}"


CASES = [
    Case(model, lora, stage, steps)  # type: ignore[arg-type]
    for model, lora in (
        ("llava-onevision-0.5b", False),
        ("qwen2.5-vl-3b", True),
        ("qwen2.5-vl-7b", True),
        ("llava-onevision-7b", True),
    )
    for stage, steps in (("pa_sft", 4), ("sc_grpo", 2))
]


# ------------------------------------------------------------------------------------------------ real sizes


def random_model(case: Case, folder: Path, small: bool) -> Path:
    """The folder of a model of the real size with random weights and a miniature's processor at the real resolution.

    `small` cuts tower and language model to one layer, and the vocabulary. Made on the GPU, if there is one.
    """
    if folder.exists():
        return folder
    miniature, processor = miniatures.build(MODELS[case.model].family.model_type)
    config, pictures = planning.configuration(case.model), processor.image_processor
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
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16 if case.lora else torch.float32)
    for key in ("eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(text, key))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    return folder


def write_records(case: Case, folder: Path, model: Path, shape: tuple[int, int], rows: int, answer: int) -> Path:
    """Records of pictures of noise (height, width in `shape`), with texts as long as the plan takes them to be."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path, compress_level=1)
    processor = load_processor(model)
    marks = processor.apply_chat_template([{"role": "user", "content": ""}], add_generation_prompt=True)
    asked = "x" * max(1, planning.PROMPT_TEXT - len(processor.tokenizer(marks).input_ids))  # a letter is a token
    tags = "<think></think><answer>No</answer>"
    length = max(1, answer - 2 - len(processor.tokenizer(tags).input_ids))
    told = tags.replace("><", f">{'x' * length}<", 1)
    table: list[dict[str, Any]] = []
    for number in range(rows):
        shown = str(paths[number % len(paths)])
        said = [{"role": "user", "content": f"<image>{asked}"}, {"role": "assistant", "content": told}]
        yes = "<location>top</location><type>hole</type><answer>Yes</answer>"
        solution = "<answer>No</answer>" if number % 2 else yes
        sft: dict[str, Any] = {"messages": said, "images": shown}
        table.append(
            sft if case.stage == "pa_sft" else {"image": shown, "problem": f"<image>{asked}", "solution": solution}
        )
    file = folder / f"{case.stage}.json"
    file.write_text(json.dumps(table))
    return file


class Enough(Exception):
    """The steps were taken; saving what came out would only cost time."""


class Watch(StageLog):
    """A StageLog that notes seconds, losses and memory, and ends the stage before it saves anything."""

    seconds: list[float] = []  # from the end of one step to the end of the next; the first from the beginning
    logs: list[dict[str, float]] = []
    memory: dict[str, float] = {}
    begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Watch.begun = time.perf_counter()
        if torch.cuda.is_available():
            Watch.memory["begin"] = torch.cuda.memory_allocated() / planning.GIB

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        Watch.seconds.append(round(now - Watch.begun, 3))
        Watch.begun = now
        control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        Watch.logs.append(dict(logs or {}))
        super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            Watch.memory["peak"] = torch.cuda.max_memory_allocated() / planning.GIB
            Watch.memory["reserved"] = torch.cuda.max_memory_reserved() / planning.GIB
        raise Enough


def note_memory_of_generation() -> None:
    """Let GRPOTrainer note the peak up to the end of its first generation, before any gradient is there."""
    generate = GRPOTrainer._generate

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = generate(self, *args, **kwargs)
        if torch.cuda.is_available():
            Watch.memory.setdefault("generation", torch.cuda.max_memory_allocated() / planning.GIB)
        return made

    GRPOTrainer._generate = noted


def spread(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs between completions: a random model's would all get 0, and nothing would be learnt."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def measure(case: Case, folder: Path, small: bool) -> dict[str, Any]:
    """Take the case's steps; what was measured beside what the plan estimates. `small`: see above."""
    profile = load_profile("gpu")
    model = replace(profile.settings("model", ModelSettings), name=case.model)
    if not case.lora:  # the paper's way, which without a sharding engine needs float32 weights
        model = replace(model, dtype="float32", lora_rank=0, lora_alpha=0, lora_dropout=0.0)
    if small:
        model = replace(model, dtype="float32")  # most processors are slow with bfloat16
    started = time.perf_counter()
    start = random_model(case, folder / case.weights, small)
    made = time.perf_counter() - started
    settings: Any
    if case.stage == "pa_sft":
        settings = replace(profile.settings("pa_sft", PaSftSettings), epochs=1.0)
        settings = settings if case.lora else replace(settings, learning_rate="released")
        settings = replace(settings, batch=1, bf16=False) if small else settings
        passes, answer = settings.batch, 8 if small else planning.RECORD_TEXT
        rows = passes * case.steps
    else:
        settings = replace(profile.settings("sc_grpo", ScGrpoSettings), steps=case.steps)
        settings = replace(settings, prompts=1, max_completion=8, bf16=False) if small else settings
        passes, answer = settings.prompts * settings.group, settings.max_completion
        rows = settings.prompts * case.steps
    lora = {"lora": case.lora, "max_pixels": settings.max_pixels, "max_completion": answer}
    plan = planning.plan(str(start), replace(planning.settings_of(profile), **lora))
    planned = next(stage for stage in plan.stages if stage.stage == case.stage)
    records = write_records(case, folder / "records", start, plan.tokens.worst_shape, rows, answer)

    setattr(trainers, "StageLog", Watch)  # noqa: B010 (a class of another module)
    setattr(trainers, "SFTConfig", lambda **said: SFTConfig(**said | {"logging_steps": 1}))  # noqa: B010
    setattr(trainers, "GRPOConfig", lambda **said: GRPOConfig(**said | {"logging_steps": 1}))  # noqa: B010
    setattr(trainers, "fingerprint", lambda *args, **said: "not for reuse")  # noqa: B010 (it reads all the weights)
    honest = trainers.rewards.reward_functions
    trainers.rewards.reward_functions = lambda *args: [spread, *honest(*args)[1:]]  # type: ignore[list-item]
    note_memory_of_generation()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    train: Any = trainers.train_pa_sft if case.stage == "pa_sft" else trainers.train_sc_grpo
    with suppress(Enough):
        train(start, records, folder / "stage" / case.name, settings, model=model)
    logs = [log for log in Watch.logs if "loss" in log]
    losses = [float(log["loss"]) for log in logs]
    found: dict[str, Any] = {
        "ok": len(losses) == case.steps and all(map(math.isfinite, losses)),
        "losses": losses,
        "gradient_norms": [float(log["grad_norm"]) for log in logs],
        "seconds_per_step": Watch.seconds,
        "seconds_before": {"weights": round(made, 1), "stage": round(time.perf_counter() - started, 1)},
        "seconds_of_a_step": {k.split("/")[1]: round(v, 2) for k, v in logs[-1].items() if k.startswith("seconds/")},
        "tokens_per_sequence": float(logs[-1].get("num_tokens", 0)) / (passes * case.steps),
        "tokens_planned": planned.sequence,
        "picture": plan.tokens.worst_shape,
        "estimated": {k: round(v, 2) for k, v in asdict(planned.memory).items()},
        "estimated_peak": round(planned.memory.total, 2),
        "measured": {k: round(v, 2) for k, v in Watch.memory.items()},
    }
    if "peak" in Watch.memory:
        found["ratio"] = round(Watch.memory["peak"] / planned.memory.total, 3)
    return found


# ------------------------------------------------------------------------------------------------ small ones


def resume(folder: Path) -> dict[str, Any]:
    """Both stages of a tiny model, whole, and broken off at a checkpoint and taken up again: losses and weights."""
    samples = tiny_vlm.draw_samples(folder / "pictures")
    files = dict(zip(("pa_sft", "sc_grpo"), tiny_vlm.write_records(samples, folder), strict=True))
    start = tiny_vlm.save(folder / "tiny")
    honest = trainers.rewards.reward_functions
    trainers.rewards.reward_functions = lambda *args: [test_training.consistency_reward, *honest(*args)[1:]]  # type: ignore[list-item]
    found: dict[str, Any] = {"ok": True}
    for stage, train, settings in (
        ("pa_sft", trainers.train_pa_sft, replace(test_training.SFT, keep="last")),
        ("sc_grpo", trainers.train_sc_grpo, replace(test_training.GRPO, keep="last")),
    ):
        run: Any = partial(train, start, files[stage])
        whole, broken = folder / f"{stage}-whole", folder / f"{stage}-broken"
        run(whole, settings, dev_score=test_training.rising())
        calls = itertools.count()

        def breaks(model: Any, processor: Any, calls: Any = calls) -> float:
            if next(calls) == 1:
                raise test_training.Killed
            return 0.0

        with suppress(test_training.Killed):
            run(broken, settings, dev_score=breaks)
        taken_up = (broken / "unfinished" / "checkpoints" / "checkpoint-2").is_dir()
        run(broken, settings, dev_score=test_training.rising(1))
        losses = [
            [float(row["loss"]) for row in tiny_vlm.read_csv(out / "log.csv") if row["loss"]] for out in (whole, broken)
        ]
        apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
        found["ok"] = found["ok"] and taken_up and apart <= 1e-4
        weights = test_training.far(whole / "model", broken / "model")
        found[stage] = {"losses": losses, "losses_apart": apart, "weights_apart": weights}
    return found


def evaluation(folder: Path) -> dict[str, Any]:
    """The mini VLM's answers to the same pictures and its speed, on the GPU and on the processor."""
    samples = tiny_vlm.draw_samples(folder / "evaluated", PICTURES)
    made: dict[str, dict[str, dict[str, Any]]] = {}
    found: dict[str, Any] = {}
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu", "cpu "):
        place = partial(load_model, device=device.strip())
        setattr(prediction, "load_model", place)  # noqa: B010
        out = prediction.predict(base_model_dir(), samples, folder / f"{device}.jsonl", batch_size=20, quiet=True)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        made[device] = {row["image"]: row for row in rows}
        parts, _ = prediction.measure_speed(base_model_dir(), samples, batch_size=20)
        seconds = {part: round(spent, 3) for part, spent in parts.items()}
        found[device] = {"images_per_second": round(len(samples) / sum(parts.values()), 1), "seconds": seconds}
    one, other = made.values()
    found["same_answers"] = sum(one[image]["raw"] == other[image]["raw"] for image in one) / len(one)
    sure = [(one[image]["p_yes"], other[image]["p_yes"]) for image in one]
    found["p_yes_apart"] = max(abs(a - b) for a, b in sure if None not in (a, b))
    found["ok"] = len(one) == PICTURES == len(other)
    return found


# ------------------------------------------------------------------------------------------------ all of it


def run_part(name: str, folder: Path, small: bool) -> dict[str, Any]:
    """Run one part in this process."""
    others = {"resume": resume, "evaluation": evaluation}
    if name in others:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return others[name](folder / name)
    return measure(next(case for case in CASES if case.name == name), folder, small)


def in_a_process(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run one part in a process of its own; what it found, or the end of what it said."""
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--out", str(result), "--folder", str(folder), *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PART_SECONDS)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {PART_SECONDS} s"}
    if run.returncode or not result.exists():
        return {"ok": False, "error": (run.stderr or run.stdout)[-3000:]}
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """What a reader wants to see of a part."""
    parts = [f"{'ok  ' if found['ok'] else 'FAIL'} {name}: {found['seconds']:.0f} s"]
    if "error" in found:
        parts.append(found["error"].strip().splitlines()[-1])
    if found.get("seconds_per_step"):
        parts.append(f"{found['seconds_per_step'][-1]:.2f} s a step, loss {found['losses'][-1]:.3f}")
        parts.append(f"{found['tokens_per_sequence']:.0f} tokens (plan: {found['tokens_planned']})")
        measured = found["measured"].get("peak", "not measured")
        parts.append(f"peak {measured} GiB, plan {found['estimated_peak']}, ratio {found.get('ratio', 'none')}")
    for stage in ("pa_sft", "sc_grpo"):
        if stage in found:
            parts.append(f"{stage} apart by {found[stage]['losses_apart']:.1e}")
    if "same_answers" in found:
        rates = [f"{k} {v['images_per_second']}" for k, v in found.items() if isinstance(v, dict)]
        parts.append(f"same answers {found['same_answers']:.2f}; pictures a second: {', '.join(rates)}")
    return "; ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of what was found")
    parser.add_argument("--only", action="append", help="parts whose names hold this text; may be given again")
    parser.add_argument("--seconds", type=float, default=1800, help="start no part after so many seconds")
    parser.add_argument(
        "--folder", type=Path, help="for weights (up to 17 GB, removed at the end); a RAM disk is quickest"
    )
    parser.add_argument("--small", action="store_true", help="cut the models and what they do, to try this command")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.part:
        said.out.write_text(json.dumps(run_part(said.part, said.folder, said.small)))
        return 0
    options = ["--small"] if said.small else []
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    found: dict[str, Any] = {"machine": hardware(), "versions": {name: metadata.version(name) for name in libraries}}
    if torch.cuda.is_available():
        found["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / planning.GIB, 1)
    print(found, flush=True)
    found["parts"] = {}
    begun = time.monotonic()
    names = ["evaluation", "resume", *(case.name for case in CASES)]
    names = [name for name in names if not said.only or any(part in name for part in said.only)]
    folder = Path(tempfile.mkdtemp(prefix="gpu_check", dir=said.folder))
    try:
        for number, name in enumerate(names):
            if time.monotonic() - begun > said.seconds:
                print(f"left out for want of time: {', '.join(names[number:])}", flush=True)
                break
            since = time.monotonic()
            part = in_a_process(name, folder, options)
            part["seconds"] = round(time.monotonic() - since, 1)
            found["parts"][name] = part
            said.out.write_text(json.dumps(found, indent=1))
            print(line(name, part), flush=True)
            if name.endswith("sc_grpo"):  # the model's last part: make room for the next
                for weights in folder.glob(f"{name.split('.lora')[0].split('.full')[0]}.*"):
                    shutil.rmtree(weights)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(part["ok"] for part in found["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
