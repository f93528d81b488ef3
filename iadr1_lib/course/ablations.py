"""Ablations: runs of a stage that differ in one thing, over several seeds, on the six mini benchmarks.

A study compares with the PA-SFT models of finished course runs, one per seed. Every variant is a stage folder of its
own below <run>/ablations/<study>/, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from iadr1_lib.answer import GRID
from iadr1_lib.course import sources, steps
from iadr1_lib.data import labelled
from iadr1_lib.evaluation import MEAN, METRICS, PAIRED, paired_difference, read_predictions, score
from iadr1_lib.files import read_json
from iadr1_lib.records import Sample
from iadr1_lib.reporting import BASELINE, STUDIES, mean_row, study_named
from iadr1_lib.runs import Run, base_model_dir, pooled_provenance, provenance

LONGEST_ANSWER = 72  # tokens: names of places in finer grids are longer ("lower far right")
Answers = dict[int, pd.DataFrame]  # seed -> a model's predictions


def run_study(study: str, runs: Sequence[Run], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every variant from every run's PA-SFT model: rows and provenance, as in metrics.json.

    Raises UserError for a run without PA-SFT.
    """
    variants = list(study_named(study).variants)
    for run in runs:
        steps.stage_model(run, "pa_sft")  # all of them must be there before the first is trained
    answers: dict[str, Answers] = {name: {} for name in (BASELINE, *variants)}
    stages: dict[str, dict[int, dict[str, Any]]] = {variant: {} for variant in variants}
    for run in runs:
        samples = sources.benchmark_samples(run, f"ablation {study}")
        answers[BASELINE][run.seed] = read_predictions(steps.predict_stage(run, "pa_sft", samples))
        for variant in variants:
            say(f"{study}, seed {run.seed}: {variant}")
            answers[variant][run.seed] = answers_of_variant(run, study, variant, samples)
            stages[variant][run.seed] = read_json(variant_folder(run, study, variant) / "stage.json")
    parser = steps.evaluation_settings(runs[0]).parser
    rows = [row for variant, by_seed in answers.items() for row in _levels(variant, by_seed, parser)]
    for variant in variants:
        for baseline in (BASELINE, "strict") if study == "rewards" and variant != "strict" else (BASELINE,):
            rows += _differences(variant, baseline, answers, parser)
    for variant, facts in stages.items():
        seconds = {seed: one["seconds"] / one["steps"] for seed, one in facts.items()}
        rows.append(mean_row(f"{variant}/seconds per step", seconds, "s", len(runs)))
    for variant, facts in stages.items():
        rows.append(
            mean_row(f"{variant}/steps", {seed: one["steps"] for seed, one in facts.items()}, "steps", len(runs))
        )
    return {"rows": rows, "provenance": _provenance(study, runs)}


def variant_folder(run: Run, study: str, variant: str) -> Path:
    """The stage folder of one variant of one run."""
    return run.path("ablations", study, variant.replace(" %", "_percent").replace(" ", "_").replace("×", "x"))


def answers_of_variant(run: Run, study: str, variant: str, samples: Sequence[Sample]) -> pd.DataFrame:
    """Answers of a variant's model on samples; what is trained or answered already is used again.

    Places of a variant with a grid of its own are judged by the cells of that grid.
    """
    folder = train_variant(run, study, variant)
    path = folder / "predictions.jsonl"
    path = steps.predict_model(run, folder / "model", samples, path, max_new_tokens=LONGEST_ANSWER)
    answers = read_predictions(path)
    grid = study_named(study).variants[variant].grid
    if grid == GRID:
        return answers
    places = {sample.image: labelled(sample, grid).location for sample in samples}
    return answers.assign(location=answers["image"].map(places), grid=grid)


def train_variant(run: Run, study: str, variant: str) -> Path:
    """The stage folder of one variant of one run; a finished one is used again.

    Short runs of SC-GRPO keep the last model, PA-SFT the one with the best dev score, as the course's own.
    """
    from iadr1_lib.training import trainers

    chosen = study_named(study)
    changes = chosen.variants[variant]
    out = variant_folder(run, study, variant)
    if chosen.stage == "pa_sft":
        sft = run.profile.settings("pa_sft", trainers.PaSftSettings)
        sft = replace(sft, num_train_epochs=sft.num_train_epochs * 100 / changes.share, **changes.settings)
        if changes.grid == GRID:
            records = run.require(run.path("expert_ad", changes.records or "pa_sft.json"), "03_expert_ad")
        else:
            records = steps.build_grid_records(run, changes.grid)
        dev_check = steps.dev_check(run, max_new_tokens=LONGEST_ANSWER)
        trainers.train_pa_sft(base_model_dir(), records, out, sft, run.seed, dev_check)
    else:
        grpo = run.profile.settings("sc_grpo", trainers.ScGrpoSettings)
        grpo = replace(grpo, **run.profile.section("ablations"), **changes.settings)
        records = run.require(run.path("expert_ad", "sc_grpo.json"), "03_expert_ad")
        trainers.train_sc_grpo(steps.stage_model(run, "pa_sft"), records, out, grpo, run.seed)
    return out


def _levels(variant: str, answers: Answers, parser: str) -> list[dict[str, Any]]:
    """variant/metric/benchmark: the mean over the seeds, with the lowest and the highest.

    What a seed has no value of, as the place where it never says Yes, is left out.
    """
    scores = {seed: score(table, parser).set_index(["metric", "benchmark"])["value"] for seed, table in answers.items()}
    return [
        mean_row(
            f"{variant}/{metric}/{benchmark}",
            {s: one[metric, benchmark] for s, one in scores.items()},
            "%",
            len(scores),
        )
        for metric, benchmark in next(iter(scores.values())).index
        if metric in METRICS
        and (metric == "balanced_accuracy" or benchmark == MEAN)
        and all(pd.notna(one[metric, benchmark]) for one in scores.values())
    ]


def _differences(variant: str, baseline: str, answers: Mapping[str, Answers], parser: str) -> list[dict[str, Any]]:
    """difference/variant/baseline/metric: paired image by image, the mean over the seeds; places on one grid only.

    `p` is McNemar's, of the images that only one of the two gets right, all seeds together.
    """
    rows = []
    model, before = answers[variant], answers[baseline]
    for metric in PAIRED:
        if metric == "location" and any("grid" in table for table in model.values()):
            continue  # one place of 25 is another question than one of nine
        pooled = paired_difference(list(model.values()), list(before.values()), metric, parser)
        by_seed = {seed: paired_difference(table, before[seed], metric, parser) for seed, table in model.items()}
        rows.append(
            {
                "name": f"difference/{variant}/{baseline}/{metric}",
                "interval": "95 %, paired stratified bootstrap over images, mean of the seeds",
                "p": pooled.p_mcnemar,
                **{key: getattr(pooled, key) for key in ("value", "low", "high", "n")},
                "unit": "points",
                "seeds": {str(seed): one.value for seed, one in by_seed.items()},
            }
        )
    return rows


def _provenance(study: str, runs: Sequence[Run]) -> dict[str, Any]:
    profile, plan = runs[0].profile, STUDIES[study]
    variants = {name: asdict(variant) for name, variant in plan.variants.items()}
    parameters = {"study": study, "profile": profile.name, "baseline": plan.baseline, "variants": variants}
    parameters |= {section: profile.section(section) for section in ("pa_sft", "sc_grpo", "ablations", "evaluation")}
    return pooled_provenance(parameters, [provenance(run) for run in runs])
