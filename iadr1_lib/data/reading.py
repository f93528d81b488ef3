"""The way in: a folder, an index or a meta file becomes a table of samples.

    samples = load_samples("MagneticTile")                   # the layout is found by looking
    samples = load_samples("archive", layout="visa")         # or named
    samples = load_samples("test_MPDD_format.json", root="data")   # an index file; its paths lie below root

A reader of `layouts` or `index` yields entries; here their masks become places and they become samples. Pixels are
opened later, by `open_image`, one picture at a time. Nothing outside the folder that was named is read. (One table is
looked for beside it: VisA's split_csv lies next to the folder of a class.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from iadr1_lib.data.checks import require_sound
from iadr1_lib.data.folders import folder_name, is_inside, list_folders, survey, visible
from iadr1_lib.data.index import read_file
from iadr1_lib.data.layouts import LAYOUTS
from iadr1_lib.data.masks import mask_location
from iadr1_lib.data.table import REFERENCE_KINDS, Entry, Problem, Table, Templates, refuse, table_of
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample


def load_samples(
    path: str | Path,
    layout: str | None = None,
    benchmark: str | None = None,
    *,
    root: str | Path | None = None,
    strict: bool = True,
) -> Table:
    """The table of a data set's folder, or of an index or meta file.

    Rows come in natural order, the same on every machine. A data set that files no training split is all "test". Types
    keep the data set's own names. Pictures are opened no further than their header.

    Args:
        path: a data set, one category of it, or a JSON file in the released index or meta format.
        layout: its name in LAYOUTS; by default the first that fits.
        benchmark: name of the data set; by default the folder's or the file's.
        root: of a JSON file, the folder that its paths start from; by default the file's own.
        strict: raise at the first link or entry that leads out of the folder, unreadable picture, ill-fitting mask or
            broken row; False leaves them to :func:`check_health`, which lists them.

    Raises:
        UserError: nothing is there, no layout fits, the layout is unknown, or (strict) something is not sound.
    """
    path = Path(path)
    if os.path.isfile(path):
        table = _load_file(path, Path(root) if root else path.parent, benchmark)
    else:
        table = _load_folder(path, layout or find_layout(path), benchmark)
    if strict:
        refuse(table.passed_over)
        require_sound(table)
    if not table:
        refuse(table.passed_over)  # they say why
        raise UserError(f"{path} lists no pictures: check that it is the data set's root or one category of it")
    return table


def load_mvtec(root: str | Path, benchmark: str | None = None, *, strict: bool = True) -> Table:
    """Read a folder in MVTec-AD's layout, as the drawn world has it; see :func:`load_samples`."""
    if os.path.isfile(root):  # which load_samples would read as an index
        raise UserError(f"There is no folder {root}: check the path of the data set.")
    return load_samples(root, "mvtec", benchmark, strict=strict)


def find_layout(root: Path) -> str:
    """The name of the first layout that fits a folder; UserError that lists what is known."""
    return next((name for name, layout in LAYOUTS.items() if layout.parts(root)), "") or _no_layout(root, list(LAYOUTS))


def _no_layout(root: Path, names: list[str]) -> NoReturn:
    """Say why a folder has none of the layouts."""
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {root}: check the path of the data set.")
    refuse(survey(root))  # a locked folder or a link that leads out may be why
    if not visible(root):
        raise UserError(f"The folder {root} is empty: put a data set there or name another.")
    known = "; ".join(f"{name}: {LAYOUTS[name].looks_like}" for name in names)
    for folder in list_folders(root, root):
        if any(LAYOUTS[name].parts(folder) for name in names):
            raise UserError(f"{root} has none of the layouts that can be read, but {folder} has: name that folder.")
    raise UserError(
        f"{root} has none of the layouts that can be read ({known}): name another, or arrange it in one of them."
    )


def _load_file(path: Path, root: Path, benchmark: str | None) -> Table:
    source, entries, templates = read_file(path, root)
    table = table_of(_row(entry, root, source, benchmark, path.stem, "") for entry in entries)
    table.templates = templates
    return table


def _load_folder(root: Path, layout: str, benchmark: str | None) -> Table:
    if layout not in LAYOUTS:
        raise UserError(f"no layout is called {layout}: choose from {', '.join(LAYOUTS)}")
    parts = LAYOUTS[layout].parts(root) or _no_layout(root, [layout])
    is_category = parts == [root] and not LAYOUTS[layout].whole
    name = folder_name(root / ".." if is_category else root)
    read = [(entry, folder_name(part)) for part in parts for entry in LAYOUTS[layout].read(part, root)]
    table = table_of(_row(entry, root, layout, benchmark, name, category) for entry, category in read)
    table.templates = _templates((entry for entry, _ in read), root)
    table.passed_over += survey(root, table)
    return table


def _templates(entries: Iterable[Entry | Problem], root: Path) -> Templates:
    """A picture of the very part serves for either kind of reference."""
    return {
        str(entry.image): {kind: [entry.template] for kind in REFERENCE_KINDS}
        for entry in entries
        if isinstance(entry, Entry) and entry.template and is_inside(entry.template, root)
    }


def _row(
    entry: Entry | Problem, root: Path, source: str, benchmark: str | None, folder: str, category: str
) -> Sample | Problem:
    """An entry as a sample, as long as picture and mask lie below the root."""
    if isinstance(entry, Problem):
        return entry
    for path in (entry.image, entry.mask):
        if path is not None and not is_inside(path, root):
            message = f"{path} lies outside of {root}: correct the index file, or name another root."
            return Problem("outside", str(path), message)
    mask, kind = (entry.mask, entry.type) if entry.label == "yes" else (None, None)
    return Sample(
        image=str(entry.image),
        label=entry.label,
        mask=str(mask) if mask else None,
        type=kind,
        location=mask_location(mask, entry.image) if mask else None,
        category=entry.category or category,
        benchmark=benchmark or entry.benchmark or folder,
        split=entry.split,
        source=source,
    )
