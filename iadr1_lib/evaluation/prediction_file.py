"""The file of predictions, one JSON line per picture: how a row is made, and what is left to ask after a stop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_json_lines, write_text
from iadr1_lib.records import Sample


def prediction_row(
    sample: Sample, raw: str, p_yes: float | None, origin: dict[str, Any], cut: int | bool = False
) -> dict[str, Any]:
    """A sample with its truth, what the model said, and how it was asked; keys as `scoring.PREDICTION_KEYS`.

    `origin` holds prompt, protocol, model and seed (and the grid, where it is not the usual one), which are the same in
    all rows of a file. An answer that the limit of length ended has that limit as `cut` (true, where only the model's
    provider knows it).
    """
    return _truth(sample) | {"raw": raw, "p_yes": p_yes} | origin | ({"cut": cut} if cut else {})


def _truth(sample: Sample) -> dict[str, Any]:
    return {k: getattr(sample, k) for k in ("image", "category", "benchmark", "label", "location", "type")}


def finished_images(
    samples: Sequence[Sample],
    out: Path,
    origin: dict[str, Any],
    references: Mapping[str, Path] | None = None,
    longest: int = 0,
) -> set[str]:
    """Which of the samples' images are already answered in `out`, of which only these answers are kept.

    A half-written last line (a killed run) is cut off. Dropped are answers about pictures that are not asked about any
    more or whose truth has changed, those of another model, prompt, protocol or seed, or beside another reference, and
    those that were cut at fewer tokens than `longest`; the file as it was then stays as <name>.old.
    """
    if not out.exists():
        return set()
    rows = [_checked(row, out, number) for number, row in read_json_lines(out, unfinished=True)]
    asked = {sample.image: json.loads(json.dumps(_truth(sample) | origin)) for sample in samples}
    beside = {image: str(path) for image, path in (references or {}).items()}
    kept = {
        row["image"]: row
        for row in rows
        if row["image"] in asked
        and asked[row["image"]].items() <= row.items()
        and ("grid" in row) == ("grid" in origin)
        and row.get("reference") == beside.get(row["image"])
        and not 0 < row.get("cut", 0) < longest
    }
    if len(kept) < len(rows):
        shutil.copyfile(out, out.with_name(out.name + ".old"))
    content = "".join(json.dumps(row) + "\n" for row in kept.values())
    if content.encode() != out.read_bytes():
        write_text(out, content)
    return set(kept)


def _checked(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str):
        raise UserError(f"{path}, line {number} is no prediction: delete the line and run again; the rest is kept")
    return row
