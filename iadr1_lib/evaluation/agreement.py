"""An answer compared with itself and with masks: its reasoning against its tags, the named cell against the defect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from iadr1_lib.answer import Answer, cell_box, cell_of_words, parse_answer, place_in_reasoning, type_in_reasoning
from iadr1_lib.data import read_mask, says_where
from iadr1_lib.evaluation.intervals import Estimate, bootstrap_mean, estimate_rows
from iadr1_lib.evaluation.metrics import answers_of, grid_of, judge, type_name
from iadr1_lib.expert_ad import MOST_CHARACTERS, RULES
from iadr1_lib.records import Record, Sample


def agreement(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """How often, among answers yes, the reasoning and the tags say the same; table as from `score`.

    `place_agrees`: the place that the reasoning names last is the tag's cell; `place_differs`: it is another one; the
    rest names none. The same for `type`. `reasoning_opposes`: the reasoning says that all is well (rule "no
    contradiction" of `verification`); `reasoning_agrees`: it names the tags' place and type and does not oppose.
    Nothing is compared with the truth here.
    """
    answers, grid = [parse_answer(raw) for raw in predictions["raw"]], grid_of(predictions)
    places = [place_in_reasoning(a.reasoning or "", grid) for a in answers]
    types = [type_in_reasoning(a.reasoning or "") for a in answers]
    table = pd.DataFrame(
        {
            "benchmark": predictions["benchmark"].to_numpy(),
            "yes": [answer == "yes" for answer in answers_of(predictions, parser)],
            "place": [place is not None for place in places],
            "same_place": [
                place is not None and place == cell_of_words(a.location or "", grid)
                for place, a in zip(places, answers, strict=True)
            ],
            "type": [kind is not None for kind in types],
            "same_type": [
                kind is not None and kind == type_name(a.type or "") for kind, a in zip(types, answers, strict=True)
            ],
        }
    )
    table["opposes"] = [yes and _opposes(answer, grid) for yes, answer in zip(table["yes"], answers, strict=True)]
    rng = np.random.default_rng(seed)

    def shares(everything: pd.DataFrame) -> dict[str, Estimate]:
        group = everything[everything["yes"]]
        columns = {
            "place_agrees": group["same_place"],
            "place_differs": group["place"] & ~group["same_place"],
            "type_agrees": group["same_type"],
            "type_differs": group["type"] & ~group["same_type"],
            "reasoning_agrees": group["same_place"] & group["same_type"] & ~group["opposes"],
            "reasoning_opposes": group["opposes"],
        }
        return {name: bootstrap_mean(column.to_numpy(float), "answers yes", rng) for name, column in columns.items()}

    return pd.DataFrame(estimate_rows(table, shares))


def _opposes(answer: Answer, grid: int) -> bool:
    """Whether the reasoning before a yes says that nothing is wrong; an endless text is not read."""
    reasoning = answer.reasoning or ""
    if not reasoning or len(reasoning) > MOST_CHARACTERS:
        return False
    record = Record("", "yes", cell_of_words(answer.location or "", grid), answer.type, "", reasoning, grid=grid)
    return RULES["no contradiction"].check(record, None) is not None


def grounding(
    predictions: pd.DataFrame, samples: Sequence[Sample], parser: str = "fair", seed: int = 0
) -> pd.DataFrame:
    """How often the named cell holds a part of the defect, of all defective images whose mask says where; as `score`.

    Milder than `location`, which wants the one true cell, where a defect touches several: a line over three cells
    is grounded in each. An answer that is not yes, or names no cell, grounds nothing. Masks are read from `samples`.

    Raises:
        UserError: a mask cannot be read.
    """
    masks = {(sample.benchmark, sample.image): sample.mask for sample in samples}
    judged, grid = judge(predictions, parser), grid_of(predictions)
    judged["grounded"] = [
        _grounded(row["raw"], row["answer"], masks.get((row["benchmark"], row["image"])), grid)
        if row["label"] == "yes"
        else np.nan
        for row in judged.to_dict("records")
    ]
    rng = np.random.default_rng(seed)

    def share(group: pd.DataFrame) -> dict[str, Estimate]:
        return {"grounding": bootstrap_mean(group["grounded"].to_numpy(), "defective images with a mask", rng)}

    return pd.DataFrame(estimate_rows(judged, share))


def _grounded(raw: str, answer: str | None, mask: str | None, grid: int) -> float:
    if mask is None or not says_where(pixels := read_mask(mask)):
        return np.nan
    cell = cell_of_words(parse_answer(raw).location or "", grid)
    if answer != "yes" or cell is None:
        return 0.0
    left, top, right, bottom = cell_box(cell, pixels.shape[1], pixels.shape[0], grid)
    return float(pixels[top:bottom, left:right].any())
