"""The paper's Tables 1 to 5 with our rows below its own, and which of its claims our numbers bear out.

ours = measured(metrics)     # one run's metrics.json or several seeds', and the studies that the project ships
table(4, ours)               # the paper's rows, then ours
agreement(ours)              # claim by claim: the paper's difference, ours with its interval, a verdict

The paper's six benchmarks and the six mini benchmarks are different data sets: each has columns of its own, and only
the direction of a difference is compared. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import scoring
from iadr1_lib.reporting.plots import STAGES
from iadr1_lib.reporting.studies import BASELINE, STUDIES, reference_study
from iadr1_lib.runs import project_root

Row = dict[str, Any]

PAPER, OURS = "paper", "ours"
NOT_MEASURED = "not measured"
AGREES, DISAGREES, OPEN = "agrees", "disagrees", "open"
PAPER_SETS = ["MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD"]
PARTS = ("consistency", "location", "type")  # the rewards besides accuracy
MODEL, SIZE = "mini VLM", "a few million"
BALANCED = "balanced_accuracy"

TITLES = {
    1: "Table 1: models",
    2: "Table 2: what PA-SFT learns from",
    3: "Table 3: accuracy-only GRPO against SC-GRPO",
    4: "Table 4: stage by stage",
    5: "Table 5: rewards",
}


def paper_table(number: int) -> pd.DataFrame:
    """Table 1 to 5 of the paper (arXiv 2508.09178), in percent; see data/paper_tables/README.md.

    Raises UserError for another number.
    """
    found = sorted((project_root() / "data" / "paper_tables").glob(f"table{number}_*.csv"))
    if not found:
        raise UserError(f"there is no table {number} in data/paper_tables: it holds Tables 1 to 5 of the paper")
    return pd.read_csv(found[0])


# ---------------------------------------------------------------------------------------------- what we have


@dataclass(frozen=True)
class Measured:
    """Our numbers by name, each a row with value, low and high.

    Attributes:
        rows: stage/metric/benchmark, baseline/… and difference/… of one run or of several seeds.
        source: the file that these rows stand in.
        studies: study of `iadr1 ablate` -> its rows; a study that has not been measured is missing.
    """

    rows: Mapping[str, Row]
    source: str
    studies: Mapping[str, Mapping[str, Row]]

    def difference(self, pair: str) -> Row | None:
        """Balanced accuracy of one stage minus another ("sc_grpo-pa_sft"): a run's own, or that of all its seeds."""
        name = f"difference/{pair}/{BALANCED}"
        return self.rows.get(f"{name}/pooled") or self.rows.get(name)

    def seeds(self, pair: str) -> list[float]:
        """The difference of each seed, in points; empty for a single run."""
        start = f"difference/{pair}/{BALANCED}/seed "
        found = (row["value"] for name, row in self.rows.items() if name.startswith(start))
        return [float(value) for value in found if not pd.isna(value)]

    def variant(self, study: str, variant: str, benchmark: str = scoring.MEAN) -> Row | None:
        """Balanced accuracy of a study's variant."""
        return self.studies.get(study, {}).get(f"{variant}/{BALANCED}/{benchmark}")

    def variant_difference(self, study: str, variant: str, baseline: str) -> Row | None:
        """Balanced accuracy of a study's variant minus a baseline's, paired image by image."""
        return self.studies.get(study, {}).get(f"difference/{variant}/{baseline}/{BALANCED}")

    def benchmarks(self, study: str | None = None) -> list[str]:
        """The mini benchmarks that there are numbers for, in the order of the rows."""
        rows = self.studies.get(study, {}) if study else self.rows
        names = [name.split("/") for name in rows]
        found = dict.fromkeys(parts[2] for parts in names if len(parts) == 3 and parts[1] == BALANCED)
        return [name for name in found if name != scoring.MEAN]


def measured(
    metrics: Mapping[str, Any], source: str = "metrics.json", found: Mapping[str, dict[str, Any] | None] | None = None
) -> Measured:
    """Numbers of a metrics record (one run's or several seeds') beside results of studies: by default the shipped."""
    if found is None:
        found = {study: reference_study(study) for study in STUDIES}
    studies = {study: _by_name(record["rows"]) for study, record in found.items() if record}
    return Measured(_by_name(metrics["rows"]), source, studies)


def study_file(study: str) -> str:
    """Where the shipped results of a study lie, as it is named in tables."""
    return f"ablation_{study}.json"


def _by_name(rows: list[Row]) -> dict[str, Row]:
    return {row["name"]: row for row in rows}


# ------------------------------------------------------------------------------------------- Tables 1 to 5


def table(number: int, ours: Measured) -> pd.DataFrame:
    """One of the paper's five tables as text: its rows first, then ours (column `whose`: paper or ours).

    Balanced accuracy in percent. Paper and ours share the columns that say what a row is and the means over the six
    benchmarks of each; benchmarks have columns of their own, empty in the other's rows. Our cells hold an interval
    (see `scoring.level`) or "not measured"; `source` names their file. Raises UserError for another number.
    """
    paper = paper_table(number)
    if number in (4, 5):
        paper["mean of six"] = paper[PAPER_SETS].mean(axis=1)  # the paper prints none in these two
    if number == 1:
        paper = paper.rename(columns={"average": "mean of six"})
    if number == 5:
        paper[list(PARTS)] = paper[list(PARTS)].fillna("not told")
    paper = paper.rename(columns=_NAMES).map(lambda cell: f"{cell:.1f}" if isinstance(cell, float) else cell)
    paper = paper.replace("nan", "")
    rows = pd.DataFrame(_OURS[number](ours))
    both = pd.concat([paper.assign(whose=PAPER), rows.assign(whose=OURS)], ignore_index=True).fillna("")
    first = ["whose", *(name for name in both if name not in ("whose", *_LAST))]
    return both[[*first, *(name for name in _LAST if name in both)]]


def block(rows: pd.DataFrame, whose: str) -> pd.DataFrame:
    """The paper's rows of a table, or ours, with the columns that these have something in."""
    own = rows[rows["whose"] == whose].drop(columns="whose")
    return own.loc[:, (own != "").any()].reset_index(drop=True)


_NAMES = {
    "parameters": "size",
    "zero_shot": "zero-shot",
    "one_shot": "one-shot",
    "MVTec_1shot": "MVTec, one-shot",
    "VisA_1shot": "VisA, one-shot",
}


_LAST = ("mean of six", "zero-shot", "one-shot", "average", "minus PA-SFT", "minus all four", "source")


def _told(row: Row | None) -> str:
    return NOT_MEASURED if row is None else scoring.level(row)


def _change(row: Row | None) -> str:
    return NOT_MEASURED if row is None else scoring.signed(row)


def _by_stage(ours: Measured) -> list[Row]:
    """Table 4: a row per stage, on each mini benchmark and on the mean."""
    return [
        {"model": MODEL, "size": SIZE, "stage": STAGES[stage]}
        | {name: _told(ours.rows.get(f"{stage}/{BALANCED}/{name}")) for name in ours.benchmarks()}
        | {"mean of six": _told(ours.rows.get(f"{stage}/{BALANCED}/{scoring.MEAN}")), "source": ours.source}
        for stage in STAGES
    ]


def _models(ours: Measured) -> list[Row]:
    """Table 1: the mini VLM after each stage, then predictors that know nothing of inspection."""
    models = [{"group": OURS} | row | {"model": f"{MODEL}, {row['stage']}"} for row in _by_stage(ours)]
    for row in models:
        del row["stage"]
    predictors = []
    for name in scoring.BASELINES:
        cells = {key: _told(ours.rows.get(f"baseline/{name}/{BALANCED}/{key}")) for key in ours.benchmarks()}
        mean = _told(ours.rows.get(f"baseline/{name}/{BALANCED}/{scoring.MEAN}"))
        said = {"group": "simple predictor", "model": name.replace("_", " "), "size": "none"}
        predictors.append(said | cells | {"mean of six": mean, "source": ours.source})
    return models + predictors


def _sft_data(ours: Measured) -> list[Row]:
    """Table 2: the base, answers only, and PA-SFT, which learns from reasoning."""
    base = {
        "data": "base",
        "zero-shot": _told(ours.rows.get(f"base/{BALANCED}/{scoring.MEAN}")),
        "source": ours.source,
    }
    rows = [
        {
            "data": title,
            "zero-shot": _told(ours.variant("reasoning", variant)),
            "minus PA-SFT": _minus(ours, "reasoning", variant, BASELINE),
            "source": study_file("reasoning"),
        }
        for title, variant in (("answers only", "answers only"), ("with reasoning (PA-SFT)", BASELINE))
    ]
    return [{"model": MODEL, **row, "one-shot": NOT_MEASURED} for row in (base, *rows)]


def _minus(ours: Measured, study: str, variant: str, baseline: str) -> str:
    return "" if variant == baseline else _change(ours.variant_difference(study, variant, baseline))


# Variants of the study `rewards`: title in Table 3. In training the default mode is "strict".
_STRATEGIES = {
    BASELINE: "PA-SFT",
    "accuracy only": "accuracy-only GRPO, short run",
    "strict": "SC-GRPO, short run, rewards strict",
    "paper": "SC-GRPO, short run, rewards as in the paper",
    "released": "SC-GRPO, short run, rewards as released",
}
# The same study in Table 5: which rewards, besides accuracy, each variant goes without.
ALL_FOUR = "strict"
_REMOVED: dict[str, tuple[str, ...]] = {
    "accuracy only": PARTS,
    **{f"without {part}": (part,) for part in PARTS},
    ALL_FOUR: (),
}


def _strategies(ours: Measured) -> list[Row]:
    return [
        {
            "model": MODEL,
            "strategy": title,
            "zero-shot": _told(ours.variant("rewards", variant)),
            "one-shot": NOT_MEASURED,
            "minus PA-SFT": _minus(ours, "rewards", variant, BASELINE),
            "source": study_file("rewards"),
        }
        for variant, title in _STRATEGIES.items()
    ]


def _rewards(ours: Measured) -> list[Row]:
    return [
        {"model": f"{MODEL}, short runs"}
        | {part: "no" if part in removed else "yes" for part in PARTS}
        | {name: _told(ours.variant("rewards", variant, name)) for name in ours.benchmarks("rewards")}
        | {
            "mean of six": _told(ours.variant("rewards", variant)),
            "minus all four": _minus(ours, "rewards", variant, ALL_FOUR),
            "source": study_file("rewards"),
        }
        for variant, removed in _REMOVED.items()
    ]


_OURS = {1: _models, 2: _sft_data, 3: _strategies, 4: _by_stage, 5: _rewards}


# --------------------------------------------------------------------------------------- the figures' curves

# Studies whose variants lie on a line, with the course's own setting, which is PA-SFT, among them.
CURVES = {
    "grid": ("1×1", "2×2", "3×3", "4×4", "5×5"),
    "data": ("20 %", "40 %", "60 %", "80 %", "100 %"),
}
OWN_SETTING = {"grid": "3×3", "data": "100 %"}


def curve(study: str, ours: Measured, metric: str = BALANCED) -> pd.DataFrame:
    """The mean of the six mini benchmarks along a study's variants, as `plots.variant_curve` takes it.

    Columns variant, value, low, high (lowest and highest seed), in percent; variants without a number are left out, so
    the table is empty where the study has not been measured.
    """
    rows = []
    for name in CURVES[study]:
        variant = BASELINE if name == OWN_SETTING[study] else name
        row = ours.studies.get(study, {}).get(f"{variant}/{metric}/{scoring.MEAN}")
        if row:
            rows.append({"variant": name, **{key: row[key] for key in ("value", "low", "high")}})
    return pd.DataFrame(rows, columns=["variant", "value", "low", "high"])


def above_the_base(ours: Measured) -> str:
    """What Figure 1 is about, counted: on how many benchmarks the model stands above its base after both stages."""
    by_stage = paper_table(4).set_index(["stage", "model", "parameters"])[PAPER_SETS]
    gains = (by_stage.loc[STAGES["sc_grpo"]] - by_stage.loc[STAGES["base"]]).to_numpy()
    said = f"In the paper's Table 4, {int((gains > 0).sum())} of {gains.size} values are above their base's"
    both: list[tuple[float, float]] = []
    for name in ours.benchmarks():
        base, last = (ours.rows.get(f"{stage}/{BALANCED}/{name}") for stage in ("base", "sc_grpo"))
        if base and last and pd.notna(base["value"]) and pd.notna(last["value"]):
            both.append((base["value"], last["value"]))
    if not both:
        return f"{said}; ours are not measured."
    return f"{said}; of ours, {sum(high > low for low, high in both)} of {len(both)}."


# ------------------------------------------------------------------------------------------------ agreement


@dataclass(frozen=True)
class _Claim:
    """Something the paper says is better than something else; differences are positive where it is so."""

    text: str
    where: str
    paper: list[float]  # one difference per model, or per row of Table 5; empty where no value is printed
    models: str
    ours: Row | None
    source: str
    seeds: list[float]


def agreement(ours: Measured) -> pd.DataFrame:
    """One row per claim of the paper: its difference, ours with the 95 % interval, and whether they agree.

    Columns: claim ("A beats B"), where (the paper's table or figure), paper (its differences A − B in points), ours
    (A − B with interval), seeds (each seed's own difference), verdict, source, and value, low, high as
    numbers. A verdict speaks of direction alone: the interval lies above zero (agrees), below (disagrees) or holds it.
    """
    rows = []
    for claim in _claims(ours):
        row = claim.ours or {"value": None, "low": None, "high": None}
        rows.append(
            {
                "claim": claim.text,
                "where": claim.where,
                "paper": _span(claim.paper, claim.models),
                "ours": _change(claim.ours),
                "seeds": ", ".join(f"{value:+.1f}".replace("-", "−") for value in claim.seeds),
                "verdict": verdict(claim.ours),
                "source": claim.source,
                **{key: row[key] for key in ("value", "low", "high")},
            }
        )
    table = pd.DataFrame(rows)
    table[["value", "low", "high"]] = table[["value", "low", "high"]].astype(float)
    return table


def verdict(difference: Row | None) -> str:
    """What an interval says of a difference that should be positive."""
    if difference is None or pd.isna(difference["value"]):
        return NOT_MEASURED
    if difference["low"] > 0:
        return AGREES
    return DISAGREES if difference["high"] < 0 else OPEN


def in_short(found: pd.DataFrame) -> str:
    """The verdicts of `agreement`, counted, with the claims that disagree named."""
    counts = found["verdict"].value_counts()
    words = {AGREES: "agree", DISAGREES: "disagree", OPEN: OPEN, NOT_MEASURED: NOT_MEASURED}
    said = ", ".join(f"{counts.get(name, 0)} {word}" for name, word in words.items())
    against = found.loc[found["verdict"] == DISAGREES, "claim"]
    named = f" Ours points the other way in: {'; '.join(against)}." if len(against) else ""
    return f"Of {len(found)} claims: {said}.{named}"


def _span(values: list[float], models: str) -> str:
    if not values:
        return "not printed"
    low, high = (f"{end:+.1f}".replace("-", "−") for end in (min(values), max(values)))
    return f"{low} ({models})" if low == high else f"{low} to {high} ({models})"


def _claims(ours: Measured) -> list[_Claim]:
    stages, strategies = paper_table(4), paper_table(3)
    stages["mean"] = stages[PAPER_SETS].mean(axis=1)
    reasoning = _gains(paper_table(2), "data", "zero_shot", "Expert-AD", "answer-only")
    full, *fewer = reversed(paper_table(5)[PAPER_SETS].mean(axis=1).to_list())
    one_removed = [full - mean for mean in fewer[:2]]  # these two rows have two marks of three: which is not known
    base, three = BASELINE, "three models"

    def of_stages(text: str, better: str, than: str) -> _Claim:
        pair = f"{better}-{than}"
        gains = _gains(stages, "stage", "mean", STAGES[better], STAGES[than])
        return _Claim(text, "Table 4", gains, "seven models", ours.difference(pair), ours.source, ours.seeds(pair))

    def of_study(text: str, study: str, better: str, than: str, where: str, gains: list[float], said: str) -> _Claim:
        # Only a variant minus a baseline is measured; where the paper has the baseline ahead, the sign is turned.
        found = ours.variant_difference(study, better, than) or turned(ours.variant_difference(study, than, better))
        seeds = list((found or {}).get("seeds", {}).values())
        return _Claim(text, where, gains, said, found, study_file(study), seeds)

    def of_rewards(text: str, better: str, than: str, papers_better: str, papers_than: str) -> _Claim:
        gains = _gains(strategies, "strategy", "zero_shot", papers_better, papers_than)
        return of_study(text, "rewards", better, than, "Table 3", gains, three)

    def of_removed(part: str) -> _Claim:
        text = f"All four rewards beat those without {part}"
        said = "one of three removed, not told which"
        return of_study(text, "rewards", ALL_FOUR, f"without {part}", "Table 5", one_removed, said)

    only = "accuracy only"
    return [
        of_stages("PA-SFT beats the base", "pa_sft", "base"),
        of_stages("SC-GRPO beats PA-SFT", "sc_grpo", "pa_sft"),
        of_study("Reasoning beats answers only", "reasoning", base, "answers only", "Table 2", reasoning, three),
        of_rewards("SC-GRPO beats PA-SFT, in short runs", ALL_FOUR, base, "SC-GRPO", "PA-SFT"),
        of_rewards("PA-SFT beats accuracy-only GRPO", base, only, "PA-SFT", "accuracy-only GRPO"),
        of_rewards("All four rewards beat accuracy alone", ALL_FOUR, only, "SC-GRPO", "accuracy-only GRPO"),
        *(of_removed(part) for part in PARTS),
        *(
            of_study(f"A 3×3 grid beats {grid}", "grid", base, grid, "Figure 3", [], "")
            for grid in CURVES["grid"]
            if grid != OWN_SETTING["grid"]
        ),
    ]


def turned(row: Row | None) -> Row | None:
    """The same difference seen from the other side."""
    if row is None or pd.isna(row["value"]):
        return row
    seeds = {seed: -value for seed, value in row.get("seeds", {}).items()}
    return row | {"value": -row["value"], "low": -row["high"], "high": -row["low"], "seeds": seeds}


def _gains(rows: pd.DataFrame, column: str, value: str, better: str, than: str) -> list[float]:
    """One difference per model of the paper, in points."""
    models = [name for name in ("model", "parameters") if name in rows]
    wide = rows.pivot(index=models, columns=column, values=value)
    return [float(gain) for gain in wide[better] - wide[than]]
