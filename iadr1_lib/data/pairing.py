"""Which mask is of which picture, where both lie in folders."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from iadr1_lib.answer import DEFECT_TYPES, Label
from iadr1_lib.data.folders import list_folders, list_pictures, says, stem_of_picture
from iadr1_lib.data.table import Entry, Problem, Split


def label_of(name: str) -> Label:
    """The label of the pictures in a folder, by the folder's name."""
    return "no" if says(name) == "good" else "yes"


def type_of(name: str, keep_bad: bool = False) -> str | None:
    """A folder's or a table's word for a defect: "missing_parts" -> "missing parts"; a data set's own names stay.

    None for a word that only says that there is a defect, unless `keep_bad`.
    """
    if says(name) == "bad" and not keep_bad:
        return None
    name = name.replace("_", " ")
    return name.lower() if name.lower() in DEFECT_TYPES else name


def match_masks(pictures: Iterable[Path], masks: Iterable[Path]) -> tuple[dict[Path, Path], list[Problem]]:
    """Picture -> mask by their names, 7.png -> 7.png, 7_mask.png or the folder 7; and the pictures where that is open.

    It is open where several fit: the mask of one defect must not be taken for that of another.
    """
    pictures = list(pictures)
    named: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        named[stem_of_picture(mask)].append(mask)
    shared = Counter(picture.stem for picture in pictures)
    matched, unclear = {}, []
    for picture in pictures:
        fitting = named.get(picture.stem, [])
        fitting = [mask for mask in fitting if mask.stem != picture.stem] or fitting  # 7_mask.png, if there is one
        if len(fitting) == shared[picture.stem] == 1:
            matched[picture] = fitting[0]
        elif fitting:
            where = f"{picture} and the mask {fitting[0]}"
            message = f"{where} cannot be matched: several have that name; file masks by kind."
            unclear.append(Problem("ambiguous mask", str(picture), message))
    return matched, unclear


def mask_folders(folder: Path, root: Path) -> list[Path]:
    """The folders of masks in a folder."""
    return [entry for entry in list_folders(folder, root) if says(entry.name) == "masks"]


def kinds_in(folder: Path, places: list[Path], root: Path) -> list[Path]:
    """The folders of pictures in a folder: all but those of masks (also crack_masks beside crack).

    A kind "label" with masks of its own, in one of `places`, is one, too.
    """
    folders = list_folders(folder, root)
    names = {entry.name for entry in folders}
    return [
        kind
        for kind in folders
        if (says(kind.name) != "masks" or any(os.path.isdir(place / kind.name) for place in places))
        and ((name := stem_of_picture(kind)) == kind.name or name not in names)
    ]


def read_kinds(
    kinds: Iterable[Path], places: list[Path], root: Path, split: Split, keep_bad: bool = False
) -> Iterator[Entry | Problem]:
    """The pictures of folders that are each of one kind, normal by name or else defective, with their masks.

    Masks lie in <place>/<kind>, in a folder of masks within the kind, beside the pictures, in <kind>_masks beside the
    kind, or in <place> itself: the first of these that holds any. `places` are folders of masks; `keep_bad`: see
    :func:`type_of`.
    """
    pictures: dict[Path, list[Path]] = {}
    masks: dict[Path, list[Path]] = {}  # by the folder that they are taken from
    shown: dict[Path, list[Path]] = defaultdict(list)  # defective pictures by that folder
    for kind in kinds:
        files = list_pictures(kind, root)
        stems = {file.stem for file in files}
        beside = {file for file in files if (stem := stem_of_picture(file)) != file.stem and stem in stems}
        pictures[kind] = [file for file in files if file not in beside]
        own = [entry for entry in list_folders(kind.parent, root) if stem_of_picture(entry) == kind.name != entry.name]
        choices = [*(place / kind.name for place in places), *mask_folders(kind, root), kind, *own, *places]
        for choice in choices if says(kind.name) != "good" else []:
            masks[choice] = [file for file in files if file in beside] if choice == kind else _masks_in(choice, root)
            if masks[choice]:
                shown[choice] += pictures[kind]
                break
    matched: dict[Path, Path] = {}
    for place, group in shown.items():
        pairs, unclear = match_masks(group, masks[place])
        matched |= pairs
        yield from unclear
    for kind, files in pictures.items():
        for file in files:
            yield Entry(file, label_of(kind.name), matched.get(file), type_of(kind.name, keep_bad), split)


def _masks_in(folder: Path, root: Path) -> list[Path]:
    """A folder's masks: its pictures, and its folders that hold several for one picture."""
    several = [entry for entry in list_folders(folder, root) if list_pictures(entry, root)]
    return [*list_pictures(folder, root), *several]
