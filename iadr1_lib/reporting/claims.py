"""The paper's Tables 1 to 5, our numbers in the same form, and which of its claims our numbers bear out.

ours = measured(metrics)     # one run's metrics.json or several seeds', and the studies that the project ships
our_table(5, ours)           # our rows of Table 5; printed_table(5) has the paper's
agreement(ours)              # claim by claim: the paper's difference, ours with its interval, a verdict

The paper's six benchmarks and ours (the six mini ones, or the user's) are different data sets: only the direction of a
difference is compared. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from iadr1_lib.data import SIX
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import MEAN, interval_text
from iadr1_lib.reporting.results import Row, by_name
from iadr1_lib.reporting.studies import BASELINE, PARTS, STUDIES, shipped_study, study_file
from iadr1_lib.runs import project_root

# Our numbers: "course" (the stages) and each measured study -> name of a row -> row.
Measured = Mapping[str, Mapping[str, Row]]

NOT_MEASURED = "not measured"
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "open"
PAPER_SETS = ["MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD"]
BALANCED = "balanced_accuracy"
# Table 2: variants of the study `reasoning` -> title.
_DATA = {"answers only": "answers only", BASELINE: "with reasoning (PA-SFT)"}
# Table 5: variants of the study `rewards` -> the rewards besides accuracy that each goes without.
_REMOVED = {"accuracy only": PARTS, **{f"without {part}": (part,) for part in PARTS}, "strict": ()}


def measured(metrics: Mapping[str, Any], studies: Mapping[str, dict[str, Any] | None] | None = None) -> Measured:
    """Numbers of a metrics record (one run's or several seeds') beside results of studies: by default the shipped."""
    if studies is None:
        studies = {study: shipped_study(study) for study in STUDIES}
    records = {"course": metrics, **studies}
    return {name: by_name(record["rows"]) for name, record in records.items() if record}


# ---------------------------------------------------------------------------------------- the paper's tables


def paper_table(number: int) -> pd.DataFrame:
    """Table 1 to 5 of the paper (arXiv 2508.09178), in percent; see data/paper_tables/README.md.

    Raises UserError for another number.
    """
    if number not in range(1, 6):
        raise UserError(f"there is no table {number}: the paper has Tables 1 to 5")
    (path,) = (project_root() / "data" / "paper_tables").glob(f"table{number}_*.csv")
    return pd.read_csv(path)


def printed_table(number: int) -> pd.DataFrame:
    """`paper_table` as text, with the mean of the six benchmarks where the paper prints none (Table 5)."""
    table = paper_table(number)
    if number == 5:
        table["mean of six"] = table[PAPER_SETS].mean(axis=1)
        table[list(PARTS)] = table[list(PARTS)].fillna("not told")
    table = table.map(lambda cell: f"{cell:.1f}" if isinstance(cell, float) else cell).replace("nan", "")
    return table.rename(columns=lambda name: name.replace("_1shot", ", one-shot").replace("_", "-"))


def our_table(number: int, ours: Measured) -> pd.DataFrame:
    """Our rows of the paper's Table 2 or 5 as text: balanced accuracy with intervals, or "not measured".

    Column `source` names the file.

    Raises:
        UserError: there are no rows of ours for that table.
    """
    study = {2: "reasoning", 5: "rewards"}.get(number, "")
    rows = ours.get(study, {})
    if number == 2:
        lines = [{"data": "base", "zero-shot": _level(ours["course"], "base"), "minus PA-SFT": ""}]
        lines += [{"data": title} | _against_pa_sft(rows, variant) for variant, title in _DATA.items()]
    elif number == 5:
        lines = [
            {part: "no" if part in removed else "yes" for part in PARTS}
            | _levels(rows, variant)
            | {"minus all four": _minus(rows, variant, "strict")}
            for variant, removed in _REMOVED.items()
        ]
    else:
        raise UserError(f"there are no rows of ours for Table {number}: choose 2 or 5")
    table = pd.DataFrame(lines).fillna("").assign(source=study_file(study))
    if number == 2:
        table.loc[0, "source"] = study_file("course")
    return table


def beside_table_one(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """The paper's Table 1 with a row for a model of ours on the same six test sets, by the average.

    Args:
        scores: as from `evaluation.score`; the benchmarks are named as in `data.SIX`.
    """
    ours = scores[scores["metric"] == BALANCED].set_index("benchmark")["value"]
    row = {"group": "ours", "model": model, "average": ours[MEAN]}
    row |= dict(zip(PAPER_SETS, ours.reindex(SIX), strict=True))
    paper = paper_table(1)[["group", "model", "parameters", *PAPER_SETS, "average"]]  # a model has two rows, by group
    table = pd.concat([paper, pd.DataFrame([row])])
    return table.sort_values("average", ascending=False).round(1).reset_index(drop=True)


def _level(rows: Mapping[str, Row], name: str, benchmark: str = MEAN) -> str:
    row = rows.get(f"{name}/{BALANCED}/{benchmark}")
    return interval_text(row) if row else NOT_MEASURED


def _levels(rows: Mapping[str, Row], name: str) -> dict[str, str]:
    """Balanced accuracy on each benchmark that there are numbers for, and their mean."""
    parts = [key.split("/") for key in rows]
    benchmarks = dict.fromkeys(words[2] for words in parts if len(words) == 3 and words[1] == BALANCED)
    cells = {benchmark: _level(rows, name, benchmark) for benchmark in benchmarks if benchmark != MEAN}
    return cells | {MEAN: _level(rows, name)}


def _against_pa_sft(rows: Mapping[str, Row], variant: str) -> dict[str, str]:
    return {"zero-shot": _level(rows, variant), "minus PA-SFT": _minus(rows, variant, BASELINE)}


def _minus(rows: Mapping[str, Row], variant: str, baseline: str) -> str:
    if variant == baseline:
        return ""
    row = rows.get(f"difference/{variant}/{baseline}/{BALANCED}")
    return interval_text(row, signed=True) if row else NOT_MEASURED


def curve(study: str, ours: Measured) -> pd.DataFrame:
    """Balanced accuracy, mean of the mini benchmarks, along the variants of `grid` or `data`, for `interval_chart`.

    The course's own setting, which is PA-SFT, is among them. Columns variant, value, low, high (lowest and highest
    seed), in percent; variants without a number are left out, so the table is empty where the study was not measured.
    """
    plan, rows = STUDIES[study], []
    for name in sorted([plan.baseline, *plan.variants], key=lambda name: (len(name), name)):  # 20 % before 100 %
        variant = BASELINE if name == plan.baseline else name
        if row := ours.get(study, {}).get(f"{variant}/{BALANCED}/{MEAN}"):
            rows.append({"variant": name, **{key: row[key] for key in ("value", "low", "high")}})
    return pd.DataFrame(rows, columns=["variant", "value", "low", "high"])


# --------------------------------------------------------------------------------------------------- claims


def agreement(ours: Measured) -> pd.DataFrame:
    """One row per claim of the paper (data/paper_tables/claims.csv): its difference, ours, and whether they agree.

    Columns: claim ("A beats B"), where (the paper's table or figure), paper (its differences A − B in points), ours
    (A − B with its 95 % interval), seeds (each seed's own difference), verdict, study, row and source (where the
    difference stands), and value, low, high as numbers. A verdict speaks of direction alone: the interval lies above
    zero (agrees), below (disagrees) or holds it.
    """
    lines = []
    for claim in pd.read_csv(project_root() / "data" / "paper_tables" / "claims.csv").to_dict("records"):
        row = _difference(ours.get(claim["study"], {}), claim["better"], claim["than"])
        lines.append(
            {
                "claim": claim["claim"],
                "where": claim["where"],
                "paper": _span(claim),
                "ours": interval_text(row, signed=True) if row else NOT_MEASURED,
                "seeds": ", ".join(_signed(value) for value in row.get("seeds", {}).values()),
                "verdict": verdict(row),
                "study": claim["study"],
                "row": row.get("name", ""),
                "source": study_file(claim["study"]),
                **{key: row.get(key) for key in ("value", "low", "high")},
            }
        )
    return pd.DataFrame(lines).astype({"value": float, "low": float, "high": float})


def _difference(rows: Mapping[str, Row], better: str, than: str) -> Row:
    """Balanced accuracy of one stage or variant minus another's, of all seeds or of the one run; {} if not measured.

    Only a variant minus a baseline is measured; where the paper has the baseline ahead, the sign is turned.
    """
    pair = f"difference/{better}-{than}/{BALANCED}"
    for name in (f"{pair}/pooled", pair, f"difference/{better}/{than}/{BALANCED}"):
        if name in rows:
            return rows[name]
    row = rows.get(f"difference/{than}/{better}/{BALANCED}", {})
    if pd.isna(row.get("value")):
        return row
    seeds = {seed: -value for seed, value in row.get("seeds", {}).items()}
    return row | {"value": -row["value"], "low": -row["high"], "high": -row["low"], "seeds": seeds}


def verdict(difference: Row) -> str:
    """What an interval says of a difference that should be positive."""
    if pd.isna(difference.get("value")):
        return NOT_MEASURED
    if difference["low"] > 0:
        return AGREES
    return DISAGREES if difference["high"] < 0 else OPEN


def in_short(claims: pd.DataFrame) -> str:
    """The verdicts of `agreement`, counted, with the claims that disagree named."""
    counts = claims["verdict"].value_counts()
    words = {AGREES: "agree", DISAGREES: "disagree", OPEN: OPEN, NOT_MEASURED: NOT_MEASURED}
    counted = ", ".join(f"{counts.get(name, 0)} {word}" for name, word in words.items())
    against = claims.loc[claims["verdict"] == DISAGREES, "claim"]
    named = f" Ours points the other way in: {'; '.join(against)}." if len(against) else ""
    return f"Of {len(claims)} claims: {counted}.{named}"


def _span(claim: Mapping[Any, Any]) -> str:
    """The paper's differences, from the lowest to the highest."""
    if pd.isna(claim["lowest"]):
        return "not printed"
    low, high = _signed(claim["lowest"]), _signed(claim["highest"])
    return f"{low} ({claim['of']})" if low == high else f"{low} to {high} ({claim['of']})"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
