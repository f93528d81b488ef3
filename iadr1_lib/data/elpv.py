"""ELPV: solar cells in electroluminescence, a real data set that one pip install brings. It is none of the paper's six.

2,624 grey pictures of 300 x 300 pixels, each a cell of a mono- or polycrystalline module, with a probability that the
cell is defective: 0 is normal here and 1 defective; cells rated 1/3 and 2/3 are left out and counted. There are no
masks and no types. Cells of one ingot look nearly the same, across splits and labels, too: `iadr1 sanity` counts them.
CC BY-NC-SA 4.0: not for commercial use.
Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 185 (2019), Machine Vision and Applications 32 (2021).

    samples = load()        # writes runs/elpv once, in MVTec-AD's layout
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from iadr1_lib.data.reading import load_mvtec
from iadr1_lib.data.table import Problem, Table
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_json
from iadr1_lib.runs import runs_folder

WORD = "elpv"  # what `--data` takes for it
NAME = "ELPV (not of the paper)"
TRAIN_SHARE = 0.1  # of the normal cells: references and training pictures for baselines; never asked about
_NORMAL, _DEFECTIVE = 0.0, 1.0
_STAMP = "elpv.json"


class Cell(NamedTuple):
    """A row of the package's table: the picture's path, the probability of a defect, and mono or poly."""

    picture: Path
    probability: float
    module: str


def load(folder: Path | None = None, train_share: float = TRAIN_SHARE, seed: int = 0) -> Table:
    """Samples of benchmark NAME and of categories mono and poly; written to `folder` (runs/elpv) if not there yet.

    `passed_over` holds the cells that are neither normal nor defective. UserError if the package is not installed.
    """
    folder = folder or runs_folder() / WORD
    between = [cell for cell in read_cells() if cell.probability not in (_NORMAL, _DEFECTIVE)]
    rows = load_mvtec(export(folder, train_share, seed), NAME)
    left_out = [
        Problem(
            "in between", str(cell.picture), f"{cell.picture} is defective with probability {cell.probability:.2f}."
        )
        for cell in between
    ]
    return Table((replace(row, type=None, source=WORD) for row in rows), [*rows.passed_over, *left_out])


def export(folder: Path, train_share: float = TRAIN_SHARE, seed: int = 0) -> Path:
    """Copy the cells to <folder>/{mono,poly}/{train/good,test/good,test/defect}; returns the folder.

    A share of the normal cells of each category, drawn by the seed, goes to train/good; 0 leaves all cells to test. A
    folder that was written with the same arguments is left alone, one that was not written by this is refused.
    """
    if not 0 <= train_share < 1:
        raise UserError(f"a share of {train_share} of the normal cells cannot be set aside: choose 0 or more, below 1")
    stamp = {"package": _version(), "train_share": train_share, "seed": seed}
    done = folder / _STAMP
    if done.is_file() and json.loads(done.read_text()) == stamp:
        return folder
    if folder.exists() and not done.is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files than ELPV's cells: name another folder.")
    making = folder.with_name(folder.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    for target, picture in _places(read_cells(), train_share, seed):
        (making / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, making / target)
    write_json(making / _STAMP, stamp)
    shutil.rmtree(folder, ignore_errors=True)
    making.rename(folder)
    return folder


def _places(cells: list[Cell], train_share: float, seed: int) -> Iterator[tuple[Path, Path]]:
    """Where each cell goes, and where it is."""
    rng = random.Random(seed)
    for module in sorted({cell.module for cell in cells}):
        normal = [cell.picture for cell in cells if (cell.module, cell.probability) == (module, _NORMAL)]
        train = set(rng.sample(normal, round(train_share * len(normal))))
        for picture in normal:
            yield Path(module, "train" if picture in train else "test", "good", picture.name), picture
        for cell in cells:
            if (cell.module, cell.probability) == (module, _DEFECTIVE):
                yield Path(module, "test", "defect", cell.picture.name), cell.picture


def read_cells() -> list[Cell]:
    """The package's table: labels.csv in its folder data, columns apart by blanks.

    Raises UserError if the package is not installed or its table is not as expected.
    """
    package = find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        raise UserError('The solar cells are not installed: pip install -c constraints.txt -e ".[real]" (91 MB).')
    table = Path(package.submodule_search_locations[0]) / "data" / "labels.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter=" ", skipinitialspace=True))
        return [Cell(table.parent / path, float(probability), module) for path, probability, module in rows]
    except (OSError, ValueError):
        raise UserError(f"{table} is missing or damaged: install elpv-dataset again.") from None


def _version() -> str:
    try:
        return version("elpv-dataset")
    except PackageNotFoundError:
        return "unknown"
