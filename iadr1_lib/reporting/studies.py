"""Studies: what each compares, and its results as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib.answer import GRID
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.evaluation import scoring
from iadr1_lib.expert_ad import build
from iadr1_lib.runs import project_root, read_metrics_file, runs_folder


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
        {f"{n} %": Variant(records=f"variants/pa_sft_{n}.json", share=n) for n in build.SHARES},
    ),
}


BASELINE = "PA-SFT"  # what every variant is compared with


SHIPPED = Path("data") / "reference" / "mini"


def study_named(name: str) -> Study:
    """A study; WrongUse naming the choices."""
    if name not in STUDIES:
        raise WrongUse(f"unknown study {name}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


def own_results(study: str, profile: str) -> Path:
    """Where `iadr1 ablate` puts the results of a study of one's own."""
    return runs_folder() / f"{profile}-ablation_{study}.json"


def reference_study(study: str) -> dict[str, Any] | None:
    """The results of a study that the project ships, or None where they have not been measured yet."""
    study_named(study)
    found: dict[str, Any] | None = read_metrics_file(project_root() / SHIPPED / f"ablation_{study}.json")
    return found


def shipped_study(study: str) -> dict[str, Any]:
    """As `reference_study`, or a UserError naming the command that makes them."""
    found = reference_study(study)
    if found is None:
        raise UserError(f"the results of {study} are not there: make them with `iadr1 ablate {study}`")
    return found


def study_results(study: str, profile: str) -> tuple[dict[str, Any] | None, str]:
    """Results of a study, and in words whose they are: one's own of this profile where there are some, else shipped.

    None where there are neither.
    """
    own = own_results(study, profile)
    if own.exists():
        return read_metrics_file(own), f"measured here: {own.name}"
    found = reference_study(study)
    if found is None:
        return None, f"not measured yet: iadr1 ablate {study}"
    return found, f"shipped with the project: {(SHIPPED / f'ablation_{study}.json').as_posix()}"


def study_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
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


def study_changes(rows: Sequence[dict[str, Any]], baseline: str, metric: str = "balanced_accuracy") -> pd.DataFrame:
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


def study_minutes(rows: Sequence[dict[str, Any]]) -> float:
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
