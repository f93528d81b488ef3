"""What `iadr1 report --readme` writes: the table in README.md, and docs/results.md with all others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import METRICS
from iadr1_lib.files import read_text, write_text
from iadr1_lib.reporting.claims import agreement, in_short, measured
from iadr1_lib.reporting.results import REFERENCE, SHIPPED, shipped
from iadr1_lib.reporting.studies import STUDIES, shipped_study
from iadr1_lib.reporting.tables import (
    ablation_table,
    cost_table,
    difference_table,
    judged_benchmarks,
    one_shot_table,
    photo_differences,
    photo_places_and_types,
    photo_table,
    predictor_table,
    stage_table,
)
from iadr1_lib.runs import project_root

MARKS = ("<!-- results: written by `iadr1 report --readme` -->", "<!-- end of results -->")
RESULTS = Path("docs") / "results.md"
_ROUND = "Round brackets: the lowest and the highest seed."
_SQUARE = "Square brackets: 95 % intervals of a bootstrap over images."


def readme_block() -> str:
    """What stands between the marks of README.md: balanced accuracy, location and type of each stage."""
    metrics = shipped()
    table = stage_table(metrics)
    short = table[table.iloc[:, 0].isin([METRICS[name] for name in ("balanced_accuracy", "location", "type")])]
    seeds = _listed(run["seed"] for run in metrics["provenance"]["runs"])
    source = f"Mean of seeds {seeds}. {_ROUND} Source: `{REFERENCE.as_posix()}`. All results: [docs/results.md]"
    return f"{_markdown(short)}\n\n{source}(docs/results.md)."


def results_page() -> str:
    """docs/results.md: all tables of the shipped results, each with its source; the words are data/templates' own."""
    metrics = shipped()
    runs = metrics["provenance"]["runs"]
    machine = runs[0]["hardware"]
    studies = [shipped_study(study)["provenance"] for study in STUDIES]
    of_studies = [run for block in studies for run in block["runs"]]
    claims = agreement(measured(metrics))
    shown = claims[["claim", "where", "paper", "ours", "verdict"]].rename(columns={"where": "in the paper"})
    words = {
        "reference": REFERENCE.as_posix(),
        "shipped": SHIPPED.as_posix(),
        "round": _ROUND,
        "square": _SQUARE,
        "profile": metrics["provenance"]["parameters"]["profile"],
        "seeds": _listed(run["seed"] for run in runs),
        "commits": _listed(run["commit"] for run in runs),
        "machine": f"{machine['cores']} cores, {machine['processor']}, device {machine['device']}",
        "steps": studies[0]["parameters"]["ablations"]["max_steps"],
        "study_seeds": _listed(sorted(run["seed"] for run in of_studies)),
        "study_devices": _listed(sorted(run["hardware"]["device"] for run in of_studies)),
        "study_commits": _listed(sorted(run["commit"] for run in of_studies)),
        "in_short": in_short(claims),
    }
    tables = {
        "stages": stage_table(metrics),
        "differences": difference_table(metrics),
        "cost": cost_table(metrics),
        "predictors": predictor_table(judged_benchmarks(metrics)),
        "ablations": ablation_table(),
        "claims": shown,
        "one_shot": one_shot_table(),
        "photo_test": photo_table("test", "balanced_accuracy"),
        "photo_test_order": photo_table("test", "auroc"),
        "photo_dev": photo_table("dev", "balanced_accuracy"),
        "photo_dev_order": photo_table("dev", "auroc"),
        "photo_differences": photo_differences(),
        "photo_places": photo_places_and_types(),
    }
    template = Template(read_text(project_root() / "data" / "templates" / "results.txt"))
    return template.substitute(words, **{name: _markdown(table) for name, table in tables.items()})


def write_readme(root: Path | None = None) -> list[Path]:
    """Renew docs/results.md, and the table in README.md; the rest of that file stays as it is."""
    root = root or project_root()
    path = root / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        raise UserError(f"{path} lacks the lines {MARKS[0]} and {MARKS[1]}: put them where the results belong")
    readme = write_text(path, f"{before}{MARKS[0]}\n\n{readme_block()}\n\n{MARKS[1]}{after}")
    return [readme, write_text(root / RESULTS, results_page())]


def _listed(words: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(word) for word in words))


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
