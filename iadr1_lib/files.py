"""Text and JSON files: one reader and one writer for each. What is written is whole or not there at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError


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


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; on a full disk the old file stays and UserError says so."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed
            temporary.unlink(missing_ok=True)
        raise_if_full(error, path.parent)
        raise
    return path


def raise_if_full(error: OSError, folder: Path) -> None:
    """Raise UserError if `error` says that the disk of `folder` is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"the disk of {folder} is full: free some space, then run the same command") from error


def write_json(path: Path, data: Any) -> Path:
    """Write JSON as `write_text` does; NaN is refused, since other readers choke on it."""
    return write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON, or return `default` where the file is missing. Raises UserError for a broken file."""
    if not Path(path).exists():
        return default
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): delete it and run the notebook that makes it again") from error


def read_object(path: Path, default: Any = None, **keys: type | tuple[type, ...]) -> Any:
    """As `read_json`, for an object with these keys, each of its type. Raises UserError for another shape."""
    found = read_json(path, default)
    if found is default and not Path(path).exists():
        return default
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object: delete it and make it again")
    for key, kind in keys.items():
        if not isinstance(found.get(key), kind):
            raise UserError(f"{path} has no {key} that can be used: delete it and make it again")
    return found


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
