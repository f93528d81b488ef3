"""The paper's tables with ours below, and the verdicts on its claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import scoring
from iadr1_lib.reporting import (
    AGREES,
    BASELINE,
    DISAGREES,
    NOT_MEASURED,
    OPEN,
    PAPER_SETS,
    SHIPPED,
    Measured,
    paper_table,
    paper_tables,
    report,
)

SETS = ("mini-bottles", "mini-gears")


def levels(name: str, value: float) -> dict[str, dict[str, Any]]:
    """Rows of one stage or variant: balanced accuracy on each benchmark and on the mean."""
    ends = {"value": value, "low": value - 1, "high": value + 2, "interval": "lowest and highest seed"}
    return {f"{name}/balanced_accuracy/{place}": dict(ends) for place in (*SETS, scoring.MEAN)}


def change(name: str, value: float, low: float, high: float) -> dict[str, dict[str, Any]]:
    return {f"difference/{name}": {"value": value, "low": low, "high": high}}


@pytest.fixture
def everything() -> Measured:
    """Each stage and each variant of every study measured, each 5 points below what it is compared with."""
    rows = levels("base", 60) | levels("pa_sft", 70) | levels("sc_grpo", 80) | levels("control", 75)
    studies = {}
    for study, variants in {
        "rewards": [*paper_tables._REMOVED, "paper", "released"],
        "reasoning": ["answers only"],
        "grid": ["1×1", "2×2", "4×4", "5×5"],
        "data": ["20 %", "40 %", "60 %", "80 %"],
    }.items():
        made = levels(BASELINE, 70.0)
        for place, variant in enumerate(variants):
            made |= levels(variant, 50.0 + place)
            for baseline in (BASELINE, "strict"):
                made |= change(f"{variant}/{baseline}/balanced_accuracy", -5, -7, -4)
        studies[study] = made
    pairs = change("pa_sft-base/balanced_accuracy", 10, 8, 12) | change("sc_grpo-pa_sft/balanced_accuracy", 1, -1, 3)
    return Measured(rows | pairs, "metrics.json", studies)


@pytest.fixture
def shipped() -> Measured:
    return paper_tables.measured(report.shipped_metrics())


# ------------------------------------------------------------------------------------------ what is published


def test_paper_tables_agree_with_each_other() -> None:
    models, stages = paper_table(1), paper_table(4)
    averages = models[PAPER_SETS].mean(axis=1)
    off = (averages - models["average"]).abs() > 0.06  # the paper rounds to one place
    assert models.loc[off, "model"].tolist() == ["Anomaly-OV"], "known: its average is not its columns' mean"
    last = stages[stages["stage"] == "SC-GRPO"].set_index(["model", "parameters"])
    own = models[models["group"] == "iad-r1"].set_index(["model", "parameters"])
    difference = (last.loc[own.index, PAPER_SETS] - own[PAPER_SETS]).abs()
    assert (difference < 0.05).all().all()


def test_the_full_row_of_table_5_has_two_values_of_another_model() -> None:
    full, models = paper_table(5).iloc[-1], paper_table(1)
    larger = models[(models["model"] == "Qwen2.5-VL-Instruct") & (models["parameters"] == "7B")]
    own = larger[larger["group"] == "iad-r1"].iloc[0]
    assert [name for name in PAPER_SETS if full[name] == own[name]] == ["DAGM", "SDD"]


def test_paper_tables_are_the_given_ones(shared: Path) -> None:
    given = sorted((shared / "reference" / "tables").glob("*.csv"))
    assert [path.name for path in given] == sorted(path.name for path in (ROOT / "data" / "paper_tables").glob("*.csv"))
    for path in given:
        assert path.read_text() == (ROOT / "data" / "paper_tables" / path.name).read_text()


def test_unknown_paper_table_is_refused(shipped: Measured) -> None:
    for number in (0, 9):
        with pytest.raises(UserError, match="Tables 1 to 5"):
            paper_tables.table(number, shipped)


# ------------------------------------------------------------------------------------------- Tables 1 to 5


@pytest.mark.parametrize("number", paper_tables.TITLES)
def test_no_column_of_single_benchmarks_is_shared(number: int, everything: Measured) -> None:
    table = paper_tables.table(number, everything)
    theirs = table[table["whose"] == paper_tables.PAPER]
    ours = table[table["whose"] == paper_tables.OURS]
    assert len(theirs) == len(paper_table(number)) and len(ours) > 0
    assert (theirs.reindex(columns=list(SETS), fill_value="") == "").all().all()
    assert (ours.reindex(columns=PAPER_SETS, fill_value="") == "").all().all()
    printed = paper_table(number)
    column = "MVTec" if "MVTec" in printed else "zero_shot"
    shown = [float(cell) for cell in theirs[column.replace("_", "-")]]
    assert shown == printed[column].tolist()


@pytest.mark.parametrize("number", paper_tables.TITLES)
def test_what_is_measured_stands_in_the_table_and_the_rest_says_so(number: int, everything: Measured) -> None:
    nothing = Measured({}, "metrics.json", {})
    empty = paper_tables.block(paper_tables.table(number, nothing), paper_tables.OURS)
    mean = "mean of six" if "mean of six" in empty else "zero-shot"
    assert (empty[mean] == NOT_MEASURED).all()
    full = paper_tables.block(paper_tables.table(number, everything), paper_tables.OURS)
    measured = full[mean] != NOT_MEASURED
    assert (measured | full.get("group", full[mean]).eq("simple predictor")).all()
    assert full.loc[measured, mean].str.contains(" to ").all(), "a level comes with its spread"


def test_each_row_of_ours_holds_its_own_variant(everything: Measured) -> None:
    rewards = paper_tables.block(paper_tables.table(5, everything), paper_tables.OURS)
    marked = {tuple(row[part] for part in paper_tables.PARTS): row["mean of six"] for row in rewards.to_dict("records")}
    wanted = {"accuracy only": ("no",) * 3, "without location": ("yes", "no", "yes"), "strict": ("yes",) * 3}
    for variant, marks in wanted.items():
        assert marked[marks] == scoring.level(everything.variant("rewards", variant))
    reasoning = paper_tables.block(paper_tables.table(2, everything), paper_tables.OURS).set_index("data")
    assert reasoning.loc["answers only", "minus PA-SFT"] == "−5.0 [−7.0, −4.0]"
    assert reasoning.loc["with reasoning (PA-SFT)", "minus PA-SFT"] == ""
    assert (reasoning["one-shot"] == NOT_MEASURED).all()


def test_tables_repeat_the_shipped_numbers(shipped: Measured) -> None:
    rows = {row["name"]: row for row in report.shipped_metrics()["rows"]}
    stages = paper_tables.block(paper_tables.table(4, shipped), paper_tables.OURS).set_index("stage")
    for stage, title in report.STAGES.items():
        for column, benchmark in {"mean of six": "mean", "mini-mesh": "mini-mesh"}.items():
            row = rows[f"{stage}/balanced_accuracy/{benchmark}"]
            assert stages.loc[title, column].startswith(f"{row['value']:.1f}")
    study = json.loads((ROOT / SHIPPED / "ablation_reasoning.json").read_text())["rows"]
    value = next(row["value"] for row in study if row["name"] == "answers only/balanced_accuracy/mean")
    data = paper_tables.block(paper_tables.table(2, shipped), paper_tables.OURS).set_index("data")
    assert data.loc["answers only", "zero-shot"].startswith(f"{value:.1f} (")


# ------------------------------------------------------------------------------------------------ the curves


def test_a_curve_has_the_course_s_setting_in_its_place(everything: Measured) -> None:
    grid = paper_tables.curve("grid", everything)
    assert grid["variant"].tolist() == ["1×1", "2×2", "3×3", "4×4", "5×5"]
    assert grid["value"].tolist() == [50, 51, 70, 52, 53]
    assert paper_tables.curve("data", everything)["value"].tolist() == [50, 51, 52, 53, 70]


def test_a_curve_leaves_out_what_is_not_measured(everything: Measured) -> None:
    some = {name: row for name, row in everything.studies["grid"].items() if not name.startswith("4×4")}
    part = Measured({}, "", {"grid": some})
    assert paper_tables.curve("grid", part)["variant"].tolist() == ["1×1", "2×2", "3×3", "5×5"]
    assert paper_tables.curve("data", part).empty


# ------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize(
    "ends, wanted",
    [((0.1, 2), AGREES), ((-2, -0.1), DISAGREES), ((-1, 2), OPEN), ((0, 2), OPEN), ((-2, 0), OPEN)],
)
def test_a_verdict_is_where_the_interval_lies(ends: tuple[float, float], wanted: str) -> None:
    assert paper_tables.verdict({"value": sum(ends) / 2, "low": ends[0], "high": ends[1]}) == wanted


def test_differences_are_signed_as_the_claim_says(everything: Measured) -> None:
    found = paper_tables.agreement(everything).set_index("claim")
    assert found.loc["PA-SFT beats the base", "verdict"] == AGREES
    assert found.loc["SC-GRPO beats PA-SFT", "verdict"] == OPEN
    # Every variant lies below what it is compared with: good for claims on the baseline, bad for those on the variant.
    assert found.loc["SC-GRPO beats PA-SFT, in short runs", "verdict"] == DISAGREES
    turned = found.loc["Reasoning beats answers only"]
    assert (turned["value"], turned["low"], turned["high"]) == (5, 4, 7) and turned["verdict"] == AGREES
    assert turned["ours"] == "+5.0 [+4.0, +7.0]"
    others = found.drop(["SC-GRPO beats PA-SFT", "SC-GRPO beats PA-SFT, in short runs"])
    assert (others["verdict"] == AGREES).all() and len(found) == 13


def test_what_was_not_measured_has_no_verdict() -> None:
    found = paper_tables.agreement(Measured({}, "metrics.json", {}))
    assert (found["verdict"] == NOT_MEASURED).all() and found[["value", "low", "high"]].isna().all().all()
    assert f"{len(found)} not measured" in paper_tables.in_short(found)


def test_each_claim_is_the_paper_s_own(shipped: Measured) -> None:
    for claim in paper_tables._claims(shipped):
        assert all(gain > 0 for gain in claim.paper), f"the paper's numbers do not say: {claim.text}"
        assert bool(claim.paper) == (claim.where != "Figure 3")


def test_several_seeds_speak_together_and_each_is_shown(shipped: Measured) -> None:
    found = paper_tables.agreement(shipped).set_index("claim").loc["SC-GRPO beats PA-SFT"]
    rows = {row["name"]: row for row in report.shipped_metrics()["rows"]}
    name = "difference/sc_grpo-pa_sft/balanced_accuracy"
    pooled = rows[f"{name}/pooled"]
    assert (found["value"], found["low"], found["high"]) == (pooled["value"], pooled["low"], pooled["high"])
    assert found["seeds"] == ", ".join(f"{value:+.1f}" for value in pooled["seeds"].values())


def test_the_summary_counts_every_claim_and_names_what_disagrees(everything: Measured) -> None:
    found = paper_tables.agreement(everything)
    said = paper_tables.in_short(found)
    assert "13 claims: 11 agree, 1 disagree, 1 open, 0 not measured" in said
    assert "SC-GRPO beats PA-SFT, in short runs" in said
