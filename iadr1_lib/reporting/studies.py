"""Studies of `iadr1 ablate`: what each compares, where its results lie, and its rows as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib.answer import GRID
from iadr1_lib.errors import WrongUse
from iadr1_lib.evaluation import MEAN, METRICS, PAIRED, interval_text
from iadr1_lib.expert_ad import build
from iadr1_lib.reporting.results import SHIPPED, Row, by_name, shipped
from iadr1_lib.runs import read_metrics_file, runs_folder

BASELINE = "PA-SFT"  # what every variant is compared with
PARTS = ("consistency", "location", "type")  # the rewards besides accuracy


@dataclass(frozen=True)
class Variant:
    """What one variant changes: settings of its stage; for PA-SFT also its records.

    Attributes:
        settings: of the stage, in place of the profile's.
        records: file below expert_ad.
        share: percent of the pictures that are left, passed through as many more times, so that every share takes the
            same number of steps.
        grid: rows and columns of the grid that places are cells of.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    records: str | None = None
    share: int = 100
    grid: int = GRID


@dataclass(frozen=True)
class Study:
    """Variants of a stage, and what the course's own PA-SFT is among them.

    SC-GRPO's variants are shorter runs from PA-SFT (profile section `ablations`), PA-SFT's as long as PA-SFT itself.
    """

    stage: str
    baseline: str
    variants: dict[str, Variant]


def _rewards(*parts: str) -> Variant:
    return Variant({"rewards": "strict", "reward_parts": parts})


STUDIES = {
    "rewards": Study(  # the paper's Tables 3 and 5, and the sets of rules for the same four rewards
        "sc_grpo",
        "before SC-GRPO",
        {
            **{mode: Variant({"rewards": mode}) for mode in ("strict", "paper", "released", "grounded")},
            "accuracy only": _rewards("accuracy"),
            "without consistency": _rewards("accuracy", "location", "type"),
            "without location": _rewards("consistency", "accuracy", "type"),
            "without type": _rewards("consistency", "accuracy", "location"),
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


def study_named(name: str) -> Study:
    """A study; WrongUse naming the choices."""
    if name not in STUDIES:
        raise WrongUse(f"unknown study {name}: choose from {', '.join(STUDIES)}")
    return STUDIES[name]


# -------------------------------------------------------------------------------------------------- results


def study_file(study: str) -> str:
    """The name of the file that holds a study's shipped results; for "course" those of the stages."""
    return "metrics.json" if study == "course" else f"ablation_{study}.json"


def own_results(study: str, profile: str) -> Path:
    """Where `iadr1 ablate` puts the results of a study of one's own."""
    return runs_folder() / f"{profile}-{study_file(study)}"


def shipped_study(study: str) -> dict[str, Any]:
    """The results of a study that the project ships; UserError where they are missing."""
    return shipped(study_file(study))


def study_results(study: str, profile: str) -> tuple[dict[str, Any], str]:
    """Results of a study, one's own of this profile or else the shipped, and in words which of them."""
    own = own_results(study, profile)
    if own.exists():
        return read_metrics_file(own), f"measured here: {own.name}"
    return shipped_study(study), f"shipped with the project: {(SHIPPED / study_file(study)).as_posix()}"


def study_table(rows: Sequence[Row]) -> pd.DataFrame:
    """One column per variant: balanced accuracy on each benchmark and their mean, location, type, and what changed.

    Levels in %, the mean over the seeds with the lowest and the highest in round brackets; changes in points, with 95 %
    intervals in square ones.
    """
    named = by_name(rows)
    levels = [name.split("/") for name in named if name.count("/") == 2]
    variants = list(dict.fromkeys(parts[0] for parts in levels))
    measured = list(dict.fromkeys((parts[1], parts[2]) for parts in levels if parts[1] in METRICS))
    measured.sort(key=lambda pair: list(METRICS).index(pair[0]))
    lines = []
    for metric, benchmark in measured:
        title = benchmark if metric == "balanced_accuracy" and benchmark != MEAN else METRICS[metric]
        cells = {variant: interval_text(named.get(f"{variant}/{metric}/{benchmark}")) for variant in variants}
        lines.append({"%": title, **cells})
    for baseline in dict.fromkeys(name.split("/")[2] for name in named if name.startswith("difference/")):
        for metric in PAIRED:
            changes = {v: interval_text(named.get(f"difference/{v}/{baseline}/{metric}"), True) for v in variants}
            lines.append({"%": f"{METRICS[metric]}, minus {baseline}", **changes})
    return pd.DataFrame(lines)


def study_changes(rows: Sequence[Row], baseline: str, metric: str = "balanced_accuracy") -> pd.DataFrame:
    """One row per variant: what it has more than a baseline, in points.

    Columns variant, value, low, high (95 %), p (McNemar's) and seeds (each seed's own value); results of before these
    two were kept have NaN and an empty list. Empty where nothing was compared with this baseline.
    """
    changes = []
    for row in rows:
        kind, variant, *words = row["name"].split("/")
        if kind == "difference" and words == [baseline, metric]:
            seeds = list(row.get("seeds", {}).values())
            changes.append({"p": np.nan, **row, "variant": variant, "seeds": seeds})
    return pd.DataFrame(changes, columns=["variant", "value", "low", "high", "p", "seeds"])
