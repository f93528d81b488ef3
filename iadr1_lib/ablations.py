"""Ablations: short runs of SC-GRPO that differ in one thing, over several seeds, on the six mini benchmarks.

A study starts from the PA-SFT models of finished course runs, one per seed. Every variant is a stage folder of its own
below <run>/ablations/<study>/, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib import course, scoring
from iadr1_lib.runs import Run, UserError, WrongUse, project_root, provenance, read_json

# study -> variant -> what it changes in the settings of SC-GRPO
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "rewards": {
        "strict": {"rewards": "strict"},
        "paper": {"rewards": "paper"},
        "released": {"rewards": "released"},
        "accuracy only": {"rewards": "strict", "reward_parts": ("accuracy",)},
    }
}
BASELINE = "PA-SFT"  # what every variant starts from
LEVELS = (
    "balanced_accuracy",
    "accuracy_normal",
    "accuracy_defective",
    "share_yes",
    "share_unparsed",
    "location",
    "type",
)
PAIRED = ("balanced_accuracy", "location", "type")
REFERENCE = Path("data") / "reference" / "mini"


def study_named(name: str) -> dict[str, dict[str, Any]]:
    """The variants of a study; WrongUse naming the choices."""
    if name not in STUDIES:
        raise WrongUse(f"unknown study {name}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def run_study(study: str, runs: Sequence[Run], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every variant from every run's PA-SFT model: rows and provenance, as in metrics.json.

    Raises UserError for a run without PA-SFT.
    """
    variants = study_named(study)
    for run in runs:
        course.stage_model(run, "pa_sft")  # all of them must be there before the first is trained
    answers: dict[str, dict[int, pd.DataFrame]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for run in runs:
        samples = course.benchmark_samples(run, f"ablation {study}")
        before = course.predict_stage(run, "pa_sft", samples)
        answers.setdefault(BASELINE, {})[run.seed] = scoring.read_predictions(before)
        for variant in variants:
            say(f"{study}, seed {run.seed}: {variant}")
            folder = train_variant(run, study, variant)
            after = course.predict_model(run, folder / "model", samples, folder / "predictions.jsonl")
            answers.setdefault(variant, {})[run.seed] = scoring.read_predictions(after)
            facts = read_json(folder / "stage.json")
            seconds.setdefault(variant, {})[run.seed] = facts["seconds"] / facts["steps"]
    parser = course.evaluation_settings(runs[0]).parser
    rows = [row for variant, tables in answers.items() for row in _levels(variant, tables, parser)]
    rows += [row for variant in variants for row in _differences(variant, answers, parser)]
    rows += [_row(f"{variant}/seconds per step", list(by_seed.values()), "s") for variant, by_seed in seconds.items()]
    return {"rows": rows, "provenance": _provenance(study, runs)}


def train_variant(run: Run, study: str, variant: str) -> Path:
    """The stage folder of one variant of one run; a finished one is used again. The last model is kept."""
    from iadr1_lib import training

    settings = run.profile.settings("sc_grpo", training.ScGrpoSettings)
    settings = replace(settings, **run.profile.section("ablations"), **study_named(study)[variant])
    records = run.require(run.path("expert_ad", "sc_grpo.json"), "03_expert_ad")
    out = run.path("ablations", study, variant.replace(" ", "_"))
    training.train_sc_grpo(course.stage_model(run, "pa_sft"), records, out, settings, run.seed)
    return out


def _levels(variant: str, tables: dict[int, pd.DataFrame], parser: str) -> list[dict[str, Any]]:
    """variant/metric/benchmark: the mean over the seeds, with the lowest and the highest."""
    scored = [scoring.score(table, parser).set_index(["metric", "benchmark"])["value"] for table in tables.values()]
    return [
        _row(f"{variant}/{metric}/{benchmark}", [float(values[metric, benchmark]) for values in scored], "%")
        for metric, benchmark in scored[0].index
        if metric in LEVELS and (metric == "balanced_accuracy" or benchmark == scoring.MEAN)
    ]


def _row(name: str, values: list[float], unit: str) -> dict[str, Any]:
    ends = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
    return {"name": name, **ends, "n": len(values), "unit": unit, "interval": "lowest and highest seed"}


def _differences(variant: str, answers: dict[str, dict[int, pd.DataFrame]], parser: str) -> list[dict[str, Any]]:
    """difference/variant/metric: against the start, paired image by image, over all seeds."""
    rows = []
    for metric in PAIRED:
        model, baseline = list(answers[variant].values()), list(answers[BASELINE].values())
        made = scoring.paired_difference(model, baseline, metric, parser)
        numbers = {"value": made.value, "low": made.low, "high": made.high, "n": made.n, "unit": "points"}
        interval = "95 %, paired stratified bootstrap over images, mean of the seeds"
        rows.append({"name": f"difference/{variant}/{metric}", **numbers, "interval": interval})
    return rows


def _provenance(study: str, runs: Sequence[Run]) -> dict[str, Any]:
    profile = runs[0].profile
    said = {"study": study, "profile": profile.name, "variants": STUDIES[study]}
    said |= {section: profile.section(section) for section in ("sc_grpo", "ablations", "evaluation")}
    each = ("seed", "commit", "data_hash", "time", "versions", "hardware")
    blocks = [provenance(run) for run in runs]
    return {
        "parameters": said,
        "runs": [{key: block[key] for key in each} for block in blocks],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


# ---------------------------------------------------------------------------------------------- what is shown


def shipped(study: str) -> dict[str, Any]:
    """The results of a study that the project ships; UserError naming the command that makes them."""
    study_named(study)
    path = project_root() / REFERENCE / f"ablation_{study}.json"
    found: dict[str, Any] | None = read_json(path)
    if found is None:
        raise UserError(f"{path} is not there: make it with `iadr1 ablate {study} --out {path.name}`")
    return found


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per variant: balanced accuracy on each benchmark and their mean, place and type, change against PA-SFT.

    In %, means over the seeds; square brackets hold 95 % intervals, in points.
    """
    by_name = {row["name"]: row for row in rows}
    names = [name.split("/") for name in by_name if "/balanced_accuracy/" in name and not name.startswith("difference")]
    variants, benchmarks = (list(dict.fromkeys(parts[place] for parts in names)) for place in (0, 2))
    lines = []
    for variant in variants:
        line = {"trained with": variant}
        line |= {b: f"{by_name[f'{variant}/balanced_accuracy/{b}']['value']:.1f}" for b in benchmarks}
        line |= {
            m: f"{by_name[f'{variant}/{m}/{scoring.MEAN}']['value']:.1f}" for m in ("location", "type", "share_yes")
        }
        for metric in PAIRED:
            change = by_name.get(f"difference/{variant}/{metric}")
            line[f"{metric}: change"] = _signed(change) if change else "–"
        lines.append(line)
    renamed = {"share_yes": "share of Yes", "balanced_accuracy: change": "balanced accuracy: change"}
    return pd.DataFrame(lines).rename(columns=renamed)


def _signed(row: dict[str, Any]) -> str:
    return f"{row['value']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
