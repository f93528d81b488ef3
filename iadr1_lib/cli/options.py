"""What several commands of `iadr1` share: their options, and how they print tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


ProfileOption = Annotated[str, typer.Option(help="Size of the course: a file in data/profiles/.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn or sampled.")]
FolderOrNameOption = Annotated[
    str,  # a path would lose a slash of an address
    typer.Option(help="Model folder, or a model behind an API: gpt-4.1, claude-sonnet-4, openai:NAME@http://host/v1."),
]
# How a model behind an API is asked; for evaluate and expert-ad alike.
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="API: requests under way at the same time.")]
PaceOption = Annotated[float | None, typer.Option(help="API: requests a minute at most, retries included.")]
CostCapOption = Annotated[float | None, typer.Option(min=0, help="API: US dollars to spend at most.")]
RepliesOption = Annotated[Path | None, typer.Option(help="API: folder that keeps replies, so that none is paid twice.")]
KeyVariableOption = Annotated[
    str | None, typer.Option(help="API: environment variable with the key, where it is not the provider's usual one.")
]


def print_table(table: pd.DataFrame) -> None:
    """Print a table of numbers or texts; a dash stands for a missing value."""
    rendered = Table(*map(str, table.columns))
    for row in table.astype(object).where(table.notna(), "–").to_numpy().tolist():
        rendered.add_row(*map(str, row))
    make_console().print(rendered)


def make_console() -> Console:
    """A console that prints words as they are (a folder's name may look like markup), whole when they go to a file."""
    plain: dict[str, Any] = {"markup": False, "emoji": False}
    console = Console(**plain)
    return console if console.is_terminal else Console(width=160, **plain)
