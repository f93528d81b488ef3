"""The file of predictions, one JSON line per picture: how a row is made, and what is left to ask after a stop."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iadr1_lib.benchmarks import Sample


def prediction_row(
    sample: Sample, raw: str, p_yes: float | None, *, prompt: str, protocol: str, model: str, seed: int
) -> dict[str, Any]:
    """A sample with its truth, what the model said, and how it was asked; keys as `scoring.PREDICTION_KEYS`."""
    truth = {k: getattr(sample, k) for k in ("image", "category", "benchmark", "label", "location", "type")}
    return truth | {
        "raw": raw,
        "p_yes": p_yes,
        "prompt": prompt,
        "protocol": protocol,
        "model": model,
        "seed": seed,
    }


def finished_images(
    out: Path, seed: int, prompt: str, model: str, references: Mapping[str, Path] | None = None
) -> set[str]:
    """Images already answered in `out`; a half-written last line (a killed run) is cut off.

    Answers of another model, prompt or seed, or beside another reference, are set aside as <name>.old.
    """
    if not out.exists():
        return set()
    lines = out.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    rows = [json.loads(line) for line in whole]
    beside = {image: str(path) for image, path in (references or {}).items()}
    if any(
        (r["seed"], r["prompt"], r["model"], r.get("reference")) != (seed, prompt, model, beside.get(r["image"]))
        for r in rows
    ):
        os.replace(out, out.with_name(out.name + ".old"))
        return set()
    if len(whole) < len(lines):
        _write_atomically(out, b"".join(whole))
    return {r["image"] for r in rows}


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
