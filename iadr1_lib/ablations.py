"""Ablations: runs of a stage that differ in one thing, over several seeds, on the six mini benchmarks.

A study compares with the PA-SFT models of finished course runs, one per seed. Every variant is a stage folder of its
own below <run>/ablations/<study>/, so that a study that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib import course, expert_ad, scoring
from iadr1_lib.answer import GRID
from iadr1_lib.benchmarks import Sample
from iadr1_lib.records import labelled
from iadr1_lib.runs import (
    Run,
    UserError,
    WrongUse,
    base_model_dir,
    pooled_provenance,
    project_root,
    provenance,
    read_json,
    read_metrics_file,
    runs_folder,
)


@dataclass(frozen=True)
class Variant:
    """What one variant changes: settings of its stage; for PA-SFT also its records.

    records: file below expert_ad. share: percent of the pictures that are left, passed through as many more times, so
    that every share takes the same number of steps. grid: rows and columns of the grid that places are cells of.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    records: str | None = None
    share: int = 100
    grid: int = GRID


@dataclass(frozen=True)
class Study:
    """What is compared: variants of a stage, and what the course's own PA-SFT is among them.

    SC-GRPO's variants are shorter runs from PA-SFT (profile section `ablations`), PA-SFT's as long as PA-SFT itself.
    """

    stage: str
    baseline: str
    variants: dict[str, Variant]


_PARTS = ("consistency", "accuracy", "location", "type")


def _without(part: str) -> Variant:
    return Variant({"rewards": "strict", "reward_parts": tuple(other for other in _PARTS if other != part)})


STUDIES = {
    "rewards": Study(  # the paper's Tables 3 and 5, and the three sets of rules for the same four rewards
        "sc_grpo",
        "before SC-GRPO",
        {
            "strict": Variant({"rewards": "strict"}),
            "paper": Variant({"rewards": "paper"}),
            "released": Variant({"rewards": "released"}),
            "accuracy only": Variant({"rewards": "strict", "reward_parts": ("accuracy",)}),
            "without consistency": _without("consistency"),
            "without location": _without("location"),
            "without type": _without("type"),
        },
    ),
    "reasoning": Study(  # Table 2
        "pa_sft", "with reasoning", {"answers only": Variant(records="variants/pa_sft_answer_only.json")}
    ),
    "grid": Study("pa_sft", "3×3", {f"{n}×{n}": Variant(grid=n) for n in (1, 2, 4, 5)}),  # Figure 3
    "data": Study(  # the released code has these shares, the paper no curve of them
        "pa_sft",
        "100 %",
        {f"{n} %": Variant(records=f"variants/pa_sft_{n}.json", share=n) for n in expert_ad.SHARES},
    ),
}
BASELINE = "PA-SFT"  # what every variant is compared with
LONGEST_ANSWER = 72  # tokens: names of places in finer grids are longer ("lower far right")
SHIPPED = Path("data") / "reference" / "mini"


def study_named(name: str) -> Study:
    """A study; WrongUse naming the choices."""
    if name not in STUDIES:
        raise WrongUse(f"unknown study {name}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def run_study(study: str, runs: Sequence[Run], say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train and measure every variant from every run's PA-SFT model: rows and provenance, as in metrics.json.

    Raises UserError for a run without PA-SFT.
    """
    variants = study_named(study).variants
    for run in runs:
        course.stage_model(run, "pa_sft")  # all of them must be there before the first is trained
    answers: dict[str, dict[int, pd.DataFrame]] = {name: {} for name in (BASELINE, *variants)}
    seconds: dict[str, dict[int, float]] = {variant: {} for variant in variants}
    steps: dict[str, dict[int, float]] = {variant: {} for variant in variants}
    for run in runs:
        samples = course.benchmark_samples(run, f"ablation {study}")
        before = course.predict_stage(run, "pa_sft", samples)
        answers[BASELINE][run.seed] = scoring.read_predictions(before)
        for variant in variants:
            say(f"{study}, seed {run.seed}: {variant}")
            answers[variant][run.seed] = answers_of_variant(run, study, variant, samples)
            facts = read_json(variant_folder(run, study, variant) / "stage.json")
            seconds[variant][run.seed] = facts["seconds"] / facts["steps"]
            steps[variant][run.seed] = facts["steps"]
    parser = course.evaluation_settings(runs[0]).parser
    rows = [row for variant, tables in answers.items() for row in _levels(variant, tables, parser)]
    first = next(iter(variants))
    for variant in variants:
        rows += _differences(variant, BASELINE, answers, parser)
        if study == "rewards" and variant != first:
            rows += _differences(variant, first, answers, parser)
    for name, values, unit in (("seconds per step", seconds, "s"), ("steps", steps, "steps")):
        rows += [_row(f"{variant}/{name}", by_seed, unit) for variant, by_seed in values.items()]
    return {"rows": rows, "provenance": _provenance(study, runs)}


def variant_folder(run: Run, study: str, variant: str) -> Path:
    """The stage folder of one variant of one run."""
    return run.path("ablations", study, variant.replace(" %", "_percent").replace(" ", "_").replace("×", "x"))


def answers_of_variant(run: Run, study: str, variant: str, samples: Sequence[Sample]) -> pd.DataFrame:
    """Answers of a variant's model on samples; it is trained and asked where that has not been done.

    Places of a variant with a grid of its own are judged by the cells of that grid.
    """
    folder = train_variant(run, study, variant)
    after = course.predict_model(
        run, folder / "model", samples, folder / "predictions.jsonl", max_new_tokens=LONGEST_ANSWER
    )
    answers = scoring.read_predictions(after)
    grid = study_named(study).variants[variant].grid
    if grid == GRID:
        return answers
    places = {sample.image: labelled(sample, grid).location for sample in samples}
    return answers.assign(location=answers["image"].map(places), grid=grid)


def train_variant(run: Run, study: str, variant: str) -> Path:
    """The stage folder of one variant of one run; a finished one is used again.

    Short runs of SC-GRPO keep the last model, PA-SFT the one with the best dev score, as the course's own.
    """
    from iadr1_lib import training

    chosen = study_named(study)
    changes = chosen.variants[variant]
    out = variant_folder(run, study, variant)
    if chosen.stage == "pa_sft":
        sft = run.profile.settings("pa_sft", training.PaSftSettings)
        sft = replace(sft, epochs=sft.epochs * 100 / changes.share, **changes.settings)
        records = _pa_sft_records(run, changes)
        training.train_pa_sft(
            base_model_dir(), records, out, sft, run.seed, course.dev_check(run, max_new_tokens=LONGEST_ANSWER)
        )
    else:
        grpo = run.profile.settings("sc_grpo", training.ScGrpoSettings)
        grpo = replace(grpo, **run.profile.section("ablations"), **changes.settings)
        records = run.require(run.path("expert_ad", "sc_grpo.json"), "03_expert_ad")
        training.train_sc_grpo(course.stage_model(run, "pa_sft"), records, out, grpo, run.seed)
    return out


def _pa_sft_records(run: Run, variant: Variant) -> Path:
    if variant.grid != GRID:
        return course.build_grid_records(run, variant.grid)
    return run.require(run.path("expert_ad", variant.records or "pa_sft.json"), "03_expert_ad")


def _levels(variant: str, tables: dict[int, pd.DataFrame], parser: str) -> list[dict[str, Any]]:
    """variant/metric/benchmark: the mean over the seeds, with the lowest and the highest."""
    scored = {
        seed: scoring.score(table, parser).set_index(["metric", "benchmark"])["value"] for seed, table in tables.items()
    }
    return [
        _row(
            f"{variant}/{metric}/{benchmark}", {seed: values[metric, benchmark] for seed, values in scored.items()}, "%"
        )
        for metric, benchmark in next(iter(scored.values())).index
        if metric in scoring.METRICS and (metric == "balanced_accuracy" or benchmark == scoring.MEAN)
    ]


def _row(name: str, by_seed: dict[int, float], unit: str) -> dict[str, Any]:
    values = [float(value) for value in by_seed.values()]
    ends = {"value": float(np.mean(values)), "low": min(values), "high": max(values)}
    seeds = {str(seed): float(value) for seed, value in by_seed.items()}
    return {"name": name, **ends, "n": len(values), "unit": unit, "interval": "lowest and highest seed", "seeds": seeds}


def _differences(
    variant: str, baseline: str, answers: dict[str, dict[int, pd.DataFrame]], parser: str
) -> list[dict[str, Any]]:
    """difference/variant/baseline/metric: paired image by image, the mean over the seeds; places on one grid only.

    `p` is McNemar's, of the images that only one of the two gets right, all seeds together.
    """
    rows = []
    model, before = answers[variant], answers[baseline]
    same_grid = all("grid" not in table for table in model.values())
    for metric in scoring.PAIRED:
        if metric == "location" and not same_grid:
            continue  # one place of 25 is another question than one of nine
        made = scoring.paired_difference(list(model.values()), list(before.values()), metric, parser)
        seeds = {
            str(seed): scoring.paired_difference(table, before[seed], metric, parser).value
            for seed, table in model.items()
        }
        numbers = {"value": made.value, "low": made.low, "high": made.high, "n": made.n, "unit": "points"}
        interval = "95 %, paired stratified bootstrap over images, mean of the seeds"
        said = {"name": f"difference/{variant}/{baseline}/{metric}", "interval": interval, "p": made.p_mcnemar}
        rows.append(said | numbers | {"seeds": seeds})
    return rows


def _provenance(study: str, runs: Sequence[Run]) -> dict[str, Any]:
    profile = runs[0].profile
    variants = {name: asdict(variant) for name, variant in STUDIES[study].variants.items()}
    said = {"study": study, "profile": profile.name, "baseline": STUDIES[study].baseline, "variants": variants}
    said |= {section: profile.section(section) for section in ("pa_sft", "sc_grpo", "ablations", "evaluation")}
    return pooled_provenance(said, [provenance(run) for run in runs])


# ---------------------------------------------------------------------------------------------- what is shown


def own_results(study: str, profile: str) -> Path:
    """Where `iadr1 ablate` puts the results of a study of one's own."""
    return runs_folder() / f"{profile}-ablation_{study}.json"


def reference(study: str) -> dict[str, Any] | None:
    """The results of a study that the project ships, or None where they have not been measured yet."""
    study_named(study)
    found: dict[str, Any] | None = read_metrics_file(project_root() / SHIPPED / f"ablation_{study}.json")
    return found


def shipped(study: str) -> dict[str, Any]:
    """As `reference`, or a UserError naming the command that makes them."""
    found = reference(study)
    if found is None:
        raise UserError(f"the results of {study} are not there: make them with `iadr1 ablate {study}`")
    return found


def results(study: str, profile: str) -> tuple[dict[str, Any] | None, str]:
    """Results of a study, and in words whose they are: one's own of this profile where there are some, else shipped.

    None where there are neither.
    """
    own = own_results(study, profile)
    if own.exists():
        return read_metrics_file(own), f"measured here: {own.name}"
    found = reference(study)
    if found is None:
        return None, f"not measured yet: iadr1 ablate {study}"
    return found, f"shipped with the project: {(SHIPPED / f'ablation_{study}.json').as_posix()}"


def table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One column per variant: balanced accuracy on each benchmark and their mean, place, type, and what changed.

    Levels in %, the mean over the seeds with the lowest and the highest in round brackets; changes in points, with 95 %
    intervals in square ones.
    """
    by_name = {row["name"]: row for row in rows}
    levels = [name.split("/") for name in by_name if len(name.split("/")) == 3]
    variants = list(dict.fromkeys(parts[0] for parts in levels))
    measured = list(dict.fromkeys((parts[1], parts[2]) for parts in levels if parts[1] in scoring.METRICS))
    measured.sort(key=lambda pair: list(scoring.METRICS).index(pair[0]))
    lines = []
    for metric, benchmark in measured:
        title = benchmark if metric == "balanced_accuracy" and benchmark != scoring.MEAN else scoring.METRICS[metric]
        cells = {variant: _level(by_name.get(f"{variant}/{metric}/{benchmark}")) for variant in variants}
        lines.append({"%": title, **cells})
    compared = dict.fromkeys(name.split("/")[2] for name in by_name if name.startswith("difference/"))
    for baseline in compared:
        for metric in scoring.PAIRED:
            changes = {v: scoring.signed(by_name.get(f"difference/{v}/{baseline}/{metric}")) for v in variants}
            lines.append({"%": f"{scoring.METRICS[metric]}, minus {baseline}", **changes})
    return pd.DataFrame(lines)


def changes(rows: Sequence[dict[str, Any]], baseline: str, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """One row per variant: what it has more than a baseline, in points.

    Columns variant, value, low, high (95 %), p (McNemar's) and seeds (each seed's own value); results of before these
    two were kept have NaN and an empty list. Empty where nothing was compared with this baseline.
    """
    found = []
    for row in rows:
        kind, *words = row["name"].split("/")
        if kind == "difference" and words[1:] == [baseline, metric]:
            numbers = {key: row[key] for key in ("value", "low", "high")} | {"p": row.get("p", np.nan)}
            found.append({"variant": words[0], **numbers, "seeds": list(row.get("seeds", {}).values())})
    return pd.DataFrame(found, columns=["variant", "value", "low", "high", "p", "seeds"])


def minutes(rows: Sequence[dict[str, Any]]) -> float:
    """How long a study's runs trained, all variants and seeds together, one after the other."""
    by_name = {row["name"]: row["seeds"] for row in rows if "seeds" in row}
    each = [
        by_name[f"{name.removesuffix('/steps')}/seconds per step"][seed] * steps
        for name, seeds in by_name.items()
        if name.endswith("/steps")
        for seed, steps in seeds.items()
    ]
    return sum(each) / 60


def _level(row: dict[str, Any] | None) -> str:
    return (
        "–" if row is None or pd.isna(row["value"]) else f"{row['value']:.1f} ({row['low']:.0f} to {row['high']:.0f})"
    )
