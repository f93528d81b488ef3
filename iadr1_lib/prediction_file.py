"""The file of predictions, one JSON line per picture: how a row is made, and what is left to ask after a stop."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from iadr1_lib.benchmarks import Sample
from iadr1_lib.runs import UserError


def prediction_row(sample: Sample, raw: str, p_yes: float | None, origin: dict[str, Any]) -> dict[str, Any]:
    """A sample with its truth, what the model said, and how it was asked; keys as `scoring.PREDICTION_KEYS`.

    `origin` holds prompt, protocol, model and seed, which are the same in all rows of a file.
    """
    return _truth(sample) | {"raw": raw, "p_yes": p_yes} | origin


def _truth(sample: Sample) -> dict[str, Any]:
    return {k: getattr(sample, k) for k in ("image", "category", "benchmark", "label", "location", "type")}


def finished_images(
    samples: Sequence[Sample], out: Path, origin: dict[str, Any], references: Mapping[str, Path] | None = None
) -> set[str]:
    """Which of the samples' images are already answered in `out`, of which only these answers are kept.

    A half-written last line (a killed run) is cut off. Dropped are answers about pictures that are not asked about any
    more or whose truth has changed, and those of another model, prompt, protocol or seed, or beside another reference;
    the file as it was then stays as <name>.old.
    """
    if not out.exists():
        return set()
    lines = out.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    rows = [_row_of(line, out, number) for number, line in enumerate(whole, 1)]
    asked = {sample.image: json.loads(json.dumps(_truth(sample) | origin)) for sample in samples}
    beside = {image: str(path) for image, path in (references or {}).items()}
    kept = {
        line: row["image"]
        for line, row in zip(whole, rows, strict=True)
        if row["image"] in asked
        and asked[row["image"]].items() <= row.items()
        and row.get("reference") == beside.get(row["image"])
    }
    if len(kept) < len(whole):
        shutil.copyfile(out, out.with_name(out.name + ".old"))
    if len(kept) < len(lines):
        _write_atomically(out, b"".join(kept))
    return set(kept.values())


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
