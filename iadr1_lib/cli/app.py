"""The command `iadr1`: its groups of commands, and how errors become exit statuses.

Exit status: 0 done, 1 failed, 2 wrong use, 130 stopped by the user.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import typer

from iadr1_lib.cli import course, evaluation, expert_ad, gpu, inspection
from iadr1_lib.errors import UserError, WrongUse
from iadr1_lib.files import raise_if_full

FAILED, WRONG_USE, STOPPED = 1, 2, 130
# System errors that another path avoids; anything else is a fault of ours and shows its traceback.
REFUSED = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


class OneLineErrors(typer.core.TyperGroup):
    """Turns the errors a user can correct into one line on stderr and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            try:
                raise_if_full(error, Path(error.filename or "."))
            except UserError as full:
                raise _exit(full, FAILED) from error
            if error.errno in REFUSED:
                where = error.filename or "a file"
                raise _exit(f"cannot use {where} ({error.strerror}): name another folder", FAILED) from error
            raise
        except UserError as error:
            raise _exit(error, WRONG_USE if isinstance(error, WrongUse) else FAILED) from error
        except KeyboardInterrupt as error:
            raise _exit("stopped; run the same command to go on", STOPPED) from error


def _exit(message: object, status: int) -> typer.Exit:
    typer.echo(f"iadr1: {message}", err=True)
    return typer.Exit(status)


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="IAD-R1 on your own machine: run the course, train a stage, judge pictures.",
)
for group in (course, expert_ad, evaluation, inspection, gpu):
    app.add_typer(group.commands)


def main() -> None:
    """Entry point of the console command."""
    app()
