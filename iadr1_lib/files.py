"""Text, JSON and JSON Lines files: one reader and one writer for each.

What is written in one go is whole or not there at all (`atomic`); what grows over hours is a `Journal`.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` at the end, or is removed on an error.

    Raises:
        UserError: the disk is full; the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise_if_full(error, path.parent)
        raise


def raise_if_full(error: OSError, folder: Path) -> None:
    """Raise UserError if `error` says that the disk of `folder` is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"the disk of {folder} is full: free some space, then run the same command") from error


# ------------------------------------------------------------------------------------------------ text


def read_text(path: str | Path, unfinished: bool = False) -> str:
    """Read a UTF-8 text file, with or without a byte order mark. Raises UserError for another encoding.

    With `unfinished` the file may end within a letter, whose bytes are left out.
    """
    content = Path(path).read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8 and run the command again")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(content, final=not unfinished)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8 and run the command again") from None


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file as `atomic` does, and return its path."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


# ------------------------------------------------------------------------------------------------ JSON


def write_json(path: str | Path, data: Any) -> Path:
    """Write JSON as `write_text` does; NaN is refused, since other readers choke on it."""
    return write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, default: Any = None) -> Any:
    """Read JSON, or return `default` where the file is missing. Raises UserError for a broken file."""
    if not Path(path).exists():
        return default
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): delete it and run the notebook that makes it again") from error


def read_object(path: str | Path, default: Any = None, **keys: type | tuple[type, ...]) -> Any:
    """As `read_json`, for an object with these keys, each of its type. Raises UserError for another shape."""
    if not Path(path).exists():
        return default
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no object: delete it and make it again")
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            raise UserError(f"{path} has no {key} that can be used: delete it and make it again")
    return value


# ------------------------------------------------------------------------------------------------ JSON Lines


def read_json_lines(path: str | Path, unfinished: bool = False) -> list[tuple[int, Any]]:
    """The values of a JSON Lines file with their line numbers; blank lines are passed over.

    Args:
        unfinished: a last line that breaks off is left out: the program that wrote it was killed.

    Raises:
        UserError: a line is no JSON, or the file breaks off.
    """
    lines = read_text(path, unfinished=True).split("\n")  # splitlines also breaks at marks that JSON may hold
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is no JSON: delete the line and run again") from None
            if not unfinished:
                raise UserError(
                    f"{path} breaks off in line {number}, its last: copy the file again, or run what wrote it again"
                ) from None
    return rows


def json_lines(rows: Iterable[Any], ascii_only: bool = False) -> str:
    """The text of a JSON Lines file."""
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)


class Journal:
    """A JSON Lines file that grows row by row, so that a program that was killed can go on.

    Args:
        path: the file; it and its folder are made with the first row.
        ascii_only: write letters outside ASCII as escapes.
    """

    def __init__(self, path: str | Path, ascii_only: bool = False) -> None:
        self.path = Path(path)
        self._ascii_only = ascii_only
        self._ends_whole = False  # known to end with a whole line

    def rows(self) -> list[Any]:
        """All whole rows, none where the file is missing; a last line that broke off is left out."""
        return [row for _, row in read_json_lines(self.path, unfinished=True)] if self.path.exists() else []

    def append(self, *rows: Any) -> None:
        """Add rows at the end; a last line that broke off is removed first. Raises UserError where the disk is full."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._ends_whole and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self.replace(self.rows())
        self._ends_whole = True
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json_lines(rows, self._ascii_only))
        except OSError as error:
            self._ends_whole = False  # a part of the line may be there
            raise_if_full(error, self.path.parent)
            raise

    def replace(self, rows: Iterable[Any]) -> None:
        """Write these rows in place of all, whole or not at all."""
        write_text(self.path, json_lines(rows, self._ascii_only))
