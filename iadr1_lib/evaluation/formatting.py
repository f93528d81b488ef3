"""One way to print a value with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

SEED_RANGE = "lowest and highest seed"  # the `interval` of a row over several seeds


def interval_text(row: Mapping[Any, Any] | None, signed: bool = False, decimals: int = 1) -> str:
    """A value with its interval as text, such as "57.2 [51.0, 63.1]"; a dash where there is no value.

    Square brackets hold a 95 % interval. Round ones, "57.2 (51.0 to 63.1)", hold the lowest and the highest seed, for
    a row whose `interval` is SEED_RANGE. An interval without width is not printed.

    Args:
        row: keys value, low and high, of which any may be None or NaN, and possibly interval.
        signed: print every number with its sign, as differences need it: "+2.1 [−0.4, +4.6]".
        decimals: digits after the point.
    """
    if row is None or pd.isna(row["value"]):
        return "–"
    number = f"{'+' if signed else ''}.{decimals}f"
    ends = [format(row[end], number) for end in ("low", "high") if not pd.isna(row[end])]
    text = format(row["value"], number)
    if len(set(ends)) == 2:
        text += (" ({} to {})" if row.get("interval") == SEED_RANGE else " [{}, {}]").format(*ends)
    return text.replace("-", "−") if signed else text
