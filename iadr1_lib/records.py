"""Samples and Expert-AD records, and the training rows that records become.

`pa_sft_row` and `sc_grpo_row` write a record in the released formats; `read_rows` and `checked_row` read it back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from iadr1_lib.answer import (
    GRID,
    QUESTION,
    Label,
    build_answer,
    build_solution,
    cell_of_words,
    last_pairs,
    matches_format,
    parse_answer,
)
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_json_lines, read_text

Stage = Literal["pa_sft", "sc_grpo"]
KEYS: dict[Stage, tuple[str, ...]] = {"pa_sft": ("images", "messages"), "sc_grpo": ("image", "problem", "solution")}
IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Sample:
    """One picture and all that is known to be true of it.

    Attributes:
        image: path of the picture, below the root as it was given.
        label: "yes" if the picture shows a defect, "no" if it is normal.
        mask: path of the mask (above 0 = defect, same size as the picture), or of a folder of several masks of this
            one picture, as MVTec LOCO has them (:func:`read_mask` unites them), or of a list of boxes, of which
            `read_mask` makes a mask; None if there is none.
        type: defect type; one of ``answer.DEFECT_TYPES`` where the data set uses that name, else its own name.
        location: cell of the 3x3 grid, from the mask; None without a mask that says where.
        category: kind of part or surface, such as "screw".
        benchmark: data set, such as "MVTec-AD".
        split: "train" or "test", as the data set files it.
        source: the reader that made this row.
    """

    image: str
    label: Literal["yes", "no"]
    mask: str | None
    type: str | None
    location: str | None
    category: str
    benchmark: str
    split: Literal["train", "test"]
    source: str


@dataclass(frozen=True)
class Record:
    """One Expert-AD record: a sample's picture, labels and the reasoning written for it ("" where there is none).

    `location` is a cell of a grid of `grid` rows and columns, `type` one of the eight categories or "other"; `depth` is
    the value that is white in the picture's data set, where it is grey of more than 8 bits: all who open the picture
    must scale it alike, also those who see a part of the set.
    """

    image: str
    label: Label
    location: str | None
    type: str | None
    category: str
    reasoning: str
    benchmark: str = ""
    grid: int = GRID
    depth: float | None = None

    @property
    def answer(self) -> str:
        return build_answer(self.reasoning, self.label, self.location, self.type)

    @property
    def solution(self) -> str:
        return build_solution(self.label, self.location, self.type)


def answer_only(record: Record) -> Record:
    """The same record without reasoning: the answer-only data of the paper's Table 2."""
    return replace(record, reasoning="")


# ------------------------------------------------------------------------------------------------ training rows


def pa_sft_row(record: Record) -> dict[str, Any]:
    """A row of pa_sft.json, in the released format."""
    question = {"role": "user", "content": f"{IMAGE_MARK}\n{QUESTION}"}
    messages = [question, {"role": "assistant", "content": record.answer}]
    return {"images": _absolute(record.image), "messages": messages} | _extras(record)


def one_shot_row(record: Record, reference: str) -> dict[str, Any]:
    """A row of the released one-shot format: a normal picture of the same kind stands before the one in question."""
    row = pa_sft_row(record)
    row["images"] = [_absolute(reference), row["images"]]
    row["messages"][0]["content"] = f"{IMAGE_MARK}\n{IMAGE_MARK}\n{QUESTION}"
    return row


def sc_grpo_row(record: Record, number: int) -> dict[str, Any]:
    """A row of sc_grpo.json, in the released format: picture, question and tags, no reasoning."""
    row = {"id": number, "image": _absolute(record.image), "problem": QUESTION, "solution": record.solution}
    return row | _extras(record)


def _absolute(path: str) -> str:
    """The path from the root: records are read from any working directory."""
    return str(Path(path).absolute())


def _extras(record: Record) -> dict[str, Any]:
    """Keys that the released format lacks: the grid of places where it is not the paper's, the grey depth if known."""
    grid = {} if record.grid == GRID else {"grid": record.grid}
    return grid | ({} if record.depth is None else {"depth": record.depth})


# ------------------------------------------------------------------------------------------------ reading


def read_rows(path: Path, made_by: str = "03_expert_ad") -> list[dict[str, Any]]:
    """Rows of pa_sft.json or sc_grpo.json (a JSON list, or JSON Lines), unchecked.

    Raises:
        UserError: the file is missing or holds no records.
    """
    if not Path(path).exists():
        raise UserError(f"{path} is missing: run notebook {made_by} first")
    again = f"build it again with notebook {made_by}"
    try:
        value = json.loads(read_text(path))
        rows = value if isinstance(value, list) else [value]
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):  # a whole value, and more: JSON Lines
            raise UserError(f"{path} is not valid JSON (line {error.lineno}): {again}") from error
        rows = [row for _, row in read_json_lines(path)]
    except RecursionError as error:
        raise UserError(f"{path} is not valid JSON: {again}") from error
    if not any(row and isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no records: {again}")
    return rows


def checked_row(row: Any, stage: Stage) -> dict[str, Any]:
    """A row in one form: pictures as a list, turns without the picture's mark, a solution of nothing but its tags.

    PA-SFT's messages are a system message or none, then turns of user and assistant; the last turn is learnt. Marks of
    the pictures stand in the first question, one for each, or are left out.

    Raises:
        ValueError: the row says too little, or something else; in words without an end.
    """
    if not isinstance(row, dict) or not row:
        raise ValueError("it is no record")
    if missing := [key for key in KEYS[stage] if key not in row]:
        raise ValueError(f"it has no {' and no '.join(missing)} (only {', '.join(map(str, row))})")
    key = KEYS[stage][0]
    images = row[key] if isinstance(row[key], list) else [row[key]]
    if not images or not all(isinstance(image, str) and image.strip() for image in images):
        raise ValueError(f"its key {key} names no picture")
    if type(grid_of(row)) is not int or grid_of(row) not in range(1, 6):
        raise ValueError(f"its grid is {row['grid']!r}, and no number from 1 to 5")
    if "depth" in row and not (isinstance(row["depth"], int | float) and row["depth"] > 0):
        raise ValueError(f"its depth is {row['depth']!r}, and no number above 0")
    if stage == "pa_sft":
        turns = _without_marks(_turns(row["messages"]), len(images))
        _tags(turns[-1]["content"])
        return row | {key: images, "messages": turns}
    pair = [_turn("user", row["problem"], "problem"), _turn("assistant", row["solution"], "solution")]
    question, solution = _without_marks(pair, len(images))
    return row | {key: images, "problem": question["content"], "solution": _tags(solution["content"])}


def stage_of(row: Any) -> Stage | None:
    """Which stage's record this is by its keys, or None."""
    return next((stage for stage, keys in KEYS.items() if isinstance(row, dict) and set(keys) <= set(row)), None)


def grid_of(row: dict[str, Any]) -> Any:
    """Rows and columns of the grid whose cells a row's places are."""
    return row.get("grid", GRID)


def _turns(messages: Any) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise ValueError("its messages are no list of turns, each with role and content")
    roles = [str(turn.get("role")) for turn in messages]
    if not re.fullmatch("(system )?(user assistant )+", "".join(f"{role} " for role in roles)):
        raise ValueError(
            f"its turns ({', '.join(roles) or 'none'}) are not those of user and assistant, one after the other, with "
            "an answer at the end"
        )
    return [_turn(role, turn.get("content"), f"turn of the {role}") for role, turn in zip(roles, messages, strict=True)]


def _turn(role: str, content: Any, name: str) -> dict[str, str]:
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"its {name} is {'empty' if isinstance(content, str) else 'no text'}")
    return {"role": role, "content": content}


def _without_marks(turns: list[dict[str, str]], images: int) -> list[dict[str, str]]:
    """The turns without the marks of the pictures, which the trainers set before the first question again."""
    first = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
    marks = [turn["content"].count(IMAGE_MARK) for turn in turns]
    if sum(marks) not in (0, images) or sum(marks) != marks[first]:
        counts = f"{sum(marks)} marks {IMAGE_MARK} for {images} picture(s)"
        raise ValueError(f"it has {counts}, {marks[first]} in its question")
    question = turns[first]["content"].replace(IMAGE_MARK, "").strip()
    return [*turns[:first], turns[first] | {"content": question}, *turns[first + 1 :]]


def _tags(text: str) -> str:
    """Label, place and type of a text, as `build_solution` writes them: so every mode of the rewards reads the same.

    What is trained on must be whole: no lenient reading here.
    """
    tags = {name: " ".join(content.split()) for name, content in last_pairs(text).items()}
    label: Any = tags.get("answer", text).strip().lower()[:60]  # a long text is quoted in part
    return build_solution(label, tags.get("location"), tags.get("type"))


def row_notes(rows: Sequence[dict[str, Any]], stage: Stage) -> list[str]:
    """What one may not expect of checked rows, though they can be trained on.

    Places of another grid, answers of another form, repetition, contradiction, one label.
    """
    keys = KEYS[stage]
    labels: dict[str, set[str | None]] = {}
    elsewhere, formless = [], []
    for number, row in enumerate(rows, start=1):
        text = row["solution"] if stage == "sc_grpo" else row["messages"][-1]["content"]
        answer = parse_answer(text)
        labels.setdefault(json.dumps(row[keys[0]]), set()).add(answer.answer)
        if answer.location and cell_of_words(answer.location, grid_of(row)) is None:
            elsewhere.append(number)
        if stage == "pa_sft" and matches_format(text) is None:
            formless.append(number)
    total, notes = len(rows), []
    if elsewhere:
        notes.append(
            f"{len(elsewhere)} records name a place that is no cell of their grid, such as record {elsewhere[0]}"
        )
    if formless:
        notes.append(f"{len(formless)} answers have neither of the two patterns, such as that of record {formless[0]}")
    if repeated := total - len({json.dumps([row[key] for key in keys]) for row in rows}):
        notes.append(f"{repeated} of {total} records repeat another one, and count as often as they stand there")
    if both := sum(len(labels_of_one) > 1 for labels_of_one in labels.values()):
        notes.append(f"{both} picture(s) are both normal and defective in the records")
    if len(all_labels := set().union(*labels.values())) == 1:
        notes.append(f"all {total} records say {all_labels.pop()}: nothing else can be learnt from them")
    return notes
