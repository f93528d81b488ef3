"""What lies in a data set's folder, in natural order and nothing outside of it, and what the folders' names mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from iadr1_lib.data.table import Problem
from iadr1_lib.records import Sample

Meaning = Literal["good", "bad", "masks"]
# What public sets call their folders. "bad" are names that say only that; a kind of defect may have any other name.
_NAMES: dict[Meaning, str] = {
    "good": "good ok okay normal io free clean flawless intact pass passed defect_free defectfree anomaly_free"
    " no_defect no_defects no_anomaly non_defect non_defective nondefective not_defective non_anomalous",
    "bad": "bad ko ng nok nio not_ok not_good no_good def defect defects defective anomaly anomalies anomalous abnormal"
    " fail failed faulty reject rejected",
    "masks": "mask masks label labels ground_truth ground_truths groundtruth gt gts annotation annotations segmentation"
    " segmentations seg segs anomaly_mask anomaly_masks defect_mask defect_masks pixel_labels",
}
_MEANING = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}
GOOD = "good"  # MVTec-AD's folder name of normal pictures
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def says(name: str) -> Meaning | None:
    """Whether a folder's name says that its pictures are "good", are "bad" (and no more), or are "masks".

    Case, numbers ("good_2", "1_bad") and whether "_", "-" or a blank stands between words do not count.
    """
    plain = re.sub(r"[\W_]+", "_", name.casefold())
    return _MEANING.get(plain) or _MEANING.get(re.sub(r"[\d_]+", "_", plain).strip("_"))


def is_picture_name(name: str) -> bool:
    """Whether a file's name ends as a picture's does."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def stem_of_picture(mask: Path) -> str:
    """The stem of the picture that a mask is of: 7 of 7.png, 7_mask.png, 7_label.bmp, and of a folder 7."""
    name = mask.stem if is_picture_name(mask.name) else mask.name
    stem, _, word = name.rpartition("_")
    return stem if stem and says(word) == "masks" else name


def folder_name(folder: Path) -> str:
    """A folder's own name; "." and ".." have one only once they are made absolute."""
    return os.path.basename(os.path.abspath(folder))


def list_folders(folder: Path, root: Path) -> list[Path]:
    """Folders in ``folder`` in natural order, as far as they may be entered (see :func:`survey`)."""
    return [entry for entry in _entries(folder, root) if os.path.isdir(entry)]


def list_pictures(folder: Path, root: Path) -> list[Path]:
    """Pictures in ``folder`` by their names' endings, in natural order, as far as they may be read."""
    return [entry for entry in _entries(folder, root) if is_picture_name(entry.name) and os.path.isfile(entry)]


def _entries(folder: Path, root: Path) -> list[Path]:
    """What is in ``folder`` and may be read; nothing where the folder is missing, lies outside or is locked."""
    try:
        return [entry for entry in visible(folder) if not entry_fault(entry, root)] if is_inside(folder, root) else []
    except OSError:  # the survey lists it
        return []


def visible(folder: Path) -> list[Path]:
    """What is in a folder, in natural order (2 before 10), without hidden files; OSError where it is locked."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return [folder / name for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], name


def is_inside(path: str | Path, root: str | Path) -> bool:
    """True if ``path``, all links followed, lies in ``root``; it need not exist. Nothing else may be read.

    A hub's cache keeps <repository>/snapshots/<revision> as links to files in <repository>/blobs: they are inside, too.
    """
    try:
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except (OSError, ValueError):  # a name that no file can have
        return False
    snapshots = [above.parent for above in (folder, *folder.parents) if above.parent.name == "snapshots"]
    return real.is_relative_to(folder) or real.parent in [above.parent / "blobs" for above in snapshots]


def entry_fault(entry: Path, root: Path) -> Problem | None:
    """Why an entry of a folder is not followed, or None."""
    shown = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
    if shown != entry.name:  # bytes that Python could only smuggle in; no table could hold them
        shown = f"{entry.parent}/{shown}"
        return Problem("undecodable name", shown, f"{shown} has a name that cannot be decoded: give it another.")
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


def survey(root: str | Path, samples: Iterable[Sample] = ()) -> list[Problem]:
    """What a folder holds that readers pass over, one problem each: faults of entries and folders that are locked.

    And folders with pictures of which no row of ``samples`` has a picture or a mask (not so those called masks, labels
    or ground_truth: masks of normal pictures are no fault). Links are not followed.
    """
    root = Path(root)
    used = {os.path.dirname(path) for sample in samples for path in (sample.image, sample.mask) if path}
    used = {os.path.realpath(folder) for folder in used}
    problems, folders = [], [root]
    while folders:
        folder = folders.pop()
        try:
            faults = {entry: entry_fault(entry, root) for entry in visible(folder)}
        except OSError as error:
            message = f"The folder {folder} cannot be listed ({error.strerror}): change its permissions or move it."
            problems.append(Problem("unreadable", str(folder), message))
            continue
        problems += [fault for fault in faults.values() if fault]
        sound = [entry for entry, fault in faults.items() if not fault]
        folders += [entry for entry in reversed(sound) if os.path.isdir(entry) and not os.path.islink(entry)]
        pictures = sum(is_picture_name(entry.name) for entry in sound)
        of_masks = any(says(part) == "masks" for part in folder.relative_to(root).parts)
        if used and pictures and os.path.realpath(folder) not in used and not of_masks:
            message = f"{folder} holds {pictures} pictures where the layout has none: move them or leave them out."
            problems.append(Problem("passed over", str(folder), message))
    return problems
