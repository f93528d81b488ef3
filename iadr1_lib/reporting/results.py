"""What runs recorded: one run's numbers, several seeds together, and the results that the project ships.

Nothing is measured again here, except differences over several seeds, which need the answers themselves. A row is a
dictionary with name, value, low, high, n and unit; names are stage/metric/benchmark, baseline/… and difference/….
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import (
    MEAN,
    PAIRED,
    SEED_RANGE,
    judge,
    paired_difference,
    read_predictions,
    require_one_protocol,
)
from iadr1_lib.expert_ad import note_of
from iadr1_lib.files import read_object
from iadr1_lib.runs import RUN_KEYS, notebook_records, pooled_provenance, project_root, read_metrics_file, require

Row = dict[str, Any]

STAGES = {"base": "base", "pa_sft": "PA-SFT", "sc_grpo": "SC-GRPO", "control": "control"}  # name in files -> title
COMPARISONS = (("pa_sft", "base"), ("sc_grpo", "pa_sft"), ("control", "pa_sft"), ("sc_grpo", "control"))
EVALUATION, REPORT, BATCH = "08_evaluation", "10_report", "batch"  # who recorded a row
SHIPPED = Path("data") / "reference" / "mini"
REFERENCE = SHIPPED / "metrics.json"
_EDGES, _MIDDLES = [0, 0.2, 0.4, 0.6, 0.8, 1.01], [0.1, 0.3, 0.5, 0.7, 0.9]  # of the bins of severity


# -------------------------------------------------------------------------------------------------- one run


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    """The rows, each under its name."""
    return {row["name"]: row for row in rows}


def recorded(folder: Path) -> dict[str, Any]:
    """metrics.json of a run folder; UserError if the evaluation has not been recorded there."""
    path = require(folder / "metrics.json", EVALUATION)
    metrics: dict[str, Any] = read_metrics_file(path, of_run=True)
    if not any(row["notebook"] == EVALUATION for row in metrics["rows"]):
        raise UserError(f"{path} has no rows of {EVALUATION}: run that notebook first (iadr1 run --only 08)")
    if missing := {*RUN_KEYS, "parameters"} - set(metrics["provenance"]):
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: run the course's notebooks again")
    return metrics


def shipped(file: str = "metrics.json", profile: str = "mini") -> dict[str, Any]:
    """A file of results that the project ships for a profile; UserError where it is missing."""
    path = SHIPPED.with_name(profile) / file
    metrics: dict[str, Any] | None = read_metrics_file(project_root() / path)
    if metrics is None:
        raise UserError(f"{path.as_posix()} is missing: restore it from the project, or name run folders")
    return metrics


def stage_scores(metrics: dict[str, Any]) -> pd.DataFrame:
    """The rows named stage/metric/benchmark, of notebook 08 or of several seeds, a column for each part of the name.

    Stages come in the course's order.
    """
    name = re.compile(f"({'|'.join(STAGES)})/[^/]+/[^/]+")
    rows = [row for row in metrics["rows"] if row["notebook"] in (EVALUATION, REPORT) and name.fullmatch(row["name"])]
    frame = pd.DataFrame(rows)
    parts = frame["name"].str.split("/", expand=True).set_axis(["stage", "metric", "benchmark"], axis=1)
    frame = pd.concat([parts, frame], axis=1).astype({"value": float, "low": float, "high": float})
    return frame.sort_values("stage", key=lambda stage: stage.map(list(STAGES).index), kind="stable", ignore_index=True)


def differences(metrics: dict[str, Any]) -> pd.DataFrame:
    """Paired differences between stages in points: of one run, or of each seed and of all seeds together.

    Columns comparison ("SC-GRPO − PA-SFT"), metric, seed (a number as text, or "pooled"), value, low, high, n.
    """
    rows = []
    for row in metrics["rows"]:
        kind, *parts = row["name"].split("/")
        if kind == "difference" and row["notebook"] in (EVALUATION, REPORT):
            seed = parts[2].removeprefix("seed ") if len(parts) == 3 else str(metrics["provenance"]["seed"])
            rows.append({"comparison": comparison_title(parts[0]), "metric": parts[1], "seed": seed, **row})
    frame = pd.DataFrame(rows, columns=["comparison", "metric", "seed", "value", "low", "high", "n"])
    order = [comparison_title(f"{model}-{baseline}") for model, baseline in COMPARISONS]
    frame = frame.sort_values("comparison", key=lambda title: title.map(order.index), kind="stable", ignore_index=True)
    return frame.astype({"value": float, "low": float, "high": float})


def comparison_title(pair: str) -> str:
    """ "sc_grpo-pa_sft" -> "SC-GRPO − PA-SFT"."""
    model, baseline = pair.split("-")
    return f"{STAGES[model]} − {STAGES[baseline]}"


def _stage_facts(stage: Path) -> dict[str, Any] | None:
    """stage.json of a stage's folder, None where it was not trained; UserError for another shape."""
    facts: dict[str, Any] | None = read_object(stage / "stage.json", seconds=(int, float), steps=(int, float))
    return facts


def cost(folder: Path) -> pd.DataFrame:
    """Seconds and steps of each trained stage, from its stage.json."""
    facts = {title: _stage_facts(folder / stage) for stage, title in STAGES.items()}
    rows = [{**one, "stage": title} for title, one in facts.items() if one]
    return pd.DataFrame(rows, columns=["stage", "seconds", "steps"])


def notebook_times(folder: Path) -> pd.DataFrame:
    """Status, seconds and peak memory (MiB, all processes) of each notebook but the report, from manifest.json."""
    records = notebook_records(folder / "manifest.json")
    # the report is being executed, or stands from an earlier call
    rows = [{"notebook": name, **record} for name, record in sorted(records.items()) if name != REPORT]
    columns = ["notebook", "status", "seconds", "peak_mib"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"peak_mib": "peak MiB"})


def predictions(folder: Path) -> dict[str, pd.DataFrame]:
    """Predictions of every stage that has some, in the course's order; UserError if their protocols differ."""
    files = {stage: folder / "predictions" / f"{stage}.jsonl" for stage in STAGES}
    answers = {stage: read_predictions(path) for stage, path in files.items() if path.exists()}
    if answers:
        require_one_protocol(answers)
    return answers


def severity_of(image: str | Path) -> float:
    """How glaring a drawn defect is (0 barely visible, 1 glaring), from its notes.json; NaN for real ones."""
    return float(note_of(image).get("severity", np.nan))


def found_by_severity(answers: dict[str, pd.DataFrame], parser: str = "fair") -> pd.DataFrame:
    """Share of defects found in each of five bins of severity, in %, as `interval_chart` takes it.

    Columns stage, severity (the bin's middle), value, low, high (95 % Wilson intervals), n. Severities are what the
    drawing noted beside the pictures; a picture without one is left out.
    """
    rows = []
    for stage, table in answers.items():
        judged = judge(table[table["label"] == "yes"], parser)
        middles = pd.cut(judged["image"].map(severity_of), _EDGES, labels=_MIDDLES, right=False)
        for middle, right in judged["correct"].groupby(middles, observed=True):
            low, high = proportion_confint(int(right.sum()), len(right), method="wilson")
            ends = {"value": 100 * float(right.mean()), "low": 100 * low, "high": 100 * high}
            rows.append({"stage": stage, "severity": middle, **ends, "n": len(right)})
    return pd.DataFrame(rows, columns=["stage", "severity", "value", "low", "high", "n"])


# --------------------------------------------------------------------------------------------- several seeds


def pooled_metrics(run_folders: Sequence[str | Path]) -> dict[str, Any]:
    """Metrics of runs of one profile with different seeds: what data/reference/mini/metrics.json holds.

    - stage/metric/benchmark and cost: the mean over the seeds; low and high are the lowest and highest seed.
    - difference/stage-stage/metric/seed N: one seed's paired difference with its 95 % stratified bootstrap
      interval; …/pooled: the mean over the seeds with the interval of that mean (images drawn again within
      each seed).

    Each row also has `seeds` (seed -> value) and `interval`, which says what low and high are. What is not in
    every run is left out. Raises UserError for a run without an evaluation, runs of different settings, or a
    seed that comes twice.
    """
    folders = [Path(folder) for folder in run_folders]
    runs = _comparable(folders)
    blocks = [metrics["provenance"] for metrics in runs.values()]
    rows = []
    for row in next(iter(runs.values()))["rows"]:
        if _is_pooled(row):
            rows += _pooled_row(row["name"], _values(runs, row), row["unit"], row["n"])
    for stage in list(STAGES)[1:]:
        facts = {seed: _stage_facts(folder / stage) or {} for seed, folder in zip(runs, folders, strict=True)}
        rows += _pooled_row(f"{stage}/seconds", {seed: one.get("seconds") for seed, one in facts.items()}, "s", None)
    answers = {seed: predictions(folder) for seed, folder in zip(runs, folders, strict=True)}
    parser = blocks[0]["parameters"].get("evaluation", {}).get("parser", "fair")
    for model, baseline in COMPARISONS:
        if all({model, baseline} <= set(stages) for stages in answers.values()):
            pairs = {seed: (stages[model], stages[baseline]) for seed, stages in answers.items()}
            for metric in PAIRED[:1] if baseline == "base" else PAIRED:  # the base names no location and no type
                rows += _difference_rows(f"difference/{model}-{baseline}/{metric}", pairs, metric, parser)
    return {"rows": rows, "provenance": pooled_provenance(blocks[0]["parameters"], blocks)}


def mean_row(name: str, by_seed: Mapping[Any, float], unit: str | None, n: int | None) -> Row:
    """A row with the mean over seeds, the lowest and the highest of them."""
    values = [float(value) for value in by_seed.values()]
    ends = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
    seeds = {str(seed): float(value) for seed, value in by_seed.items()}
    return {"name": name, **ends, "n": n, "unit": unit, "seeds": seeds, "interval": SEED_RANGE}


def _comparable(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """seed -> metrics.json, after checking that the runs differ in nothing but the seed."""
    if not folders:
        raise UserError("there is no run to report on: name at least one run folder, such as runs/mini-s0")
    runs: dict[str, dict[str, Any]] = {}
    for folder in folders:
        metrics = recorded(folder)
        block, seed = metrics["provenance"], str(metrics["provenance"]["seed"])
        if runs and block["parameters"] != next(iter(runs.values()))["provenance"]["parameters"]:
            raise UserError(f"{folder} and {folders[0]} were run with other settings: only their seeds may differ")
        if seed in runs:
            raise UserError(f"{folder} has seed {seed}, as another run has: name each seed once")
        runs[seed] = metrics
    return runs


def _is_pooled(row: Row) -> bool:
    if row["notebook"] == BATCH:
        return row["name"] in ("course seconds", "peak memory", "from scratch")
    wanted = row["name"].endswith(f"/{MEAN}") or "/balanced_accuracy/" in row["name"]
    return bool(row["notebook"] == EVALUATION and wanted and not row["name"].startswith("difference/"))


def _values(runs: dict[str, dict[str, Any]], wanted: Row) -> dict[str, float | None]:
    """seed -> value of that row, None where a run lacks it.

    What the batch measured counts for runs of the whole course only, if there is one: the time of some notebooks
    says nothing of the whole.
    """
    key = (wanted["notebook"], wanted["name"])
    rows: dict[str, Row] = {
        seed: next((row for row in metrics["rows"] if (row["notebook"], row["name"]) == key), {})
        for seed, metrics in runs.items()
    }
    if wanted["notebook"] == BATCH:
        most = max(row.get("n") or 0 for row in rows.values())
        rows = {seed: row for seed, row in rows.items() if not row or (row["n"] or 0) == most}
    return {seed: row.get("value") for seed, row in rows.items()}


def _pooled_row(name: str, values: dict[str, float | None], unit: str | None, n: int | None) -> list[Row]:
    """One row with the mean of all seeds; none where a seed has no value."""
    known = {seed: value for seed, value in values.items() if value is not None}
    return [{"notebook": REPORT, **mean_row(name, known, unit, n)}] if len(known) == len(values) else []


def _difference_rows(
    name: str, pairs: dict[str, tuple[pd.DataFrame, pd.DataFrame]], metric: str, parser: str
) -> list[Row]:
    """The difference of each seed, then that of all of them, which is the mean."""
    rows: list[Row] = []
    values: dict[str, float] = {}
    for label, seeds in {**{f"seed {seed}": [seed] for seed in pairs}, "pooled": list(pairs)}.items():
        models, baselines = ([pairs[seed][side] for seed in seeds] for side in (0, 1))
        difference = paired_difference(models, baselines, metric, parser)
        if label != "pooled":
            values[seeds[0]] = difference.value
        ends = {key: getattr(difference, key) for key in ("value", "low", "high")}
        numbers = {key: None if pd.isna(end) else end for key, end in ends.items()}
        known = {seed: values[seed] for seed in seeds if not pd.isna(values[seed])}
        more = {"n": difference.n, "unit": "points", "seeds": known, "interval": "95 %, paired stratified bootstrap"}
        rows.append({"notebook": REPORT, "name": f"{name}/{label}", **numbers, **more})
    return rows
