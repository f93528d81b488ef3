"""The file of predictions, one JSON line per picture: how a row is made, and what is left to ask after a stop."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iadr1_lib.benchmarks import Sample
from iadr1_lib.runs import UserError


def prediction_row(sample: Sample, raw: str, p_yes: float | None, origin: dict[str, Any]) -> dict[str, Any]:
    """A sample with its truth, what the model said, and how it was asked; keys as `scoring.PREDICTION_KEYS`.

    `origin` holds prompt, protocol, model and seed, which are the same in all rows of a file.
    """
    truth = {k: getattr(sample, k) for k in ("image", "category", "benchmark", "label", "location", "type")}
    return truth | {"raw": raw, "p_yes": p_yes} | origin


def finished_images(out: Path, origin: dict[str, Any], references: Mapping[str, Path] | None = None) -> set[str]:
    """Images already answered in `out`; a half-written last line (a killed run) is cut off.

    Answers of another model, prompt, protocol or seed, or beside another reference, are set aside as <name>.old.
    """
    if not out.exists():
        return set()
    lines = out.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    rows = [_row_of(line, out, number) for number, line in enumerate(whole, 1)]
    beside = {image: str(path) for image, path in (references or {}).items()}
    if any(
        row.get("reference") != beside.get(row["image"]) or any(row.get(key) != origin[key] for key in origin)
        for row in rows
    ):
        os.replace(out, out.with_name(out.name + ".old"))
        return set()
    if len(whole) < len(lines):
        _write_atomically(out, b"".join(whole))
    return {row["image"] for row in rows}


def _row_of(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "image" not in row:
        raise UserError(f"{path}, line {number} is no prediction: delete the line and run again; the rest is kept")
    return row


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
