"""Parsers, metrics, intervals, paired comparison, baselines."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score

from iadr1_lib.answer import CELLS, DEFECT_TYPES, build_answer
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import (
    PARSERS,
    agreement,
    areas,
    grounding,
    label_only_baselines,
    metric_rows,
    paired_difference,
    parser_table,
    ranking,
    read_answer,
    read_predictions,
    score,
    unknown_types,
)
from iadr1_lib.records import Sample

GOLDEN = Path(__file__).parent / "golden"
NO = build_answer("all fine", "no")
YES = build_answer("A line at the left . It is a scratch .", "yes", "left", "scratch")


# --- parsers ------------------------------------------------------------------------------------------

released = {"tagged": "released-tagged", "free_text": "released-free-text"}
released["free_text_case_insensitive"] = "released-free-text-ci"


@pytest.mark.parametrize("column, parser", released.items())
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


@given(st.text(), st.sampled_from(sorted(PARSERS)))
def test_any_text_is_read(text, parser):
    assert read_answer(text, parser) in ("yes", "no", None)


words = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=40)
places, kinds = st.sampled_from(CELLS), st.sampled_from(DEFECT_TYPES)


@given(words, places, kinds, st.sampled_from(["strict", "fair", "released-tagged"]))
def test_built_answers_read_back(reasoning, place, kind, parser):
    assert read_answer(build_answer(reasoning, "yes", place, kind), parser) == "yes"
    assert read_answer(build_answer(reasoning, "no"), parser) == "no"


blank = st.text(" \n\t", max_size=3)
tag = st.sampled_from(
    ["<think>", "</think>", "<location>", "</location>", "<type>", "</type>", "<answer>", "</answer>"]
)
pieces = st.lists(st.one_of(tag, words, st.sampled_from(["Yes", "no", "snout", "NO.", "\n"])), max_size=9).map("".join)


@given(st.one_of(pieces, st.builds(lambda a, w: a + w, blank, st.sampled_from([YES, NO]))))
def test_what_strict_reads_fair_reads_alike(text):
    strict = read_answer(text, "strict")
    assert strict is None or read_answer(text, "fair") == strict


@given(st.sampled_from([YES, NO]), blank, blank, blank)
def test_case_of_the_word_and_white_space_around_tags_change_nothing(text, before, between, after):
    changed = before + text.replace("><", f">{between}<").replace("Yes<", "yEs<").replace("No<", "NO<") + after
    for parser in ("strict", "fair"):
        assert read_answer(changed, parser) == read_answer(text, parser)


plain = st.text(st.characters(codec="ascii", exclude_characters="<>"), max_size=20)
spoken = st.lists(st.one_of(plain, st.sampled_from(["Yes", "no", "snout", " NO."])), max_size=6).map("".join)


@given(spoken)
def test_case_changes_nothing_where_case_is_ignored(text):
    for parser in ("fair", "released-free-text-ci"):
        assert read_answer(text.swapcase(), parser) == read_answer(text, parser)


def test_unknown_parser_names_the_choices():
    with pytest.raises(ValueError, match="fair"):
        read_answer("yes", "kind")


# --- reading predictions --------------------------------------------------------------------------------


def row(image, label="yes", raw=YES, benchmark="bench", location="left", kind="scratch"):
    truth = {"location": location, "type": kind} if label == "yes" else {"location": None, "type": None}
    asked = {"p_yes": 0.5, "prompt": "bare", "protocol": "zero-shot", "model": "m", "seed": 0}
    return {
        "image": image,
        "category": "c",
        "benchmark": benchmark,
        "label": label,
        **truth,
        "raw": raw,
        **asked,
    }


def table(rows):
    return pd.DataFrame(rows)


def test_predictions_round_trip(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        "".join(json.dumps(row(f"{i}.png", raw="line\u2028end"), ensure_ascii=False) + "\n" for i in range(3)),
        "utf-8",
    )
    frame = read_predictions(path)
    assert list(frame["image"]) == ["0.png", "1.png", "2.png"] and frame["raw"][0] == "line\u2028end"


@pytest.mark.parametrize(
    "second",
    [
        json.dumps(row("b.png"))[:40],
        "[1]",
        '{"image": "b.png"}',
        json.dumps(row("b.png", label="maybe")),
        json.dumps(row("b.png", raw=None)),
        json.dumps(row("b.png", benchmark=" ")),
        json.dumps(row("b.png") | {"category": None}),
        json.dumps(row("b.png") | {"category": 7}),
        json.dumps(row("b.png") | {"location": ["left"]}),
        json.dumps(row("b.png") | {"p_yes": 1.5}),
        json.dumps(row("b.png") | {"p_yes": "high"}),
        json.dumps(row("b.png") | {"p_yes": float("nan")}),
    ],
)
def test_a_damaged_line_is_named(tmp_path, second):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row("a.png")) + "\n" + second)
    with pytest.raises(UserError, match="line 2"):
        read_predictions(path)


def test_missing_empty_and_doubled_predictions(tmp_path):
    path = tmp_path / "p.jsonl"
    with pytest.raises(UserError):
        read_predictions(path)
    path.write_text("\n")
    with pytest.raises(UserError):
        read_predictions(path)
    path.write_text(2 * (json.dumps(row("a.png")) + "\n"))
    with pytest.raises(UserError, match="a.png"):
        read_predictions(path)


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
    assert value(scores, "accuracy_defective") == pytest.approx(60)
    assert value(scores, "accuracy_normal") == pytest.approx(200 / 3)
    assert value(scores, "balanced_accuracy") == pytest.approx((60 + 200 / 3) / 2)
    assert value(scores, "location") == pytest.approx(40)  # rows 1 and 7 of five
    assert value(scores, "type") == pytest.approx(60)  # rows 1, 4 and 7, a synonym counts
    assert value(scores, "share_yes") == pytest.approx(50)
    assert value(scores, "share_unparsed") == pytest.approx(12.5)


def test_a_type_is_read_as_the_reward_reads_it_and_a_folder_s_bad_is_none():
    said = ["scratches", "a scratch", "Scratch.", "hole"]
    rows = [row(str(i), raw=YES.replace(">scratch<", f">{kind}<")) for i, kind in enumerate(said)]
    assert value(score(table(rows)), "type", "bench") == 75
    assert np.isnan(value(score(table([r | {"type": "ko"} for r in rows])), "type", "bench"))


def test_balanced_accuracy_is_sklearns():
    frame = drawn(3)
    scores = score(frame)
    for benchmark, group in frame.groupby("benchmark"):
        said = [read_answer(raw, "fair") or "neither" for raw in group["raw"]]
        # an unparsed answer is a third class, wrong for both labels
        with pytest.warns(UserWarning):
            expected = balanced_accuracy_score(group["label"], said)
        assert value(scores, "balanced_accuracy", benchmark) == pytest.approx(100 * expected)
    means = [value(scores, "balanced_accuracy", b) for b in ("a", "b")]
    assert value(scores, "balanced_accuracy") == pytest.approx(np.mean(means))


def test_intervals_are_those_of_resampled_images():
    frame = drawn(5, n=80, benchmarks=("a",))
    right = np.array([read_answer(r, "fair") == label for r, label in zip(frame["raw"], frame["label"], strict=True)])
    rng = np.random.default_rng(1)
    sides = [right[(frame["label"] == label).to_numpy()] for label in ("no", "yes")]
    draws = [np.mean([rng.choice(side, len(side)).mean() for side in sides]) for _ in range(4000)]
    low, high = 100 * np.percentile(draws, [2.5, 97.5])
    scores = score(frame)
    assert value(scores, "balanced_accuracy", "a", "low") == pytest.approx(low, abs=1.5)
    assert value(scores, "balanced_accuracy", "a", "high") == pytest.approx(high, abs=1.5)


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


def test_truths_that_are_not_known_are_left_out():
    frame = table([row("1"), row("2", location=None), row("3", kind="manipulated front")])
    scores = score(frame)
    assert value(scores, "location", "bench", "n") == 2
    assert value(scores, "type") == pytest.approx(200 / 3)


def test_scores_are_reproducible_and_within_bounds():
    frame = drawn(7)
    first, again = score(frame), score(frame)
    pd.testing.assert_frame_equal(first, again)
    percent = first[first["unit"] == "%"]
    assert ((percent["low"] <= percent["value"] + 1e-9) & (percent["value"] <= percent["high"] + 1e-9)).all()
    assert percent["value"].between(0, 100).all()


def test_metric_rows_have_the_form_of_the_record():
    rows = metric_rows(score(drawn(1)), "sc_grpo")
    assert {"sc_grpo/balanced_accuracy/a", "sc_grpo/balanced_accuracy/mean"} <= {r["name"] for r in rows}
    assert all(set(r) == {"name", "value", "low", "high", "n", "unit"} for r in rows)


def test_kinds_of_errors_and_categories_by_hand():
    rows = [row("1", raw=YES), row("2", raw=NO), row("3", raw="hm"), row("4", "no", YES), row("5", "no", "hm")]
    rows += [row("6", raw=YES) | {"category": "d"}, row("7", "no", NO) | {"category": "d"}]
    rows += [row("8", raw=NO) | {"category": "one label only"}]
    scores = score(table(rows))
    assert value(scores, "overkill") == pytest.approx(100 / 3)  # 4 of 4, 5, 7; 5 is unparsed, not called defective
    assert value(scores, "miss") == pytest.approx(40)  # 2 and 8 of five
    # category c: 1 of 3 defective and 0 of 2 normal ones; category d: all
    assert value(scores, "balanced_accuracy_by_category") == pytest.approx((100 / 6 + 100) / 2)


def test_the_bootstrap_keeps_the_mixture_of_labels():
    """Where all answers are right, the share of yes is that of the labels in every draw: an interval of no width."""
    frame = table([row(str(i), "yes" if i < 30 else "no", YES if i < 30 else NO) for i in range(100)])
    scores = score(frame)
    assert [value(scores, "share_yes", column=c) for c in ("low", "value", "high")] == pytest.approx([30, 30, 30])


# --- parsers side by side -------------------------------------------------------------------------------


def test_points_that_each_parser_moves():
    rows = [row("1", raw="Yes, there is a scratch on the snout."), row("2", "no", "No"), row("3", "no", "No")]
    found = parser_table(table([*rows, row("4", raw=YES)]))
    assert found.loc["fair", "balanced accuracy"] == 100 and found.loc["fair", "points against fair"] == 0
    assert found.loc["released-free-text", "balanced accuracy"] == 50  # 1 as No, 4 not at all
    assert found.loc["strict", "unparsed"] == 75 and found.loc["released-tagged", "read otherwise"] == 75
    assert found.loc["released-free-text-ci", "points against fair"] == 0


def test_types_out_of_the_vocabulary_are_named():
    assert unknown_types(table([row("1"), row("2", kind="Stain"), row("3", kind="bubble"), row("4", "no")])) == [
        "bubble"
    ]


# --- P(Yes) ---------------------------------------------------------------------------------------------


def test_ranking_is_sklearns_and_counts_what_has_no_p_yes():
    rng = np.random.default_rng(0)
    frame = drawn(3, n=60)
    frame["p_yes"] = np.where(rng.random(len(frame)) < 0.1, None, rng.random(len(frame)).round(1))
    found = ranking(frame)
    for name, group in frame.groupby("benchmark"):
        sure = group.dropna(subset=["p_yes"])
        truth, p = sure["label"] == "yes", sure["p_yes"].astype(float)
        assert value(found, "auroc", name) == pytest.approx(100 * roc_auc_score(truth, p))
        assert value(found, "average_precision", name) == pytest.approx(100 * average_precision_score(truth, p))
        assert value(found, "auroc", name, "n") == len(sure)
        assert value(found, "share_without_p_yes", name) == pytest.approx(100 * group["p_yes"].isna().mean())
    auroc = found[(found["metric"] == "auroc") & (found["benchmark"] == "mean")].iloc[0]
    assert auroc["low"] < auroc["value"] < auroc["high"]
    pd.testing.assert_frame_equal(found, ranking(frame))


def test_areas_are_sklearns_under_any_weights():
    rng = np.random.default_rng(1)
    truth, p = rng.random(40) < 0.4, rng.random(40).round(1)
    weights = rng.integers(0, 4, (20, 40)).astype(float)
    aurocs, precisions = areas(truth, p, weights)
    for w, auroc, precision in zip(weights, aurocs, precisions, strict=True):
        assert auroc == pytest.approx(roc_auc_score(truth, p, sample_weight=w))
        assert precision == pytest.approx(average_precision_score(truth, p, sample_weight=w))


def test_ranking_without_any_p_yes_is_undefined():
    found = ranking(table([row(str(i), "yes" if i else "no") | {"p_yes": None} for i in range(4)]))
    assert np.isnan(value(found, "auroc", "bench")) and value(found, "share_without_p_yes", "bench") == 100


# --- paired ---------------------------------------------------------------------------------------------


def test_paired_difference_is_the_difference_of_scores():
    better, worse = drawn(1, right=0.9), drawn(2, right=0.7)
    for metric in ("balanced_accuracy", "location", "type"):
        gap = paired_difference(better, worse, metric)
        expected = value(score(better), metric) - value(score(worse), metric)
        assert gap.value == pytest.approx(expected)
        assert gap.low <= gap.value <= gap.high
    gap = paired_difference(better, worse.sample(frac=1, random_state=0))  # order does not matter
    assert gap.low > 0 and gap.p_mcnemar < 0.001 and gap.n == 400


def test_a_model_does_not_differ_from_itself():
    assert paired_difference(drawn(1), drawn(1)) == (0, 0, 0, 400, 1)


def test_pairing_narrows_the_interval():
    base = drawn(1, right=0.75)
    changed = base.copy()
    changed.loc[changed.index[:8], "raw"] = NO
    gap = paired_difference(changed, base)
    alone = score(base).set_index(["metric", "benchmark"]).loc[("balanced_accuracy", "mean")]
    assert gap.high - gap.low < (alone["high"] - alone["low"]) / 2


def test_seeds_are_pooled():
    pairs = [(drawn(i, right=0.85), drawn(i + 50, right=0.75)) for i in range(3)]
    single = [paired_difference(*pair) for pair in pairs]
    pooled = paired_difference([p[0] for p in pairs], [p[1] for p in pairs])
    assert pooled.value == pytest.approx(np.mean([gap.value for gap in single]))
    assert pooled.high - pooled.low < min(gap.high - gap.low for gap in single)
    assert pooled.n == 1200


def test_other_images_and_metrics_are_refused():
    with pytest.raises(UserError, match="199.png"):
        paired_difference(drawn(1), drawn(1)[:-1])
    with pytest.raises(ValueError, match="location"):
        paired_difference(drawn(1), drawn(1), "speed")
    with pytest.raises(ValueError):
        paired_difference([drawn(1)], [])


# --- reasoning against tags -----------------------------------------------------------------------------


def test_agreement_of_reasoning_and_tags():
    other = build_answer("A line at the top . It is a hole .", "yes", "left", "scratch")
    silent = build_answer("Something is odd .", "yes", "left", "scratch")
    found = agreement(table([row("1"), row("2", raw=other), row("3", raw=silent), row("4"), row("5", raw=NO)]))
    assert value(found, "place_agrees") == 50 and value(found, "place_differs") == 25
    assert value(found, "type_agrees") == 50 and value(found, "type_differs") == 25
    assert value(found, "place_agrees", column="n") == 4
    assert value(found, "reasoning_agrees") == 50 and value(found, "reasoning_opposes") == 0


def test_reasoning_that_says_all_is_well_opposes_a_yes():
    denies = build_answer("The whole surface looks normal . There is no defect .", "yes", "left", "scratch")
    found = agreement(table([row("1"), row("2", raw=denies)]))
    assert value(found, "reasoning_opposes") == 50 and value(found, "reasoning_agrees") == 50


# --- places against masks -------------------------------------------------------------------------------


def test_grounding_by_hand(tmp_path):
    """A line along the top of the picture: each of the three top cells holds a part of it."""
    mask = np.zeros((90, 90), np.uint8)
    mask[10:14, 5:85] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    said = {place: build_answer("x", "yes", place, "scratch") for place in ("top left", "top", "center", "nowhere")}
    rows = [row(place, raw=raw, location="top") for place, raw in said.items()]
    rows += [row("missed", raw=NO, location="top"), row("no mask"), row("normal", "no", YES)]
    where = {"category": "c", "benchmark": "bench", "split": "test", "source": "test"}
    masks = {name: str(tmp_path / "mask.png") for name in (*said, "missed")}
    samples = [Sample(r["image"], r["label"], masks.get(r["image"]), None, None, **where) for r in rows]
    found = grounding(table(rows), samples)
    assert value(found, "grounding", "bench") == pytest.approx(40)  # top left and top, of five with a mask
    assert value(found, "grounding", "bench", "n") == 5
    assert np.isnan(value(grounding(table(rows), []), "grounding", "bench"))
    Image.fromarray(255 - mask).save(tmp_path / "mask.png")
    assert np.isnan(value(grounding(table(rows), samples), "grounding", "bench"))  # inverted, it says no place


def test_agreement_without_a_yes_is_undefined():
    assert np.isnan(value(agreement(table([row("1", raw=NO)])), "place_agrees"))


# --- baselines ------------------------------------------------------------------------------------------


def pictures(folder, count, split, benchmarks, spot, brighter=0.0):
    """Noise pictures, every second one with a dark spot of a given depth, and brighter where asked."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(len(split))
    samples = []
    for benchmark in benchmarks:
        for i in range(count):
            label = "yes" if i % 2 and split == "test" else "no"
            grey = rng.normal(0.6, 0.05, (96, 96))
            if label == "yes":
                y, x = rng.integers(10, 76, 2)
                grey[y : y + 10, x : x + 10] -= spot
                grey += brighter
            path = folder / f"{benchmark}-{split}-{i}.png"
            pixels = (np.clip(grey, 0, 1) * 255).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(path, compress_level=1)
            where = {"category": "noise", "benchmark": benchmark, "split": split, "source": "test"}
            samples.append(Sample(str(path), label, None, None, None, **where))
    return samples


@pytest.mark.parametrize("with_train", [True, False])
def test_baselines(tmp_path, with_train):
    test = pictures(tmp_path, 100, "test", ["a"], spot=0.4) + pictures(tmp_path, 100, "test", ["b"], 0.0, 0.2)
    train = pictures(tmp_path, 30, "train", ["a", "b"], 0.4) if with_train else []
    found = label_only_baselines(train, test)
    for constant in ("always_yes", "always_no"):
        assert value(found, f"{constant}/balanced_accuracy") == 50
    assert value(found, "classical_detector/balanced_accuracy", "a") > 85
    assert value(found, "mean_brightness/balanced_accuracy", "b") > 95
    assert 30 < value(found, "file_size/balanced_accuracy", "b") < 100
    assert "baseline/always_yes/balanced_accuracy/a" in {r["name"] for r in metric_rows(found, "baseline")}


def test_baselines_survive_tiny_and_one_sided_folders(tmp_path):
    few = pictures(tmp_path, 4, "test", ["a"], spot=0.4)
    found = label_only_baselines([], few)
    assert 0 <= value(found, "file_size/balanced_accuracy", "a") <= 100
    found = label_only_baselines([], [sample for sample in few if sample.label == "yes"])
    assert np.isnan(value(found, "classical_detector/balanced_accuracy", "a"))
