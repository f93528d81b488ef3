"""Run folders as notebooks 04 to 08 leave them, made in a second: pictures drawn, answers at random."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

from iadr1_lib import world as synthetic
from iadr1_lib.answer import build_answer
from iadr1_lib.data import load_mvtec
from iadr1_lib.evaluation import BASELINES, MEAN, PAIRED, metric_rows, paired_difference, read_predictions, score
from iadr1_lib.files import write_json, write_text
from iadr1_lib.records import Sample
from iadr1_lib.reporting import COMPARISONS, EVALUATION
from iadr1_lib.runs import Run, record_metrics

SKILL = {"base": 0.5, "pa_sft": 0.7, "sc_grpo": 0.85, "control": 0.75}
IMAGES = 16
PREDICTOR = 57.0  # what each simple predictor reaches


def write_run(folder: Path, world: Path, seed: int, stages: tuple[str, ...] = tuple(SKILL), logs: bool = True) -> Run:
    """A run folder as notebooks 04 to 08 leave it, with random answers: right with a stage's skill."""
    run = Run("smoke", seed, folder)
    samples = [sample for place in sorted(world.iterdir()) for sample in load_mvtec(place, place.name)]
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    answers = {}
    for stage in stages:
        lines = [json.dumps(prediction(sample, rng, stage, seed)) + "\n" for sample in samples]
        answers[stage] = read_predictions(write_text(run.path("predictions", f"{stage}.jsonl"), "".join(lines)))
        rows += metric_rows(score(answers[stage]), stage)
        if stage != "base":
            write_json(run.path(stage, "stage.json"), {"seconds": 60.0 + seed, "steps": 10})
            if logs:
                write_log(run.path(stage, "log.csv"))
    for model, baseline in COMPARISONS:
        if {model, baseline} <= set(stages):
            for metric in PAIRED:
                difference = paired_difference(answers[model], answers[baseline], metric)
                numbers = {key: getattr(difference, key) for key in ("value", "low", "high", "n")}
                rows.append({"name": f"difference/{model}-{baseline}/{metric}", **numbers, "unit": "points"})
    for name in BASELINES:
        for benchmark in (*sorted(place.name for place in world.iterdir()), MEAN):
            numbers = {"value": PREDICTOR, "low": PREDICTOR - 4, "high": PREDICTOR + 4, "n": IMAGES, "unit": "%"}
            rows.append({"name": f"baseline/{name}/balanced_accuracy/{benchmark}", **numbers})
    record_metrics(run, EVALUATION, rows)
    record_metrics(run, "batch", [{"name": "course seconds", "value": 600.0 + seed, "unit": "s"}])
    return run


def prediction(sample: Sample, rng: random.Random, stage: str, seed: int) -> dict[str, Any]:
    """One row of predictions.jsonl; every Yes names the same place and type."""
    wrong = "no" if sample.label == "yes" else "yes"
    word = sample.label if rng.random() < SKILL[stage] else wrong
    tags = ("top", "hole") if word == "yes" else ()
    raw = word if stage == "base" else build_answer("I look at the top .", word, *tags)
    truth = {key: getattr(sample, key) for key in ("image", "category", "benchmark", "label", "location", "type")}
    return {**truth, "raw": raw, "p_yes": 0.5, "prompt": "bare", "protocol": "fair", "model": stage, "seed": seed}


def write_log(path: Path) -> None:
    """A training log with one check on dev at its end."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss", "reward", "dev_score"])
        writer.writerows([[step, 1 / (step + 1), step, ""] for step in range(1, 10)] + [[10, "", "", 60]])


def draw_world(root: Path) -> Path:
    """The six mini benchmarks, IMAGES pictures each."""
    for number, (name, families) in enumerate(synthetic.test_families().items()):
        synthetic.write_world(root / name, families, IMAGES, seed=number)
    return root
