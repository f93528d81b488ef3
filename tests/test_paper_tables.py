"""The paper's tables, our numbers in the same form, and the verdicts on its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import MEAN, SEED_RANGE, interval_text
from iadr1_lib.reporting import BASELINE, PAPER_SETS, STAGES, Measured, claims, shipped
from iadr1_lib.reporting.claims import AGREES, DISAGREES, NOT_MEASURED, OPEN, PARTS, paper_table

SETS = ("mini-bottles", "mini-gears")
CLAIMS = pd.read_csv(ROOT / "data" / "paper_tables" / "claims.csv")


def levels(name: str, value: float) -> dict[str, dict[str, Any]]:
    """Rows of one stage or variant: balanced accuracy on each benchmark and on the mean."""
    ends = {"value": value, "low": value - 1, "high": value + 2, "interval": SEED_RANGE}
    return {f"{name}/balanced_accuracy/{place}": dict(ends) for place in (*SETS, MEAN)}


def change(name: str, value: float, low: float, high: float) -> dict[str, dict[str, Any]]:
    return {f"difference/{name}/balanced_accuracy": {"value": value, "low": low, "high": high}}


@pytest.fixture
def everything() -> Measured:
    """Each stage and each variant of every study measured, each 5 points below what it is compared with."""
    course = levels("base", 60) | levels("pa_sft", 70) | levels("sc_grpo", 80) | levels("control", 75)
    ours = {"course": course | change("pa_sft-base", 10, 8, 12) | change("sc_grpo-pa_sft", 1, -1, 3)}
    for study, plan in claims.STUDIES.items():
        ours[study] = levels(BASELINE, 70.0)
        for place, variant in enumerate(plan.variants):
            ours[study] |= levels(variant, 50.0 + place)
            for baseline in (BASELINE, "strict"):
                ours[study] |= change(f"{variant}/{baseline}", -5, -7, -4)
    return ours


# ------------------------------------------------------------------------------------------ what is published


def test_paper_tables_agree_with_each_other() -> None:
    models, stages = paper_table(1), paper_table(4)
    averages = models[PAPER_SETS].mean(axis=1)
    off = (averages - models["average"]).abs() > 0.06  # the paper rounds to one place
    assert models.loc[off, "model"].tolist() == ["Anomaly-OV"], "known: its average is not its columns' mean"
    last = stages[stages["stage"] == "SC-GRPO"].set_index(["model", "parameters"])
    own = models[models["group"] == "iad-r1"].set_index(["model", "parameters"])
    assert ((last.loc[own.index, PAPER_SETS] - own[PAPER_SETS]).abs() < 0.05).all().all()
    full, larger = paper_table(5).iloc[-1], own.loc[("Qwen2.5-VL-Instruct", "7B")]
    assert [name for name in PAPER_SETS if full[name] == larger[name]] == ["DAGM", "SDD"], "known: of another model"


def test_paper_tables_are_the_given_ones(shared: Path) -> None:
    given = sorted((shared / "reference" / "tables").glob("*.csv"))
    ours = {path.name: path.read_text() for path in (ROOT / "data" / "paper_tables").glob("*.csv")}
    assert {path.name: path.read_text() for path in given} | {"claims.csv": ours["claims.csv"]} == ours


def papers_differences(claim: dict[Any, Any]) -> list[float]:
    """The paper's differences for a claim, one per model, computed from its tables."""
    if claim["where"] == "Figure 3":
        return []
    if claim["where"] == "Table 5":  # rows 4 and 5 have two marks of three: which reward is gone is not known
        means = paper_table(5)[PAPER_SETS].mean(axis=1).to_list()
        return [means[-1] - mean for mean in means[-3:-1]]
    number = int(claim["where"].split()[1])
    table, column = paper_table(number), {2: "data", 3: "strategy", 4: "stage"}[number]
    table["value"] = table[PAPER_SETS].mean(axis=1) if number == 4 else table["zero_shot"]
    names = {"PA-SFT": "Expert-AD", "answers only": "answer-only"} if number == 2 else {"strict": "SC-GRPO"}
    names |= {"accuracy only": "accuracy-only GRPO", **STAGES}
    models = [name for name in ("model", "parameters") if name in table]
    wide = table.pivot(index=models, columns=column, values="value")
    better, than = (names.get(claim[key], claim[key]) for key in ("better", "than"))
    return [float(gain) for gain in wide[better] - wide[than]]


@pytest.mark.parametrize("claim", CLAIMS.to_dict("records"), ids=CLAIMS["claim"])
def test_each_claim_is_the_paper_s_own(claim: dict[Any, Any]) -> None:
    gains = papers_differences(claim)
    assert all(gain > 0 for gain in gains), "the paper's numbers do not say so"
    if gains:
        assert (claim["lowest"], claim["highest"]) == pytest.approx((min(gains), max(gains)), abs=0.051)
        counts = {"seven models": 7, "three models": 3}
        assert len(gains) == counts.get(claim["of"], 2)
    else:
        assert pd.isna(claim["lowest"])


# ---------------------------------------------------------------------------------------- the paper's tables


@pytest.mark.parametrize("number", [0, 9])
def test_unknown_paper_table_is_refused(number: int) -> None:
    with pytest.raises(UserError, match="Tables 1 to 5"):
        paper_table(number)
    with pytest.raises(UserError, match="choose 2 or 5"):
        claims.our_table(number, {"course": {}})


@pytest.mark.parametrize("number", range(1, 6))
def test_the_paper_s_rows_are_printed_as_they_are(number: int) -> None:
    printed, table = claims.printed_table(number), paper_table(number)
    column = "MVTec" if "MVTec" in table else "zero_shot"
    assert [float(cell) for cell in printed[column.replace("_", "-")]] == table[column].tolist()
    assert not printed.isin(["nan"]).any().any()


@pytest.mark.parametrize("number", [2, 5])
def test_what_is_measured_stands_in_our_table_and_the_rest_says_so(number: int, everything: Measured) -> None:
    empty, full = (claims.our_table(number, ours) for ours in ({"course": {}}, everything))
    mean = "mean" if "mean" in empty else "zero-shot"
    assert (empty[mean] == NOT_MEASURED).all() and len(empty) == len(full)
    assert full[mean].str.contains(" to ").all(), "a level comes with its spread"
    assert not set(full) & set(PAPER_SETS), "the paper's benchmarks are others"


def test_each_row_of_ours_holds_its_own_variant(everything: Measured) -> None:
    rows = claims.our_table(5, everything).to_dict("records")
    marked = {tuple(row[part] for part in PARTS): row["mean"] for row in rows}
    wanted = {"accuracy only": ("no",) * 3, "without location": ("yes", "no", "yes"), "strict": ("yes",) * 3}
    for variant, marks in wanted.items():
        assert marked[marks] == interval_text(everything["rewards"][f"{variant}/balanced_accuracy/mean"])
    reasoning = claims.our_table(2, everything).set_index("data")
    assert reasoning.loc["answers only", "minus PA-SFT"] == "−5.0 [−7.0, −4.0]"
    assert reasoning.loc["with reasoning (PA-SFT)", "minus PA-SFT"] == ""


def test_a_curve_has_the_course_s_setting_in_its_place(everything: Measured) -> None:
    grid = claims.curve("grid", everything)
    assert grid["variant"].tolist() == ["1×1", "2×2", "3×3", "4×4", "5×5"]
    assert grid["value"].tolist() == [50, 51, 70, 52, 53]
    assert claims.curve("data", everything)["value"].tolist() == [50, 51, 52, 53, 70]
    some = {name: row for name, row in everything["grid"].items() if not name.startswith("4×4")}
    assert claims.curve("grid", {"grid": some})["variant"].tolist() == ["1×1", "2×2", "3×3", "5×5"]
    assert claims.curve("data", {"grid": some}).empty


# ------------------------------------------------------------------------------------------------ agreement


@pytest.mark.parametrize(
    "ends, wanted",
    [((0.1, 2), AGREES), ((-2, -0.1), DISAGREES), ((-1, 2), OPEN), ((0, 2), OPEN), ((-2, 0), OPEN)],
)
def test_a_verdict_is_where_the_interval_lies(ends: tuple[float, float], wanted: str) -> None:
    assert claims.verdict({"value": sum(ends) / 2, "low": ends[0], "high": ends[1]}) == wanted


def test_differences_are_signed_as_the_claim_says_and_counted(everything: Measured) -> None:
    found = claims.agreement(everything)
    by_claim = found.set_index("claim")
    # Every variant lies below what it is compared with: good for claims on the baseline, bad for those on the variant.
    others = {"SC-GRPO beats PA-SFT": OPEN, "SC-GRPO beats PA-SFT, in short runs": DISAGREES}
    assert by_claim["verdict"].to_dict() == {claim: others.get(claim, AGREES) for claim in CLAIMS["claim"]}
    turned = by_claim.loc["Reasoning beats answers only"]
    assert (turned["value"], turned["low"], turned["high"]) == (5, 4, 7) and turned["ours"] == "+5.0 [+4.0, +7.0]"
    short = claims.in_short(found)
    assert "13 claims: 11 agree, 1 disagree, 1 open, 0 not measured" in short
    assert "SC-GRPO beats PA-SFT, in short runs" in short


def test_what_was_not_measured_has_no_verdict() -> None:
    found = claims.agreement({"course": {}})
    assert (found["verdict"] == NOT_MEASURED).all() and found[["value", "low", "high"]].isna().all().all()
    assert f"{len(found)} not measured" in claims.in_short(found)
    assert claims.verdict({"value": None, "low": None, "high": None}) == NOT_MEASURED


def test_a_verdict_names_the_row_that_it_rests_on() -> None:
    metrics = shipped()
    ours = claims.measured(metrics)
    for line in claims.agreement(ours).to_dict("records"):
        row = ours[line["study"]][line["row"]]
        assert abs(row["value"]) == pytest.approx(abs(line["value"])), line["claim"]


def test_several_seeds_speak_together_and_each_is_shown() -> None:
    ours = claims.measured(shipped())
    found = claims.agreement(ours).set_index("claim").loc["SC-GRPO beats PA-SFT"]
    pooled = ours["course"]["difference/sc_grpo-pa_sft/balanced_accuracy/pooled"]
    assert (found["value"], found["low"], found["high"]) == (pooled["value"], pooled["low"], pooled["high"])
    assert found["seeds"] == ", ".join(f"{value:+.1f}" for value in pooled["seeds"].values())
