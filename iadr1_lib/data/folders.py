"""What lies in a data set's folder: pictures and folders in natural order, and nothing outside of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from iadr1_lib.data.folder_names import is_picture_name, says
from iadr1_lib.data.table import Problem
from iadr1_lib.records import Sample


def folder_name(folder: Path) -> str:
    """A folder's own name; "." and ".." have one only once they are made absolute."""
    return os.path.basename(os.path.abspath(folder))


def list_folders(folder: Path, root: Path) -> list[Path]:
    """Folders in ``folder`` in natural order, as far as they may be entered (see :func:`survey`)."""
    return [entry for entry in _entries(folder, root) if os.path.isdir(entry)]


def list_pictures(folder: Path, root: Path) -> list[Path]:
    """Pictures in ``folder`` by their names' endings, in natural order, as far as they may be read."""
    return [entry for entry in _entries(folder, root) if is_picture_name(entry.name) and os.path.isfile(entry)]


def is_inside(path: str | Path, root: str | Path) -> bool:
    """True if ``path``, all links followed, lies in ``root``; it need not exist. Nothing else may be read.

    A hub's cache keeps <repository>/snapshots/<revision> as links to files in <repository>/blobs: they are inside, too.
    """
    try:
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except (OSError, ValueError):  # a name that no file can have
        return False
    return real.is_relative_to(folder) or real.parent in _blobs(folder)


def _blobs(folder: Path) -> list[Path]:
    """The folder of a hub cache's files, where ``folder`` is one of its snapshots or lies in one."""
    snapshots = [above.parent for above in (folder, *folder.parents) if above.parent.name == "snapshots"]
    return [blobs for above in snapshots if (blobs := above.parent / "blobs").is_dir() and not blobs.is_symlink()]


def survey(root: str | Path, samples: Iterable[Sample] = ()) -> list[Problem]:
    """What a folder holds that readers pass over, one problem each.

    Links that lead out, to nothing or in a circle; folders called like pictures; names that are no text; folders
    that may not be listed; and folders with pictures of which no row of ``samples`` has a picture or a mask (not so
    those called masks, labels or ground_truth). Hidden files are not looked at, links are not followed.
    """
    root = Path(root)
    used = {os.path.dirname(path) for sample in samples for path in (sample.image, sample.mask) if path}
    used = {os.path.realpath(folder) for folder in used}
    problems, folders = [], [root]
    while folders:
        folder = folders.pop()
        try:
            entries = {entry: entry_fault(entry, root) for entry in visible(folder)}
        except OSError as error:
            message = f"The folder {folder} cannot be listed ({error.strerror}): change its permissions or move it."
            problems.append(Problem("unreadable", str(folder), message))
            continue
        problems += [fault for fault in entries.values() if fault]
        sound = [entry for entry, fault in entries.items() if not fault]
        folders += [entry for entry in reversed(sound) if os.path.isdir(entry) and not os.path.islink(entry)]
        pictures = sum(is_picture_name(entry.name) for entry in sound)
        # Masks of normal pictures are nobody's and no fault.
        of_masks = any(says(part) == "masks" for part in folder.relative_to(root).parts)
        if used and pictures and os.path.realpath(folder) not in used and not of_masks:
            message = f"{folder} holds {pictures} pictures where the layout has none: move them or leave them out."
            problems.append(Problem("passed over", str(folder), message))
    return problems


def visible(folder: Path) -> list[Path]:
    """What is in a folder, in natural order, without hidden files; OSError where it may not be listed."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which "9" comes before "10"; the name itself decides between "1" and "01"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], name


def _entries(folder: Path, root: Path) -> list[Path]:
    """What is in ``folder`` and may be read; nothing where the folder is missing, lies outside or is locked."""
    if not os.path.isdir(folder) or not is_inside(folder, root):
        return []
    try:
        return [entry for entry in visible(folder) if not entry_fault(entry, root)]
    except OSError:  # the survey lists it
        return []


def entry_fault(entry: Path, root: Path) -> Problem | None:
    """Why an entry of a folder is not followed, or None."""
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that Python could only smuggle in; no table could hold them
        shown = os.fsencode(entry).decode("utf-8", "backslashreplace")
        return Problem("undecodable name", shown, f"{shown} has a name that is no text here: give it another.")
    if os.path.islink(entry):
        if not is_inside(entry, root):
            message = f"{entry} is a link that leads out of {root}: copy the files there or remove the link."
            return Problem("outside", str(entry), message)
        real = os.path.realpath(entry)
        if not os.path.exists(real) or Path(os.path.realpath(entry.parent)).is_relative_to(real):
            return Problem("broken link", str(entry), f"{entry} is a link to nothing or in a circle: remove it.")
    if is_picture_name(entry.name) and os.path.isdir(entry):
        return Problem("folder like a picture", str(entry), f"{entry} is a folder with a picture's name: rename it.")
    return None
