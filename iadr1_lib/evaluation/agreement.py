"""The reasoning compared with the tags and with the truth, the named cell with the mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from iadr1_lib.answer import build_answer, cell_box, cell_of_words, parse_answer, place_in_reasoning, type_in_reasoning
from iadr1_lib.data import read_mask, says_where
from iadr1_lib.evaluation.intervals import mean_table
from iadr1_lib.evaluation.metrics import answers_of, grid_of, judge, type_name
from iadr1_lib.expert_ad import MOST_CHARACTERS, RULES, read_short
from iadr1_lib.records import Record, Sample

_COLUMNS = ("place_agrees", "place_differs", "type_agrees", "type_differs", "reasoning_agrees", "reasoning_opposes")
_NAMED = ("place_named", "type_named", "whole_sentences")


def agreement(predictions: pd.DataFrame, parser: str = "fair", seed: int = 0) -> pd.DataFrame:
    """Reasoning and tags, reasoning and truth; table as from `score`.

    Among answers yes, whatever is true: `place_agrees`: the place that the reasoning names last is the tag's cell;
    `place_differs`: it is another one; the rest names none. The same for `type`. `reasoning_opposes`: the reasoning
    says that all is well (rule "no contradiction" of `verification`); `reasoning_agrees`: it names the tags' place and
    type and does not oppose.

    Of all defective images, `place_named` and `type_named` are those answered yes whose reasoning names the true place
    and type last: `location` and `type` of the reasoning. Of all images, `whole_sentences` are those whose reasoning is
    one that the rule teacher writes in its short style.
    """
    grid = grid_of(predictions)
    rows = [
        _agrees(raw, grid) if answer == "yes" else [np.nan] * len(_COLUMNS)
        for raw, answer in zip(predictions["raw"], answers_of(predictions, parser), strict=True)
    ]
    benchmark = predictions["benchmark"].to_numpy()
    agrees = mean_table(pd.DataFrame(rows, columns=_COLUMNS).assign(benchmark=benchmark), _COLUMNS, "answers yes", seed)
    named = judge(as_reasoned(predictions, parser), parser)[["benchmark", "location_right", "type_right"]]
    named.columns = pd.Index(["benchmark", *_NAMED[:2]])
    named["whole_sentences"] = [
        read_short(parse_answer(raw).reasoning or "", grid) is not None for raw in predictions["raw"]
    ]
    return pd.concat([agrees, mean_table(named, _NAMED, "such images", seed)], ignore_index=True)


def as_reasoned(predictions: pd.DataFrame, parser: str = "fair") -> pd.DataFrame:
    """The same answers with other tags in an answer yes: the place and the type that its reasoning names last.

    With it `score` and `grounding` measure the reasoning as they measure tags.
    """
    grid, raws = grid_of(predictions), []
    for raw, answer in zip(predictions["raw"], answers_of(predictions, parser), strict=True):
        text = parse_answer(raw).reasoning or ""
        place, kind = place_in_reasoning(text, grid), type_in_reasoning(text)
        raws.append(build_answer(text, "yes", place or "nowhere", kind or "unnamed") if answer == "yes" else raw)
    return predictions.assign(raw=raws)


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
