"""Compare two runs' metrics to the last digit: python tests/compare_metrics.py OLD/metrics.json NEW/metrics.json

Rows of the batch, times and memory differ between any two runs and are left out. Exit status 1 if rows differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TIMED = {"s", "min", "MiB", "images/s"}  # units of rows that differ from run to run


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    """Rows by name, without the batch's own and those that are a time or a memory."""
    rows = [row for row in metrics["rows"] if row["notebook"] != "batch" and row["unit"] not in TIMED]
    return {f"{row['notebook']}/{row['name']}": row for row in rows}


def main() -> int:
    old, new = (untimed(json.loads(Path(path).read_text(encoding="utf-8"))) for path in sys.argv[1:3])
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    for name in different:
        print(name, *(rows[name]["value"] if name in rows else "missing" for rows in (old, new)))
    print(f"{len(old.keys() & new.keys())} rows in both, {len(different)} differ")
    return bool(different)


if __name__ == "__main__":
    raise SystemExit(main())
