"""Parsers, the file of predictions, metrics with intervals, P(Yes), agreement of reasoning, tags and masks."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from iadr1_lib.answer import CELLS, DEFECT_TYPES, build_answer
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import (
    PARSERS,
    SEED_RANGE,
    agreement,
    as_reasoned,
    grounding,
    interval_text,
    metric_rows,
    parser_table,
    ranking,
    read_answer,
    read_predictions,
    score,
    unknown_types,
)
from iadr1_lib.evaluation.metrics import areas
from iadr1_lib.records import Sample

GOLDEN = Path(__file__).parent / "golden"
NO = build_answer("all fine", "no")
YES = build_answer("A line at the left . It is a scratch .", "yes", "left", "scratch")


# --- parsers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "parser"),
    [
        ("tagged", "released-tagged"),
        ("free_text", "released-free-text"),
        ("free_text_case_insensitive", "released-free-text-ci"),
    ],
)
def test_released_parsers(column, parser):
    rows = json.loads((GOLDEN / "answers.json").read_text())
    letters = {"yes": "A", "no": "B", None: "E"}
    read = {row["text"]: letters[read_answer(row["text"], parser)] for row in rows}
    assert read == {row["text"]: row[column] for row in rows}


@pytest.mark.parametrize(
    "text, strict, fair",
    [
        (YES, "yes", "yes"),
        (NO.replace("><", ">\n<").replace("No", "nO"), "no", "no"),
        ("No defects: <answer>Yes</answer>", None, "yes"),
        ("Yes, there is a scratch on the snout.", None, "yes"),
        ("There are no visible defects.", None, "no"),
        ("I know nothing of eyes.", None, None),
        ("<answer></answer> yes", None, "yes"),
        ("<think>There is no", None, None),
        ("<answer>\nNO.\n</answer>", None, "no"),
        ("Yes", None, "yes"),
        ("", None, None),
    ],
)
def test_strict_and_fair(text, strict, fair):
    assert read_answer(text) == strict
    assert read_answer(text, parser="fair") == fair


def test_unknown_parser_names_the_choices():
    with pytest.raises(ValueError, match="fair"):
        read_answer("yes", "kind")


def test_answers_are_read_without_torch():
    code = "import sys; from iadr1_lib.evaluation import read_answer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=40)
blank = st.text(" \n\t", max_size=3)
tags = [f"<{end}{tag}>" for tag in ("think", "location", "type", "answer") for end in ("", "/")]
pieces = st.lists(st.one_of(st.sampled_from([*tags, "Yes", "no", "snout", "NO.", "\n", YES, NO]), words), max_size=9)


@given(st.one_of(st.text(), pieces.map("".join)))
def test_any_text_is_read_and_what_strict_reads_fair_reads_alike(text):
    read = {parser: read_answer(text, parser) for parser in PARSERS}
    assert set(read.values()) <= {"yes", "no", None}
    assert read["strict"] in (None, read["fair"])


@given(words, st.sampled_from(CELLS), st.sampled_from(DEFECT_TYPES), blank, blank, blank)
def test_built_answers_read_back_whatever_case_and_white_space(reasoning, place, kind, before, between, after):
    for word, text in (("yes", build_answer(reasoning, "yes", place, kind)), ("no", build_answer(reasoning, "no"))):
        assert read_answer(text, "released-tagged") == word
        changed = before + text.replace("><", f">{between}<").replace("Yes<", "yEs<").replace("No<", "NO<") + after
        for parser in ("strict", "fair"):
            assert read_answer(text, parser) == read_answer(changed, parser) == word


# --- reading predictions --------------------------------------------------------------------------------


table = pd.DataFrame


def row(image, label="yes", raw=YES, benchmark="bench", location="left", kind="scratch", **more):
    truth = {"location": location, "type": kind} if label == "yes" else {"location": None, "type": None}
    asked = {"p_yes": 0.5, "prompt": "bare", "protocol": "zero-shot", "model": "m", "seed": 0}
    where = {"image": image, "category": "c", "benchmark": benchmark, "label": label}
    return where | truth | {"raw": raw} | asked | more


def test_predictions_round_trip(tmp_path):
    rows = [row(f"{i}.png", raw="line\u2028end") for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.jsonl"), table(rows))


LINE = json.dumps(row("a.png")) + "\n"
WRONG = [{"label": "maybe"}, {"raw": None}, {"benchmark": " "}, {"category": None}, {"category": 7}, {"grid": 6}]
WRONG += [{"location": ["left"]}, {"p_yes": 1.5}, {"p_yes": "high"}, {"p_yes": float("nan")}]
DAMAGED = [LINE[:40], "[1]", '{"image": "b.png"}', *(json.dumps(row("b.png") | wrong) for wrong in WRONG)]


@pytest.mark.parametrize(
    ("content", "message"),
    [(LINE + second, "line 2") for second in DAMAGED]
    + [(None, "no predictions"), ("\n", "no prediction"), (2 * LINE, "a.png twice")],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_predictions(tmp_path / "p.jsonl")


# --- scores ---------------------------------------------------------------------------------------------


def drawn(seed, n=200, right=0.8, benchmarks=("a", "b")):
    """Predictions that are right with a given chance, tags with half of it."""
    rng = np.random.default_rng(seed)
    rows = []
    for benchmark in benchmarks:
        for i in range(n):
            label = "yes" if i % 4 else "no"
            say = label if rng.random() < right else {"yes": "no", "no": "yes"}[label]
            tags = (rng.choice(["left", "top"]), rng.choice(["scratch", "hole"])) if say == "yes" else ()
            raw = build_answer("x", say, *tags) if rng.random() < 0.95 else "hm"
            rows.append(row(f"{i}.png", label, raw, benchmark))
    return table(rows)


def value(scores, metric, benchmark="mean", column="value"):
    return scores.set_index(["metric", "benchmark"]).loc[(metric, benchmark), column]


def test_metrics_by_hand():
    rows = [row("1", raw=YES), row("2", raw=NO), row("3", raw="hm"), row("4", raw=YES, location="top left")]
    rows += [row("5", "no", NO), row("6", "no", YES), row("7", raw=YES.replace("scratch", "Surface Scratch"))]
    rows += [row("8", "no", NO)]
    scores = score(table(rows))
    counts = {m: value(scores, m, "bench") for m in ("tp", "fn", "tn", "fp", "unparsed")}
    assert counts == {"tp": 3, "fn": 1, "tn": 2, "fp": 1, "unparsed": 1}
    expected = {"accuracy_defective": 60, "accuracy_normal": 200 / 3, "balanced_accuracy": (60 + 200 / 3) / 2}
    expected |= {"location": 40, "type": 60}  # rows 1 and 7 of five; rows 1, 4 and 7, a synonym counts
    expected |= {"share_yes": 50, "share_unparsed": 12.5}
    expected |= {"location_if_yes": 200 / 3, "type_if_yes": 100}  # of rows 1, 4 and 7 alone
    assert {metric: value(scores, metric) for metric in expected} == pytest.approx(expected)


def test_kinds_of_errors_and_categories_by_hand():
    rows = [row("1", raw=YES), row("2", raw=NO), row("3", raw="hm"), row("4", "no", YES), row("5", "no", "hm")]
    rows += [row("6", raw=YES, category="d"), row("7", "no", NO, category="d")]
    rows += [row("8", raw=NO, category="one label only")]
    scores = score(table(rows))
    assert value(scores, "overkill") == pytest.approx(100 / 3)  # 4 of 4, 5, 7; 5 is unparsed, not called defective
    assert value(scores, "miss") == pytest.approx(40)  # 2 and 8 of five
    # category c: 1 of 3 defective and 0 of 2 normal ones; category d: all
    assert value(scores, "balanced_accuracy_by_category") == pytest.approx((100 / 6 + 100) / 2)


def test_a_type_is_read_as_the_reward_reads_it_and_unknown_truths_are_left_out():
    rows = [
        row(kind, raw=YES.replace(">scratch<", f">{kind}<")) for kind in ("scratches", "a scratch", "Scratch.", "hole")
    ]
    assert value(score(table(rows)), "type", "bench") == 75
    assert np.isnan(value(score(table([r | {"type": "ko"} for r in rows])), "type", "bench"))
    scores = score(table([row("1"), row("2", location=None), row("3", kind="manipulated front")]))
    assert value(scores, "location", "bench", "n") == 2
    assert value(scores, "type") == pytest.approx(200 / 3)
    named = [row("1"), row("2", kind="Stain"), row("3", kind="bubble"), row("4", "no")]
    assert unknown_types(table(named)) == ["bubble"]


def test_intervals_are_those_of_resampled_images():
    frame = drawn(5, n=80, benchmarks=("a",))
    right = np.array([read_answer(r, "fair") == label for r, label in zip(frame["raw"], frame["label"], strict=True)])
    rng = np.random.default_rng(1)
    sides = [right[(frame["label"] == label).to_numpy()] for label in ("no", "yes")]
    draws = [np.mean([rng.choice(side, len(side)).mean() for side in sides]) for _ in range(4000)]
    scores = score(frame)
    for column, expected in zip(("low", "high"), 100 * np.percentile(draws, [2.5, 97.5]), strict=True):
        assert value(scores, "balanced_accuracy", "a", column) == pytest.approx(expected, abs=1.5)


def test_the_bootstrap_keeps_the_mixture_of_labels():
    """Where all answers are right, the share of yes is that of the labels in every draw: an interval of no width."""
    scores = score(table([row(str(i), *(("yes", YES) if i < 30 else ("no", NO))) for i in range(100)]))
    assert [value(scores, "share_yes", column=c) for c in ("low", "value", "high")] == pytest.approx([30, 30, 30])


@pytest.mark.parametrize("label, other", [("yes", "normal"), ("no", "defective")])
def test_one_class_only_gives_recall_and_a_reason(label, other):
    scores = score(table([row(str(i), label, YES) for i in range(6)] + [row("x", benchmark="full")]))
    assert np.isnan(value(scores, "balanced_accuracy", "bench"))
    assert other in value(scores, "balanced_accuracy", "bench", "note")
    recall = "accuracy_defective" if label == "yes" else "accuracy_normal"
    assert value(scores, recall, "bench") == (100 if label == "yes" else 0)
    rows = {r["name"]: r for r in metric_rows(scores, "base")}
    assert rows["base/balanced_accuracy/mean"]["value"] is None
    json.dumps(list(rows.values()), allow_nan=False)


def test_scores_are_reproducible_and_within_bounds():
    first = score(drawn(7))
    pd.testing.assert_frame_equal(first, score(drawn(7)))
    percent = first[first["unit"] == "%"]
    assert ((percent["low"] <= percent["value"] + 1e-9) & (percent["value"] <= percent["high"] + 1e-9)).all()
    assert percent["value"].between(0, 100).all()


@pytest.mark.parametrize(
    ("numbers", "level", "difference"),
    [
        (None, "–", "–"),
        ((np.nan, 1, 2), "–", "–"),
        ((57.24, None, None), "57.2", "+57.2"),
        ((-1.26, -3, 0.2), "-1.3 [-3.0, 0.2]", "−1.3 [−3.0, +0.2]"),
        ((50, 50, 50), "50.0", "+50.0"),
    ],
)
def test_a_value_with_its_interval_as_text(numbers, level, difference):
    row = numbers and dict(zip(("value", "low", "high"), numbers, strict=True))
    assert interval_text(row) == level and interval_text(row, signed=True) == difference
    seeds = {"value": 50, "low": 40, "high": 60, "interval": SEED_RANGE}
    assert interval_text(seeds) == "50.0 (40.0 to 60.0)"  # not a confidence interval: round brackets


# --- parsers side by side -------------------------------------------------------------------------------


def test_points_that_each_parser_moves():
    rows = [row("1", raw="Yes, there is a scratch on the snout."), row("2", "no", "No"), row("3", "no", "No")]
    result = parser_table(table([*rows, row("4", raw=YES)]))
    assert result.loc["fair", "balanced accuracy"] == 100 and result.loc["fair", "points against fair"] == 0
    assert result.loc["released-free-text", "balanced accuracy"] == 50  # 1 as No, 4 not at all
    assert result.loc["strict", "unparsed"] == 75 and result.loc["released-tagged", "read otherwise"] == 75
    assert result.loc["released-free-text-ci", "points against fair"] == 0


# --- P(Yes) ---------------------------------------------------------------------------------------------


def test_ranking_counts_what_has_no_p_yes():
    rng = np.random.default_rng(0)
    frame = drawn(3, n=60, benchmarks=("a",))
    frame["p_yes"] = np.where(rng.random(len(frame)) < 0.1, None, rng.random(len(frame)).round(1))
    result, known = ranking(frame), frame.dropna(subset=["p_yes"])
    assert value(result, "auroc") == pytest.approx(100 * roc_auc_score(known["label"], known["p_yes"].astype(float)))
    assert value(result, "auroc", "a", "n") == len(known)
    assert value(result, "share_without_p_yes") == pytest.approx(100 * frame["p_yes"].isna().mean())
    assert value(result, "auroc", column="low") < value(result, "auroc") < value(result, "auroc", column="high")
    pd.testing.assert_frame_equal(result, ranking(frame))
    without = ranking(frame.assign(p_yes=None))
    assert np.isnan(value(without, "auroc")) and value(without, "share_without_p_yes") == 100


def test_areas_are_sklearns_under_any_weights():
    rng = np.random.default_rng(1)
    truth, p = rng.random(40) < 0.4, rng.random(40).round(1)
    weights = rng.integers(0, 4, (20, 40)).astype(float)
    for own, auroc, precision in zip(weights, *areas(truth, p, weights), strict=True):
        assert auroc == pytest.approx(roc_auc_score(truth, p, sample_weight=own))
        assert precision == pytest.approx(average_precision_score(truth, p, sample_weight=own))


# --- reasoning against tags, places against masks -------------------------------------------------------


def test_agreement_of_reasoning_and_tags():
    texts = ["A line at the top . It is a hole .", "Something is odd .", "The whole surface looks normal ."]
    rows = [row(text, raw=build_answer(text, "yes", "left", "scratch")) for text in texts]
    rows += [row("agrees"), row("no", raw=NO)]
    result = agreement(table(rows))
    expected = {f"{what}_{how}": 25 for what in ("place", "type") for how in ("agrees", "differs")}
    expected |= {"reasoning_agrees": 25, "reasoning_opposes": 25}
    assert {metric: value(result, metric) for metric in expected} == expected
    assert value(result, "place_agrees", column="n") == 4
    assert np.isnan(value(agreement(table([row("1", raw=NO)])), "place_agrees"))
    denies = "A line at the left . It is a scratch . The whole surface looks normal . There is no defect ."
    result = agreement(table([row("1"), row("2", raw=build_answer(denies, "yes", "left", "scratch"))]))
    assert value(result, "reasoning_opposes") == 50 and value(result, "reasoning_agrees") == 50


def test_what_the_reasoning_names_against_the_truth():
    whole = (
        "I scan the image . At the left I see a small dark line . A fine line means scratch . The anomaly is clear ."
    )
    rows = [row("1", raw=build_answer(whole, "yes", "top", "hole")), row("2")]  # right in the text, wrong in the tags
    rows += [
        row("3", raw=build_answer(f"{whole} It is a hole at the top .", "yes", "left", "scratch"))
    ]  # the other way
    rows += [row("4", raw=build_answer(whole, "no")), row("5", "no", build_answer(whole, "yes", "left", "scratch"))]
    result = agreement(table(rows))
    assert {m: value(result, m) for m in ("place_named", "type_named")} == {"place_named": 50, "type_named": 50}
    assert value(result, "place_named", "bench", "n") == 4 and value(result, "whole_sentences", "bench", "n") == 5
    assert value(result, "whole_sentences") == 60
    named = score(as_reasoned(table(rows)))
    assert value(named, "location_if_yes") == pytest.approx(200 / 3)
    assert value(named, "share_yes") == value(score(table(rows)), "share_yes")


def test_grounding_by_hand(tmp_path):
    """A line along the top of the picture: each of the three top cells holds a part of it."""
    mask = np.zeros((90, 90), np.uint8)
    mask[10:14, 5:85] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    texts = {place: build_answer("x", "yes", place, "scratch") for place in ("top left", "top", "center", "nowhere")}
    rows = [row(place, raw=raw, location="top") for place, raw in texts.items()]
    rows += [row("missed", raw=NO, location="top"), row("no mask"), row("normal", "no", YES)]
    where = {"category": "c", "benchmark": "bench", "split": "test", "source": "test"}
    masks = {name: str(tmp_path / "mask.png") for name in (*texts, "missed")}
    samples = [Sample(r["image"], r["label"], masks.get(r["image"]), None, None, **where) for r in rows]
    result = grounding(table(rows), samples)
    assert value(result, "grounding", "bench") == pytest.approx(40)  # top left and top, of five with a mask
    assert value(result, "grounding", "bench", "n") == 5
    reasoned = [r | {"raw": r["raw"].replace(">x<", ">A line at the top right .<")} for r in rows]
    assert value(grounding(as_reasoned(table(reasoned)), samples), "grounding", "bench") == pytest.approx(80)
    assert np.isnan(value(grounding(table(rows), []), "grounding", "bench"))
    Image.fromarray(255 - mask).save(tmp_path / "mask.png")
    assert np.isnan(value(grounding(table(rows), samples), "grounding", "bench"))  # inverted, it says no place
