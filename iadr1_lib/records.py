"""One Expert-AD record, and the released file formats that records are written in."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iadr1_lib.answer import GRID, QUESTION, Label, build_answer, build_solution, cell_of_mask
from iadr1_lib.benchmarks import Sample, read_mask
from iadr1_lib.runs import UserError
from iadr1_lib.type_names import category_of


@dataclass(frozen=True)
class Record:
    """One Expert-AD record: a sample's picture, labels and the reasoning written for it ("" where there is none).

    `location` is a cell of a grid of `grid` rows and columns, `type` one of the eight categories or "other".
    """

    image: str
    label: Label
    location: str | None
    type: str | None
    category: str
    reasoning: str
    benchmark: str = ""
    grid: int = GRID

    @property
    def answer(self) -> str:
        return build_answer(self.reasoning, self.label, self.location, self.type)

    @property
    def solution(self) -> str:
        return build_solution(self.label, self.location, self.type)


def labelled(sample: Sample, grid: int = GRID) -> Record:
    """A sample's labels without reasoning: what SC-GRPO's solutions are made from.

    Raises:
        UserError: a defective picture has no mask, or one that marks nothing.
    """
    if sample.label == "no":
        return Record(sample.image, "no", None, None, sample.category, "", sample.benchmark, grid)
    if sample.mask is None or sample.location is None:
        raise UserError(f"{sample.image} is defective, but no mask says where: leave the image out")
    place = sample.location if grid == GRID else cell_of_mask(read_mask(sample.mask), grid)
    return Record(sample.image, "yes", place, category_of(sample), sample.category, "", sample.benchmark, grid)


def answer_only(record: Record) -> Record:
    """The same record without reasoning: the answer-only data of the paper's Table 2."""
    return replace(record, reasoning="")


def pa_sft_row(record: Record) -> dict[str, Any]:
    """A row of pa_sft.json, in the released format."""
    return {
        "images": record.image,
        "messages": [
            {"role": "user", "content": f"<image>\n{QUESTION}"},
            {"role": "assistant", "content": record.answer},
        ],
    }


def one_shot_row(record: Record, reference: str) -> dict[str, Any]:
    """A row of the released one-shot format: a normal picture of the same kind stands before the one in question."""
    row = pa_sft_row(record)
    row["images"] = [reference, record.image]
    row["messages"][0]["content"] = f"<image>\n<image>\n{QUESTION}"
    return row


def sc_grpo_row(record: Record, number: int) -> dict[str, Any]:
    """A row of sc_grpo.json, in the released format: picture, question and tags, no reasoning."""
    return {"id": number, "image": record.image, "problem": QUESTION, "solution": record.solution}


def read_rows(path: Path, made_by: str = "03_expert_ad") -> list[dict[str, Any]]:
    """Rows of pa_sft.json or sc_grpo.json; UserError if the file is missing or not a list of records."""
    if not Path(path).exists():
        raise UserError(f"{path} is missing: run notebook {made_by} first")
    try:
        rows = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}): build it again with notebook {made_by}"
        ) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no records: build it again with notebook {made_by}")
    return rows
