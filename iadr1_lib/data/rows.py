"""Rows of training files with their pictures: located, opened once, on one bit depth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from iadr1_lib.answer import GRID, cell_of_mask
from iadr1_lib.data.images import depth_of, open_image, share_depth, take_depths
from iadr1_lib.data.masks import read_mask
from iadr1_lib.data.type_names import category_of
from iadr1_lib.errors import UserError
from iadr1_lib.records import KEYS, Record, Sample, Stage, checked_row, grid_of


def labelled(sample: Sample, grid: int = GRID) -> Record:
    """A sample's labels without reasoning: what SC-GRPO's solutions are made from.

    Raises:
        UserError: a defective picture has no mask, or one that marks nothing.
    """
    place = kind = None
    if sample.label == "yes":
        if sample.mask is None or sample.location is None:
            raise UserError(f"{sample.image} is defective, but no mask says where: leave the image out")
        place = sample.location if grid == GRID else cell_of_mask(read_mask(sample.mask, sample.image), grid)
        kind = category_of(sample)
    depth = depth_of(sample.image)
    return Record(sample.image, sample.label, place, kind, sample.category, "", sample.benchmark, grid, depth)


def checked_rows(rows: Sequence[Any], stage: Stage, path: Path, *folders: Path) -> list[dict[str, Any]]:
    """Rows as the trainers read them (see `checked_row`), after a look at each row and each picture.

    Args:
        path: the file they come from, for the message.
        folders: where relative paths of pictures may start.

    Raises:
        UserError: a row or a picture is faulty; the message names the first one's number in the file, from 1, and how
            many others there are; or the rows' places are cells of different grids.
    """
    pictures = KEYS[stage][0]
    checked: dict[int, dict[str, Any]] = {}
    faults: dict[int, str] = {}
    for number, row in enumerate(rows, start=1):
        try:
            row = checked_row(row, stage)
            checked[number] = row | {pictures: [str(find_picture(image, *folders)) for image in row[pictures]]}
        except ValueError as error:
            faults[number] = f"{error}: correct the record, or leave it out"
    depths = {image: row["depth"] for row in checked.values() if "depth" in row for image in row[pictures]}
    take_depths(depths)
    images = list(dict.fromkeys(image for row in checked.values() for image in row[pictures]))
    share_depth(image for image in images if image not in depths)
    with ThreadPoolExecutor() as pool:
        broken = dict(zip(images, pool.map(_fault, images), strict=True))
    for number, row in checked.items():
        if messages := list(filter(None, map(broken.get, row[pictures]))):
            faults[number] = messages[0]
    if faults:
        first, *others = sorted(faults)
        also = f" (faulty, too: {len(others)} more, such as record {others[0]})" if others else ""
        raise UserError(f"{path}, record {first}: {faults[first].rstrip('.')}{also}")
    grids = {grid_of(row): number for number, row in reversed(checked.items())}
    if len(grids) > 1:
        listed = " and ".join(f"of {grid} x {grid} cells in record {number}" for grid, number in sorted(grids.items()))
        raise UserError(f"{path} mixes grids of places ({listed}): write one file for each grid")
    return list(checked.values())


def pictures_of(rows: Sequence[Any], *folders: Path) -> list[Path]:
    """The pictures that rows of records name, each once, in order; rows that name none are passed over."""
    named: dict[Path, None] = {}
    for row in rows:
        given = row.get("images", row.get("image")) if isinstance(row, dict) else None
        for image in given if isinstance(given, list) else [given]:
            if isinstance(image, str):
                named[find_picture(image, *folders)] = None
    return list(named)


def find_picture(image: str, *folders: Path) -> Path:
    """Where a picture lies whose path starts from one of the folders, backslashes of Windows or not."""
    named = (folder / name for name in (image, image.replace("\\", "/")) for folder in folders)
    return next((path for path in named if os.path.isfile(path)), folders[0] / image)


def _fault(image: str) -> str:
    """Why a picture cannot be opened; "" where it can."""
    try:
        open_image(image)
    except UserError as error:
        return str(error)
    return ""
