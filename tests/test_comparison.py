"""Models side by side: paired differences, all pairs tested, protocols kept apart, what the protocol explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_scoring import NO, YES, drawn, row, table, value

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import PAIRED, compare, paired_difference, pairwise_tests, protocol_share, score
from iadr1_lib.evaluation.comparison import MARK


@pytest.mark.parametrize("metric", PAIRED)
def test_paired_difference_is_the_difference_of_scores(metric: str) -> None:
    better, worse = drawn(1, right=0.9), drawn(2, right=0.7)
    gap = paired_difference(better, worse, metric)
    assert gap.value == pytest.approx(value(score(better), metric) - value(score(worse), metric))
    assert gap.low <= gap.value <= gap.high


def test_neither_order_nor_itself_makes_a_difference() -> None:
    gap = paired_difference(drawn(1, right=0.9), drawn(2, right=0.7).sample(frac=1, random_state=0))
    assert gap.low > 0 and gap.p_mcnemar < 0.001 and gap.n == 400
    assert paired_difference(drawn(1), drawn(1)) == (0, 0, 0, 400, 1)


def test_a_metric_without_a_known_truth_has_no_difference() -> None:
    nowhere = [drawn(number).assign(location=None) for number in (1, 2)]  # as of a set without masks
    gap = paired_difference(*nowhere, "location")
    assert np.isnan(gap.value) and gap.n == 0 and gap.p_mcnemar == 1


def test_pairing_narrows_the_interval() -> None:
    base = drawn(1, right=0.75)
    changed = base.assign(raw=[NO] * 8 + list(base["raw"][8:]))
    gap = paired_difference(changed, base)
    low, high = (value(score(base), "balanced_accuracy", column=end) for end in ("low", "high"))
    assert gap.high - gap.low < (high - low) / 2


def test_seeds_are_pooled() -> None:
    pairs = [(drawn(i, right=0.85), drawn(i + 50, right=0.75)) for i in range(3)]
    single = [paired_difference(*pair) for pair in pairs]
    pooled = paired_difference([p[0] for p in pairs], [p[1] for p in pairs])
    assert pooled.value == pytest.approx(np.mean([gap.value for gap in single]))
    assert pooled.high - pooled.low < min(gap.high - gap.low for gap in single)
    assert pooled.n == 1200


def test_other_images_labels_and_metrics_are_refused() -> None:
    relabelled = drawn(1)
    relabelled.loc[relabelled["image"] == "199.png", "label"] = "no"
    for other in (drawn(1)[:-1], relabelled):
        with pytest.raises(UserError, match="lacks .*199.png"):
            paired_difference(drawn(1), other)
        with pytest.raises(UserError, match="lacks .*199.png"):
            compare({"whole": drawn(1), "other": other})
    with pytest.raises(ValueError, match="location"):
        paired_difference(drawn(1), drawn(1), "speed")
    with pytest.raises(ValueError):
        paired_difference([drawn(1)], [])
    with pytest.raises(UserError):
        compare({})


def test_models_asked_alike_stand_in_one_table() -> None:
    shown = compare({"a": drawn(1), "b": drawn(2)})
    assert list(shown.columns) == ["protocol", "a", "b", "mean"]
    assert shown.loc["b", "mean"].startswith(f"{value(score(drawn(2)), 'balanced_accuracy'):.1f} [")
    assert not shown.map(lambda cell: MARK in cell).any().any()


def test_other_protocols_and_parsers_are_refused_or_marked() -> None:
    tables = {"base": drawn(1).assign(protocol="released"), "tuned": drawn(2).assign(protocol="fair")}
    with pytest.raises(UserError, match="base: released; tuned: fair"):
        compare(tables)
    marks = compare(tables, mixed=True).drop(columns="protocol").map(lambda cell: MARK in cell)
    assert not marks.loc["base"].any() and marks.loc["tuned"].all()
    half = pd.concat([tables["base"][:200], tables["tuned"][200:]])
    with pytest.raises(UserError, match="fair and released"):
        compare({"half": half})
    with pytest.raises(UserError, match="protocol"):
        paired_difference(*tables.values())
    with pytest.raises(UserError, match="protocol"):
        pairwise_tests(tables)
    parsers = {"a": "fair", "b": "released-tagged"}
    with pytest.raises(UserError, match="parser"):
        compare({"a": drawn(1), "b": drawn(2)}, parser=parsers)
    assert MARK in compare({"a": drawn(1), "b": drawn(2)}, mixed=True, parser=parsers).loc["b", "mean"]


def test_pairwise_tests_by_hand() -> None:
    """Ten images that only the one model gets right: McNemar's exact p is 2 / 2^10; Holm as worked by hand."""
    images = [(str(i), "yes" if i % 2 else "no") for i in range(10)]
    right = table([row(i, label, YES if label == "yes" else NO) for i, label in images])
    wrong = table([row(i, label, NO if label == "yes" else YES) for i, label in images])
    result = pairwise_tests({"wrong": wrong, "right": right, "again": right})
    assert list(result["value"]) == [100, 100, 0]  # right and again against wrong, again against right
    assert list(result["p"]) == pytest.approx([2 / 1024, 2 / 1024, 1])
    assert list(result["p_holm"]) == pytest.approx([6 / 1024, 6 / 1024, 1])  # smallest times three, the next not below
    assert len(pairwise_tests({"right": right})) == 0


def answered(yes: int, no: int, protocol: str = "released") -> pd.DataFrame:
    """Forty images of each label, of which the first so many are answered correctly."""
    rows = []
    for label, count in (("yes", yes), ("no", no)):
        for i in range(40):
            says_yes = (label == "yes") == (i < count)
            rows.append(row(f"{label}{i}", label, "Yes" if says_yes else "No", protocol=protocol))
    return table(rows)


def test_share_that_the_protocol_explains_by_hand() -> None:
    base, fair, tuned, parsers = answered(20, 20), answered(26, 24, "fair"), answered(36, 34), ("fair",) * 3
    result = protocol_share(base, fair, tuned, parsers)
    assert result[:3] == pytest.approx((50, 62.5, 87.5))
    assert result.share == pytest.approx(100 / 3) and result.low < result.share < result.high
    assert result == protocol_share(base, fair, tuned, parsers)
    assert protocol_share(base, base, tuned, parsers)[3:] == (0, 0, 0)
    assert np.isnan(protocol_share(base, base, base, parsers)[3:]).all()  # no gain, no share
    with pytest.raises(UserError):
        protocol_share(base, base[1:], base, parsers)
