"""Several models in one table: protocols kept apart, pairs tested, spread over seeds, what the protocol explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_scoring import NO, YES, drawn, row, table

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import MARK, compare, paired_difference, pairwise_tests, protocol_share, score


def asked(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    return frame.assign(protocol=protocol)


def test_models_asked_alike_stand_in_one_table() -> None:
    shown = compare({"a": drawn(1), "b": drawn(2)})
    assert list(shown.columns) == ["protocol", "a", "b", "mean"]
    expected = score(drawn(2)).set_index(["metric", "benchmark"]).loc[("balanced_accuracy", "mean"), "value"]
    assert shown.loc["b", "mean"].startswith(f"{expected:.1f} [")
    assert not shown.map(lambda cell: MARK in cell).any().any()


def test_other_protocols_are_refused_or_marked() -> None:
    tables = {"base": asked(drawn(1), "released"), "tuned": asked(drawn(2), "fair")}
    with pytest.raises(UserError, match="base: released; tuned: fair"):
        compare(tables)
    marks = compare(tables, mixed=True).drop(columns="protocol").map(lambda cell: MARK in cell)
    assert not marks.loc["base"].any() and marks.loc["tuned"].all()
    half = pd.concat([asked(drawn(1)[:200], "fair"), asked(drawn(1)[200:], "released")])
    with pytest.raises(UserError, match="fair and released"):
        compare({"half": half})
    for compared in (paired_difference, lambda a, b: pairwise_tests({"a": a, "b": b})):
        with pytest.raises(UserError, match="protocol"):
            compared(*tables.values())
    assert len(pairwise_tests(tables, mixed=True)) == 2


def test_another_parser_is_another_protocol() -> None:
    parsers = {"a": "fair", "b": "released-tagged"}
    with pytest.raises(UserError, match="parser"):
        compare({"a": drawn(1), "b": drawn(2)}, parser=parsers)
    assert MARK in compare({"a": drawn(1), "b": drawn(2)}, mixed=True, parser=parsers).loc["b", "mean"]


def test_tables_of_other_images_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(UserError, match="short lacks 1 .*199.png"):
        compare({"whole": drawn(1), "short": drawn(2)[:-1]})
    with pytest.raises(ValueError, match="balanced_accuracy"):
        compare({"a": drawn(1)}, metric="speed")
    with pytest.raises(UserError):
        compare({})


def test_pairwise_tests_by_hand() -> None:
    """Ten images that only the one model gets right: McNemar's exact p is 2 / 2^10; Holm as worked by hand."""
    images = [(str(i), "yes" if i % 2 else "no") for i in range(10)]
    right = table([row(i, label, YES if label == "yes" else NO) for i, label in images])
    wrong = table([row(i, label, NO if label == "yes" else YES) for i, label in images])
    found = pairwise_tests({"wrong": wrong, "right": right, "again": right})
    assert list(found["value"]) == [100, 100, 0]  # right and again against wrong, again against right
    assert list(found["p"]) == pytest.approx([2 / 1024, 2 / 1024, 1])
    assert list(found["p_holm"]) == pytest.approx([6 / 1024, 6 / 1024, 1])  # smallest times three, the next not below
    assert len(pairwise_tests({"right": right})) == 0


def answered(right: dict[str, int], protocol: str) -> pd.DataFrame:
    """Forty images of each label, of which the first so many are answered rightly."""
    rows = []
    for label, count in right.items():
        for i in range(40):
            says_yes = (label == "yes") == (i < count)
            rows.append(row(f"{label}{i}", label, "Yes" if says_yes else "No") | {"protocol": protocol})
    return table(rows)


def test_share_that_the_protocol_explains_by_hand() -> None:
    base, fair = answered({"yes": 20, "no": 20}, "released"), answered({"yes": 26, "no": 24}, "fair")
    tuned = answered({"yes": 36, "no": 34}, "released")
    made = protocol_share(base, fair, tuned, ("fair", "fair", "fair"))
    assert made[:3] == pytest.approx((50, 62.5, 87.5))
    assert made.share == pytest.approx(100 / 3) and made.low < made.share < made.high
    assert made == protocol_share(base, fair, tuned, ("fair", "fair", "fair"))
    assert protocol_share(base, base, tuned, ("fair",) * 3)[3:] == (0, 0, 0)


def test_without_a_gain_no_share() -> None:
    base = answered({"yes": 20, "no": 20}, "released")
    assert np.isnan(protocol_share(base, base, base, ("fair",) * 3)[3:]).all()
    with pytest.raises(UserError):
        protocol_share(base, base[1:], base, ("fair",) * 3)
