"""What several commands of `iadr1` share: options, groups of options, and how tables are printed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from rich.console import Console
from rich.table import Table

from iadr1_lib.errors import UserError
from iadr1_lib.runs import read_metrics_file

if TYPE_CHECKING:
    import pandas as pd


# How a picture is asked about: the question alone, or with "answer yes or no" for an untrained model.
Prompt = Literal["bare", "yes-no", "direct"]
ProfileOption = Annotated[str, typer.Option(help="Size of the course: a file in data/profiles/.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn or sampled.")]
PromptOption = Annotated[Prompt, typer.Option(help="yes-no is the fair way to ask an untrained model.")]
LayoutOption = Annotated[str | None, typer.Option(help="Such as mvtec or visa; by default found by looking.")]
RootOption = Annotated[Path | None, typer.Option(help="Of an index file: the folder that its paths start from.")]
MetricsOption = Annotated[Path | None, typer.Option(help="Metrics file to write: rows and provenance.")]


@dataclasses.dataclass
class ApiOptions:
    """How a model behind an API is asked: by `evaluate` as the model, by `expert-ad` as the teacher."""

    concurrency: Annotated[int, typer.Option(min=1, help="API: requests under way at the same time.")] = 4
    requests_per_minute: Annotated[float | None, typer.Option(help="API: requests a minute at most.")] = None
    cost_cap: Annotated[float | None, typer.Option(min=0, help="API: US dollars to spend at most.")] = None
    replies: Annotated[Path | None, typer.Option(help="API: folder of kept replies, not paid for again.")] = None
    key_variable: Annotated[str | None, typer.Option(help="API: environment variable that holds the key.")] = None

    def endpoint(self) -> dict[str, Any]:
        """The settings that are the endpoint's."""
        names = ("concurrency", "requests_per_minute", "key_variable")
        return {name: getattr(self, name) for name in names}


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command's parameters that are dataclasses given as one option per field: Typer knows single options."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        members = inspect.signature(group).parameters.values() if group else [parameter]
        types = get_type_hints(group, include_extras=True) if group else hints
        parameters += [
            member.replace(annotation=types[member.name], kind=inspect.Parameter.KEYWORD_ONLY) for member in members
        ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def require_metrics_file(path: Path | None) -> None:
    """Raise UserError where a file would be overwritten that holds anything but metrics."""
    try:
        read_metrics_file(path) if path else None
    except UserError as error:
        raise UserError(f"{path} is there and holds no metrics: name another file for --out") from error


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
