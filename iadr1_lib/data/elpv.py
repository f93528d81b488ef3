"""ELPV: solar cells in electroluminescence, a real data set that one pip install brings. It is none of the paper's six.

2,624 grey pictures of 300 x 300 pixels, each a cell of a mono- or polycrystalline module, with a probability that the
cell is defective: 0 is normal here and 1 defective; cells rated 1/3 and 2/3 are left out and counted. There are no
masks and no types. Cells of one ingot look nearly the same, across splits and labels, too: `iadr1 sanity` counts them.
CC BY-NC-SA 4.0: not for commercial use.
Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 185 (2019), Machine Vision and Applications 32 (2021).

    samples = load()        # writes runs/elpv once, in MVTec-AD's layout
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from iadr1_lib.data.reading import load_mvtec
from iadr1_lib.data.table import Problem, Table
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_json
from iadr1_lib.runs import runs_folder

WORD = "elpv"  # what `--data` takes for it
NAME = "ELPV (not of the paper)"
TRAIN_SHARE = 0.1  # of the normal cells: references and training pictures for baselines; never asked about
SEED = 0


def load(folder: Path | None = None) -> Table:
    """Samples of benchmark NAME and of categories mono and poly; written to `folder` (runs/elpv) if not there yet.

    `passed_over` holds the cells that are neither normal nor defective. UserError if the package is not installed.
    """
    cells = _read_cells()
    table = load_mvtec(_export(cells, folder or runs_folder() / WORD), NAME)
    left_out = [
        Problem("in between", str(picture), f"{picture} is defective with probability {probability:.2f}.")
        for picture, probability in zip(cells["picture"], cells["probability"], strict=True)
        if probability not in (0, 1)
    ]
    return Table((replace(row, type=None, source=WORD) for row in table), [*table.passed_over, *left_out])


def _export(cells: pd.DataFrame, folder: Path) -> Path:
    """Copy the cells to <folder>/{mono,poly}/{train/good,test/good,test/defect}; returns the folder.

    A share of the normal cells of each category, sampled at random, goes to train/good. A folder that was written
    before is left alone, one that was not written by this is refused.
    """
    if (folder / "elpv.json").is_file():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files than ELPV's cells: name another folder.")
    unfinished = folder.with_name(folder.name + ".making")
    shutil.rmtree(unfinished, ignore_errors=True)
    rng = random.Random(SEED)
    for module, group in cells.groupby("module"):
        normal = group.loc[group["probability"] == 0, "picture"].tolist()
        train = rng.sample(normal, round(TRAIN_SHARE * len(normal)))
        defective = group.loc[group["probability"] == 1, "picture"]
        for place, pictures in (
            ("train/good", train),
            ("test/good", set(normal) - set(train)),
            ("test/defect", defective),
        ):
            target = unfinished / str(module) / place
            target.mkdir(parents=True)
            for picture in pictures:
                shutil.copyfile(picture, target / picture.name)
    write_json(unfinished / "elpv.json", {"train_share": TRAIN_SHARE, "seed": SEED})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return folder


def _read_cells() -> pd.DataFrame:
    """The package's table: picture (a path), probability of a defect, module (mono or poly)."""
    package = find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        raise UserError('The solar cells are not installed: pip install -c constraints.txt -e ".[real]" (91 MB).')
    path = Path(package.submodule_search_locations[0]) / "data" / "labels.csv"
    try:
        cells = pd.read_csv(path, sep=r"\s+", names=["picture", "probability", "module"], dtype={"probability": float})
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or damaged: install elpv-dataset again.") from None
    return cells.assign(picture=[path.parent / name for name in cells["picture"]])
