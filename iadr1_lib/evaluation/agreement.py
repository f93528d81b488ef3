"""An answer compared with itself and with masks: its reasoning against its tags, the named cell against the defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib.answer import cell_box, cell_of_words, parse_answer, place_in_reasoning, type_in_reasoning
from iadr1_lib.data import read_mask, says_where
from iadr1_lib.evaluation.intervals import mean_table
from iadr1_lib.evaluation.metrics import answers_of, grid_of, judge, type_name
from iadr1_lib.expert_ad import MOST_CHARACTERS, RULES
from iadr1_lib.records import Record, Sample

_COLUMNS = ("place_agrees", "place_differs", "type_agrees", "type_differs", "reasoning_agrees", "reasoning_opposes")


def agreement(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """How often, among answers yes, the reasoning and the tags say the same; table as from `score`.

    `place_agrees`: the place that the reasoning names last is the tag's cell; `place_differs`: it is another one; the
    rest names none. The same for `type`. `reasoning_opposes`: the reasoning says that all is well (rule "no
    contradiction" of `verification`); `reasoning_agrees`: it names the tags' place and type and does not oppose.
    Nothing is compared with the truth here.
    """
    grid = grid_of(predictions)
    rows = [
        _agrees(raw, grid) if answer == "yes" else [np.nan] * len(_COLUMNS)
        for raw, answer in zip(predictions["raw"], answers_of(predictions, parser), strict=True)
    ]
    table = pd.DataFrame(rows, columns=_COLUMNS).assign(benchmark=predictions["benchmark"].to_numpy())
    return mean_table(table, _COLUMNS, "answers yes", seed)


def _agrees(raw: str, grid: int) -> list[bool]:
    """_COLUMNS of one answer; whether an endless reasoning contradicts is not looked at."""
    answer = parse_answer(raw)
    reasoning, cell = answer.reasoning or "", cell_of_words(answer.location or "", grid)
    place, kind = place_in_reasoning(reasoning, grid), type_in_reasoning(reasoning)
    same_place = place is not None and place == cell
    same_type = kind is not None and kind == type_name(answer.type or "")
    record = Record("", "yes", cell, answer.type, "", reasoning, grid=grid)
    short = 0 < len(reasoning) <= MOST_CHARACTERS
    opposes = short and RULES["no contradiction"].check(record, None) is not None
    differ = (place is not None and not same_place, kind is not None and not same_type)
    return [same_place, differ[0], same_type, differ[1], same_place and same_type and not opposes, opposes]


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
    judged["grounding"] = [
        _grounded(row, masks.get((row["benchmark"], row["image"])), grid) if row["label"] == "yes" else np.nan
        for row in judged.to_dict("records")
    ]
    return mean_table(judged, ["grounding"], "defective images with a mask", seed)


def _grounded(row: Mapping[Any, Any], mask: str | None, grid: int) -> float:
    if mask is None or not says_where(pixels := read_mask(mask, row["image"])):
        return np.nan
    cell = cell_of_words(parse_answer(row["raw"]).location or "", grid)
    if row["answer"] != "yes" or cell is None:
        return 0.0
    left, top, right, bottom = cell_box(cell, pixels.shape[1], pixels.shape[0], grid)
    return float(pixels[top:bottom, left:right].any())
