"""Measure on a GPU what `iadr1 plan` estimates: python tests/gpu_check.py --out found.json

Models of the real sizes with random weights (nothing is downloaded), pictures of the shape that asks for most tokens,
prompts and answers as long as the plan takes them to be; a few steps of both stages by the functions that `iadr1 train`
calls, with the settings of the profile `gpu`. Before that: whether a stage that was broken off goes on to the same
losses, and how fast the mini VLM answers, against the processor. Each part runs in a process of its own, and the
results so far are written after each.

Times are seconds, memory is GiB. Without a GPU all is measured but memory; --small makes that bearable (one layer,
answers of 8 tokens, few records).
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
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import miniatures  # noqa: E402
import numpy as np  # noqa: E402
import test_training  # noqa: E402
import tiny_vlm  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402
from trl import GRPOConfig, SFTConfig  # noqa: E402

from iadr1_lib.evaluation import prediction  # noqa: E402
from iadr1_lib.models import MODELS, ModelSettings, load_model, load_processor  # noqa: E402
from iadr1_lib.models.shapes import configuration  # noqa: E402
from iadr1_lib.runs import base_model_dir, hardware, load_profile  # noqa: E402
from iadr1_lib.training import PaSftSettings, ScGrpoSettings, trainers  # noqa: E402
from iadr1_lib.training import plan as planning  # noqa: E402
from iadr1_lib.training.stage_log import StageLog  # noqa: E402

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
    # A letter is a token.
    question = "<image>" + "x" * max(1, planning.PROMPT_TEXT - len(processor.tokenizer(marks).input_ids))
    tags = "<think></think><answer>No</answer>"
    length = max(1, answer - 2 - len(processor.tokenizer(tags).input_ids))
    completion = tags.replace("><", f">{'x' * length}<", 1)
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


def note_memory(name: str) -> None:
    """Note the peak of the GPU's memory so far."""
    if torch.cuda.is_available():
        Watch.memory.setdefault(name, torch.cuda.max_memory_allocated() / planning.GIB)


class Enough(Exception):
    """The steps were taken; saving the result would only cost time."""


class Watch(StageLog):
    """A StageLog that notes seconds, losses and memory, and ends the stage before it saves anything."""

    seconds: list[float] = []  # from the end of one step to the end of the next; the first from the beginning
    logs: list[dict[str, float]] = []
    memory: dict[str, float] = {}
    begun = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
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
        note_memory("peak")
        if torch.cuda.is_available():
            Watch.memory["reserved"] = torch.cuda.max_memory_reserved() / planning.GIB
        raise Enough


def spread(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs between completions: a random model's would all get 0, and nothing would be learnt."""
    note_memory("generation")  # TRL calls the rewards before there is any gradient
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def pay(reward: Any) -> None:
    """Let SC-GRPO pay `reward` in place of the first of its own."""
    honest = trainers.rewards.reward_functions
    trainers.rewards.reward_functions = lambda *args: [reward, *honest(*args)[1:]]


def settings_of(case: Case, small: bool) -> tuple[Any, int, int]:
    """The stage's settings, its rows, and the tokens of an answer."""
    profile = load_profile("gpu")
    if case.stage == "pa_sft":
        sft = replace(profile.settings("pa_sft", PaSftSettings), num_train_epochs=1.0)
        sft = sft if case.lora else replace(sft, learning_rate="released")
        sft = replace(sft, gradient_accumulation_steps=1, bf16=False) if small else sft
        return sft, sft.step_size(1) * case.steps, 8 if small else planning.RECORD_TEXT
    grpo = replace(profile.settings("sc_grpo", ScGrpoSettings), max_steps=case.steps)
    grpo = replace(grpo, gradient_accumulation_steps=1, max_completion_length=8, bf16=False) if small else grpo
    return grpo, grpo.step_size(1) // grpo.num_generations * case.steps, grpo.max_completion_length


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
    weights_seconds = time.perf_counter() - started
    settings, rows, answer = settings_of(case, small)
    lora = {"lora": case.lora, "max_pixels": settings.max_pixels, "max_completion": answer}
    plan = planning.plan(str(start), replace(planning.settings_of(profile), **lora))
    planned = next(stage for stage in plan.stages if stage.stage == case.stage)
    records = write_records(case, folder / "records", start, plan.tokens.worst_shape, rows, answer)

    stand_ins: dict[str, Any] = {
        "StageLog": Watch,
        "SFTConfig": lambda **options: SFTConfig(**options | {"logging_steps": 1}),
        "GRPOConfig": lambda **options: GRPOConfig(**options | {"logging_steps": 1}),
        "fingerprint": lambda *args: "not for reuse",  # it would read all the weights
    }
    for name, stand_in in stand_ins.items():
        setattr(trainers, name, stand_in)
    pay(spread)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    train: Any = trainers.train_pa_sft if case.stage == "pa_sft" else trainers.train_sc_grpo
    with suppress(Enough):
        train(start, records, folder / "stage" / case.name, settings, model=model)
    logs = [log for log in Watch.logs if "loss" in log]
    losses = [float(log["loss"]) for log in logs]
    result: dict[str, Any] = {
        "ok": len(losses) == case.steps and all(map(math.isfinite, losses)),
        "losses": losses,
        "gradient_norms": [float(log["grad_norm"]) for log in logs],
        "seconds_per_step": Watch.seconds,
        "seconds_before": {"weights": round(weights_seconds, 1), "stage": round(time.perf_counter() - started, 1)},
        "seconds_of_a_step": {k.split("/")[1]: round(v, 2) for k, v in logs[-1].items() if k.startswith("seconds/")},
        "tokens_per_sequence": float(logs[-1].get("num_tokens", 0)) / (settings.step_size(1) * case.steps),
        "tokens_planned": planned.sequence,
        "picture": plan.tokens.worst_shape,
        "estimated": {k: round(v, 2) for k, v in asdict(planned.memory).items()},
        "estimated_peak": round(planned.memory.total, 2),
        "measured": {k: round(v, 2) for k, v in Watch.memory.items()},
    }
    if "peak" in Watch.memory:
        result["ratio"] = round(Watch.memory["peak"] / planned.memory.total, 3)
    return result


# ------------------------------------------------------------------------------------------------ small ones


def resume(folder: Path) -> dict[str, Any]:
    """Both stages of a tiny model, whole, and broken off at a checkpoint and resumed: losses and weights."""
    world = tiny_vlm.world(folder)
    pay(test_training.consistency_reward)
    result: dict[str, Any] = {"ok": True}
    for stage, train, settings in (
        ("pa_sft", trainers.train_pa_sft, replace(test_training.SFT, keep="last")),
        ("sc_grpo", trainers.train_sc_grpo, replace(test_training.GRPO, keep="last")),
    ):
        run: Any = partial(train, world["model"], world[stage])
        whole, broken = folder / f"{stage}-whole", folder / f"{stage}-broken"
        run(whole, settings, dev_score=test_training.rising())
        with suppress(test_training.Killed):
            run(broken, settings, dev_score=test_training.killed_at(2, test_training.rising()))
        resumed = (broken / "unfinished" / "checkpoints" / "checkpoint-2").is_dir()
        run(broken, settings, dev_score=test_training.rising(1))
        losses = [
            [float(row["loss"]) for row in tiny_vlm.read_csv(out / "log.csv") if row["loss"]] for out in (whole, broken)
        ]
        apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
        result["ok"] = result["ok"] and resumed and apart <= 1e-4
        weights = test_training.far(whole / "model", broken / "model")
        result[stage] = {"losses": losses, "losses_apart": apart, "weights_apart": weights}
    return result


def evaluation(folder: Path) -> dict[str, Any]:
    """The mini VLM's answers to the same pictures and its speed, on the GPU and on the processor."""
    samples = tiny_vlm.draw_samples(folder / "evaluated", PICTURES)
    answers: list[dict[str, dict[str, Any]]] = []
    result: dict[str, Any] = {}
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu", "cpu "):
        place = partial(load_model, device=device.strip())
        setattr(prediction, "load_model", place)  # noqa: B010
        out = prediction.predict(base_model_dir(), samples, folder / f"{device}.jsonl", batch_size=20, quiet=True)
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        answers.append({row["image"]: row for row in rows})
        parts, _ = prediction.measure_speed(base_model_dir(), samples, batch_size=20)
        seconds = {part: round(spent, 3) for part, spent in parts.items()}
        result[device] = {"images_per_second": round(len(samples) / sum(parts.values()), 1), "seconds": seconds}
    one, other = answers
    result["same_answers"] = sum(one[image]["raw"] == other[image]["raw"] for image in one) / len(one)
    p_yes = [(one[image]["p_yes"], other[image]["p_yes"]) for image in one]
    result["p_yes_apart"] = max(abs(a - b) for a, b in p_yes if None not in (a, b))
    result["ok"] = len(one) == PICTURES == len(other)
    return result


# ------------------------------------------------------------------------------------------------ all of it


def run_part(name: str, folder: Path, small: bool) -> dict[str, Any]:
    """Run one part in this process."""
    others = {"resume": resume, "evaluation": evaluation}
    if name in others:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return others[name](folder / name)
    return measure(next(case for case in CASES if case.name == name), folder, small)


def in_a_process(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """Run one part in a process of its own; its result, or the end of its output."""
    file = folder / "result.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--part", name, "--out", str(file), "--folder", str(folder), *options]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PART_SECONDS)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"not done after {PART_SECONDS} s"}
    if run.returncode or not file.exists():
        return {"ok": False, "error": (run.stderr or run.stdout)[-3000:]}
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def summary(name: str, result: dict[str, Any]) -> str:
    """One line about a part."""
    parts = [f"{'ok  ' if result['ok'] else 'FAIL'} {name}: {result['seconds']:.0f} s"]
    if "error" in result:
        parts.append(result["error"].strip().splitlines()[-1])
    if result.get("seconds_per_step"):
        parts.append(f"{result['seconds_per_step'][-1]:.2f} s a step, loss {result['losses'][-1]:.3f}")
        parts.append(f"{result['tokens_per_sequence']:.0f} tokens (plan: {result['tokens_planned']})")
        measured = result["measured"].get("peak", "not measured")
        parts.append(f"peak {measured} GiB, plan {result['estimated_peak']}, ratio {result.get('ratio', 'none')}")
    for stage in ("pa_sft", "sc_grpo"):
        if stage in result:
            parts.append(f"{stage} apart by {result[stage]['losses_apart']:.1e}")
    if "same_answers" in result:
        rates = [f"{k} {v['images_per_second']}" for k, v in result.items() if isinstance(v, dict)]
        parts.append(f"same answers {result['same_answers']:.2f}; pictures a second: {', '.join(rates)}")
    return "; ".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--only", action="append", help="parts whose names hold this text; may be given again")
    parser.add_argument("--seconds", type=float, default=1800, help="start no part after so many seconds")
    parser.add_argument(
        "--folder", type=Path, help="for weights (up to 17 GB, removed at the end); a RAM disk is quickest"
    )
    parser.add_argument("--small", action="store_true", help="cut the models and what they do, to try this command")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        options.out.write_text(json.dumps(run_part(options.part, options.folder, options.small)))
        return 0
    libraries = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    report: dict[str, Any] = {"machine": hardware(), "versions": {name: metadata.version(name) for name in libraries}}
    if torch.cuda.is_available():
        report["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / planning.GIB, 1)
    print(report, flush=True)
    report["parts"] = {}
    begun = time.monotonic()
    names = ["evaluation", "resume", *(case.name for case in CASES)]
    names = [name for name in names if not options.only or any(part in name for part in options.only)]
    folder = Path(tempfile.mkdtemp(prefix="gpu_check", dir=options.folder))
    try:
        for number, name in enumerate(names):
            if time.monotonic() - begun > options.seconds:
                print(f"left out for want of time: {', '.join(names[number:])}", flush=True)
                break
            since = time.monotonic()
            part = in_a_process(name, folder, ["--small"] if options.small else [])
            part["seconds"] = round(time.monotonic() - since, 1)
            report["parts"][name] = part
            options.out.write_text(json.dumps(report, indent=1))
            print(summary(name, part), flush=True)
            if name.endswith("sc_grpo"):  # the model's last part: make room for the next
                for weights in folder.glob(f"{name.split('.lora')[0].split('.full')[0]}.*"):
                    shutil.rmtree(weights)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(part["ok"] for part in report["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
