"""The metrics record: metrics.json of a run, one row per number, with one block of provenance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from iadr1_lib.errors import UserError
from iadr1_lib.files import read_object, write_json
from iadr1_lib.runs.environment import provenance
from iadr1_lib.runs.run import Run

METRIC_KEYS = ("notebook", "name", "value", "low", "high", "n", "unit")


def record_metrics(
    run: Run, notebook: str, rows: Iterable[Mapping[str, Any]], parameters: Mapping[str, Any] | None = None
) -> Path:
    """Put a notebook's rows into the run's metrics.json in place of its earlier ones; renew the provenance.

    A row has name, value and, where they apply, low, high, n, unit. A value that is not finite becomes null
    with a reason. `parameters` are the notebook's own; provenance.notebooks keeps them with commit and time.
    """
    path = run.path("metrics.json")
    old = read_metrics_file(path, {"rows": [], "provenance": {}}, of_run=True)
    new = [_metric_row(notebook, row) for row in rows]
    if repeated := sorted(name for name, count in Counter(row["name"] for row in new).items() if count > 1):
        raise ValueError(f"metrics of {notebook} named twice: {', '.join(repeated)}")
    kept = [row for row in old["rows"] if row["notebook"] != notebook]
    block = provenance(run)
    block["notebooks"] = old["provenance"].get("notebooks", {}) | {
        notebook: {"parameters": dict(parameters or {}), "commit": block["commit"], "time": block["time"]}
    }
    ordered = sorted(kept + new, key=lambda row: (row["notebook"], row["name"]))
    return write_json(path, {"rows": ordered, "provenance": block})


def _metric_row(notebook: str, row: Mapping[str, Any]) -> dict[str, Any]:
    extra = set(row) - set(METRIC_KEYS) - {"reason"}
    if extra or "name" not in row or "value" not in row:
        raise ValueError(f"a metrics row of {notebook} needs name and value and knows {METRIC_KEYS}, got {sorted(row)}")
    full = dict.fromkeys(METRIC_KEYS) | {key: _plain(value) for key, value in row.items()} | {"notebook": notebook}
    if full["value"] is None:
        full["reason"] = row.get("reason") or "not defined: nothing to average over"
    return full


def _plain(value: Any) -> Any:
    """Turn a numpy scalar into Python's and a number that is not finite into None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics_file(path: Path, default: Any = None, of_run: bool = False) -> Any:
    """A metrics file: `rows`, each with a name and a value (of a run also the notebook), and `provenance`.

    Raises UserError for another shape.
    """
    metrics = read_object(path, default, rows=list, provenance=dict)
    needed = {"name", "value", *(["notebook"] if of_run else [])}
    for row in metrics["rows"] if metrics else ():
        if not isinstance(row, dict) or not needed <= set(row):
            raise UserError(f"{path} has a row without {', '.join(sorted(needed))}: delete it and make it again")
    return metrics


def notebook_records(path: Path, keys: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """The records in a manifest.json, by notebook. Raises UserError where one has no status, or none of `keys`."""
    records: dict[str, dict[str, Any]] = read_object(path, {"notebooks": {}}, notebooks=dict)["notebooks"]
    for name, record in records.items():
        if not isinstance(record, dict) or not {"status", *keys} <= set(record):
            raise UserError(f"{path} tells too little of notebook {name}: delete it and run the course again")
    return records
