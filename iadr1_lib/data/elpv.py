"""ELPV: solar cells in electroluminescence, a real data set that one pip install brings. It is none of the paper's six.

2,624 grey pictures of 300 x 300 pixels, each a cell of a mono- or polycrystalline module, with a probability that the
cell is defective: 0 is normal here and 1 defective; cells rated 1/3 and 2/3 are left out and counted. There are no
masks and no types. Cells of one ingot look nearly the same, across splits and labels, too: `iadr1 sanity` counts them.
CC BY-NC-SA 4.0: not for commercial use.
Buerhop-Lutz et al., EU PVSEC 2018; Deitsch et al., Solar Energy 185 (2019), Machine Vision and Applications 32 (2021).

    samples = load()        # of the installed package; load_samples(FOLDER) reads a copy of the data set
"""

from __future__ import annotations

import random
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from iadr1_lib.data.reading import load_samples
from iadr1_lib.data.table import Table
from iadr1_lib.errors import UserError

WORD = "elpv"  # what `--data` takes for it, and its layout
NAME = "ELPV (not of the paper)"
TRAIN_SHARE = 0.1  # of the normal cells: references and training pictures for baselines; never asked about
SEED = 0


def load() -> Table:
    """Samples of benchmark NAME and of categories mono and poly, a share of the normal cells of each in "train".

    `passed_over` holds the cells that are neither normal nor defective. UserError if the package is not installed.
    """
    table = load_samples(_package_data(), WORD, NAME)
    rng, train = random.Random(SEED), set[str]()
    for module in sorted({sample.category for sample in table}):
        normal = [sample.image for sample in table if sample.category == module and sample.label == "no"]
        train.update(rng.sample(normal, round(TRAIN_SHARE * len(normal))))
    rows = [replace(sample, split="train" if sample.image in train else "test") for sample in table]
    # The order of MVTec-AD's folders: the simple predictors of `sanity` take their folds from it.
    rows.sort(key=lambda sample: (sample.category, sample.split == "test", sample.label == "no"))
    return Table(rows, table.passed_over)


def _package_data() -> Path:
    package = find_spec("elpv_dataset")
    if package is None or not package.submodule_search_locations:
        raise UserError('The solar cells are not installed: pip install -c constraints.txt -e ".[real]" (91 MB).')
    return Path(package.submodule_search_locations[0]) / "data"
