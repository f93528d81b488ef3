"""Pictures of one's own without masks, made fit for training: defects are drawn on good ones, the test is set apart.

    good, asked = set_apart(samples, seed)           # no picture is in both
    data = write_drawn_defects(good, folder / "train", seed)
    test = write_copies(asked, folder / "test")      # as they are: nothing is ever drawn on a test picture
    run = Run(profile, seed, folder, Choices((str(data),), (str(test),)))

Where there are enough masks (`enough_masks`), none of this is needed: a `Run` splits such a data set itself.
"""

from __future__ import annotations

import random
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from iadr1_lib.answer import DEFECT_TYPES
from iadr1_lib.course.sources import FEWEST_DEFECTIVE
from iadr1_lib.data import divide, open_image, read_mask
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample
from iadr1_lib.world import SIDE, deface

FEWEST_GOOD = 8  # pictures to learn from: half of them stay good, half are drawn on
_SHARE = 0.5  # of the good test pictures, where no training pictures are filed


def enough_masks(samples: Iterable[Sample]) -> bool:
    """Whether a training can do without drawn defects."""
    return sum(sample.label == "yes" and sample.location is not None for sample in samples) >= FEWEST_DEFECTIVE


def set_apart(samples: Sequence[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """(good pictures to learn from, pictures to be asked about): those that the data set files as train and as test.

    Where it files fewer than FEWEST_GOOD good ones as train, half of its good test pictures join them, near duplicates
    together.

    Raises:
        UserError: there are too few good pictures all the same.
    """
    good = [sample for sample in samples if sample.split == "train" and sample.label == "no"]
    asked = [sample for sample in samples if sample.split == "test"]
    tested = [sample for sample in asked if sample.label == "no"]
    if len(good) < FEWEST_GOOD and len(tested) > 1:
        _, (taken,), _ = divide(tested, [_SHARE], seed)
        images = {sample.image for sample in taken}
        good += [replace(sample, split="train") for sample in taken]
        asked = [sample for sample in asked if sample.image not in images]
    if len(good) < FEWEST_GOOD:
        raise UserError(
            f"there are {len(good)} good pictures to learn from, and {FEWEST_GOOD} are needed at least: "
            "add some as <category>/train/good, or only ask (iadr1 inspect, iadr1 evaluate)"
        )
    return good, asked


def write_drawn_defects(good: Sequence[Sample], folder: Path, seed: int) -> Path:
    """A data set in MVTec-AD's layout, made of good pictures alone; what lies in `folder` is replaced.

    Half of each category's pictures stay good (train/good); on the others a defect is drawn (`world.deface`), on each
    several times if there would be fewer than FEWEST_DEFECTIVE, types in turn. No picture is in both halves: beside
    itself as a reference its defect would be all too easy to find. All become SIDE x SIDE, so that no size tells.
    """
    shutil.rmtree(folder, ignore_errors=True)
    categories: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in good:
        categories[sample.category].append(sample)
    turns = max(1, -(-FEWEST_DEFECTIVE // max(1, sum(len(group) // 2 for group in categories.values()))))
    drawn = 0
    for category, group in sorted(categories.items()):
        order = random.Random(f"{seed}/{category}").sample(group, len(group))
        spoilt = order[: len(group) // 2]
        for number, sample in enumerate(order[len(spoilt) :]):
            small = open_image(sample.image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            _save(small, folder / category / "train" / "good" / f"{number:05d}.png")
        for sample in spoilt:
            for _ in range(turns):
                kind = DEFECT_TYPES[drawn % len(DEFECT_TYPES)]
                own_seed = zlib.crc32(f"{seed}/{drawn}/{Path(sample.image).name}".encode())
                picture, mask = deface(open_image(sample.image), own_seed, kind)
                name, drawn = f"{drawn:05d}", drawn + 1
                place = kind.replace(" ", "_")
                _save(picture, folder / category / "test" / place / f"{name}.png")
                _save(Image.fromarray(mask), folder / category / "ground_truth" / place / f"{name}_mask.png")
    return folder


def write_copies(samples: Sequence[Sample], folder: Path) -> Path:
    """Copies of pictures, as they are, with their masks, as a test in MVTec-AD's layout; `folder` is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, sample in enumerate(samples):
        kind = "good" if sample.label == "no" else (sample.type or "bad").replace("/", " ")
        image = Path(sample.image)
        copy = folder / sample.category / "test" / kind / f"{number:05d}_{image.stem}{image.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, copy)
        if sample.mask:
            mask = Image.fromarray(read_mask(sample.mask, sample.image))
            _save(mask, folder / sample.category / "ground_truth" / kind / f"{copy.stem}_mask.png")
    return folder


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, compress_level=0)  # all of one file size: it must not tell the label
