"""Errors that a user can correct: one sentence that says what was wrong, where, and what to do next."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can correct: one sentence with what was wrong, where, and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """Show the sentence alone in a notebook, where IPython asks for this name."""
        return [f"{type(self).__name__}: {self}"]


class WrongUse(UserError):
    """The command itself was wrong (unknown profile or notebook); the command line exits with 2."""


def one_line(text: object, limit: int = 200) -> str:
    """A library's message as one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[:limit] + "…"
