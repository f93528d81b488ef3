"""What `iadr1 report --readme` writes: the table in README.md, and docs/results.md with all others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import METRICS
from iadr1_lib.files import write_text
from iadr1_lib.reporting.claims import agreement, in_short, measured
from iadr1_lib.reporting.results import REFERENCE, SHIPPED, shipped_metrics
from iadr1_lib.reporting.studies import shipped_study
from iadr1_lib.reporting.tables import (
    ablation_table,
    cost_table,
    difference_table,
    judged_benchmarks,
    one_shot_table,
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
    metrics = shipped_metrics()
    table = stage_table(metrics)
    short = table[table.iloc[:, 0].isin([METRICS[name] for name in ("balanced_accuracy", "location", "type")])]
    seeds = ", ".join(str(run["seed"]) for run in metrics["provenance"]["runs"])
    source = f"Mean of seeds {seeds}. {_ROUND} Source: `{REFERENCE.as_posix()}`. All results: [docs/results.md]"
    return f"{_markdown(short)}\n\n{source}(docs/results.md)."


def results_page() -> str:
    """docs/results.md: all tables of the shipped results, each with its source."""
    metrics = shipped_metrics()
    runs = metrics["provenance"]["runs"]
    machine = runs[0]["hardware"]
    where = f"{machine['cores']} cores, {machine['processor']}, device {machine['device']}"
    commits = _listed(run["commit"] for run in runs)
    studies = {study: shipped_study(study)["provenance"] for study in ("rewards", "reasoning", "grid", "data")}
    of_studies = [run for block in studies.values() for run in block["runs"]]
    steps = studies["rewards"]["parameters"]["ablations"]["max_steps"]
    claims = agreement(measured(metrics))
    sections: list[tuple[str, list[str | pd.DataFrame]]] = [
        (
            "Stage by stage",
            [
                "Balanced accuracy is the mean of the shares of normal and of defective images answered rightly; "
                "guessing gives 50. The control is PA-SFT continued on SC-GRPO's pictures, with reasoning written for "
                f"them. {_ROUND}",
                stage_table(metrics),
                f"Paired differences, image by image. {_SQUARE}",
                difference_table(metrics),
                f"Source: `{REFERENCE.as_posix()}`; profile {metrics['provenance']['parameters']['profile']}, seeds "
                f"{_listed(run['seed'] for run in runs)}; {where}; commit {commits}.",
            ],
        ),
        ("Cost", [cost_table(metrics), f"Source: `{REFERENCE.as_posix()}`; {where}."]),
        (
            "What each benchmark measures",
            [
                "Balanced accuracy of predictors that know nothing of inspection and of each stage, on drawn "
                f"benchmarks (seeds as above; a predictor needs none) and real pictures (seed 0). {_ROUND} {_SQUARE}",
                predictor_table(judged_benchmarks(metrics)),
                f"Source: `{REFERENCE.as_posix()}`; real pictures, zero-shot: `{SHIPPED.as_posix()}/real_*.json` "
                "(`iadr1 evaluate`) and `sanity_*.json` (`iadr1 sanity`).",
            ],
        ),
        (
            "Ablations",
            [
                f"Runs of `rewards` are SC-GRPO with {steps} steps, shorter than the course's; the others are PA-SFT, "
                f"as long as the course's. {_ROUND} {_SQUARE}",
                ablation_table(),
                f"Source: `{SHIPPED.as_posix()}/ablation_*.json`, made by `iadr1 ablate STUDY`; seeds "
                f"{_listed(sorted({run['seed'] for run in of_studies}))}; device "
                f"{_listed(sorted({run['hardware']['device'] for run in of_studies}))}; commit "
                f"{_listed(sorted({run['commit'] for run in of_studies}))}.",
            ],
        ),
        (
            "The paper's claims",
            [
                "The paper's differences in balanced accuracy and ours, in points. `agrees`: our 95 % interval lies on "
                "the same side of zero; `open`: it holds zero. No interval is corrected for the number of claims "
                "(notebook 09 has corrected p values). The benchmarks are others, so only the direction can be "
                f"compared. {in_short(claims)}",
                claims[["claim", "where", "paper", "ours", "verdict"]].rename(columns={"where": "in the paper"}),
                f"Source: `data/paper_tables/claims.csv`, `{REFERENCE.as_posix()}` and the ablations.",
            ],
        ),
        (
            "With a reference picture",
            [
                "Seed 0, six mini benchmarks, in percent. One-shot: the most similar normal training picture of the "
                f"category first. {_SQUARE}",
                one_shot_table(),
                f"Source: `{SHIPPED.as_posix()}/mini_*_shot_*.json` (`iadr1 evaluate --data mini`, with `--shots 1` "
                "for one-shot; the base with the prompt `yes-no`).",
            ],
        ),
        (
            "To measure again",
            [
                "`iadr1 run --profile mini --seed N` for each seed, then `iadr1 report runs/mini-s0 runs/mini-s1 "
                "runs/mini-s2` and `iadr1 ablate` with `rewards`, `reasoning`, `grid` and `data`. "
                "[data/reference](../data/reference/README.md) says where the files go."
            ],
        ),
    ]
    parts = [
        "# Results",
        "Written by `iadr1 report --readme` from the results that the project ships. The six mini benchmarks are "
        "drawn, small and not the paper's six: compare directions with the paper, not levels.",
    ]
    for heading, contents in sections:
        parts += [f"## {heading}", *(_markdown(one) if isinstance(one, pd.DataFrame) else one for one in contents)]
    return "\n\n".join(parts) + "\n"


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
