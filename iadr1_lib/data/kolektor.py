"""KolektorSDD cut into the thirds that the released test index names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from iadr1_lib.data.folders import GOOD
from iadr1_lib.data.images import open_image
from iadr1_lib.data.index import read_index, slashes
from iadr1_lib.data.masks import read_mask
from iadr1_lib.data.reading import load_samples
from iadr1_lib.errors import UserError


def cut_kolektor(native: str | Path, target: str | Path, index: str | Path | None = None) -> Path:
    """Cut native KolektorSDD pictures into the thirds that the released test index names.

    Every picture and its label picture are cut at a third and two thirds of their height (they stand about 500 x 1250
    pixels); 0 is the top. The released crops were not at hand: direction and rounding are ours.

    Args:
        native: folder with kosNN/PartN.jpg and PartN_label.bmp.
        target: folder to write to; ``load_samples(index, root=target)`` finds the thirds there.
        index: released index; then only its crops are cut, and lie where it files them. Without it a third is defective
            if its part of the mask marks anything.

    Returns:
        The folder SDD in MVTec-AD's layout: ``load_samples(folder, benchmark="SDD")`` reads it, too.

    Raises:
        UserError: `native` is no such folder, a picture or label cannot be read, or the index wants a missing picture.
    """
    folder = Path(target) / "SDD"
    filed = {name.stem: name.parent.name for name in map(Path, map(slashes, read_index(index)))} if index else None
    if filed and set(filed.values()) - {GOOD, "defect"}:
        raise UserError(f"{index} files pictures in other folders than good and defect: name the released SDD index")
    cut = set()
    for name, image, mask in _thirds(Path(native)):
        kind = filed.get(name) if filed else "defect" if mask.getbbox() else GOOD
        if kind:
            cut.add(name)
            _save(image, folder / "test" / kind / f"{name}.png")
            if kind != GOOD:
                _save(mask, folder / "ground_truth" / kind / f"{name}_mask.png")
    if missing := sorted(set(filed or ()) - cut):
        raise UserError(f"{native} lacks the pictures of {len(missing)} entries of {index}, such as {missing[0]}")
    return folder


def _thirds(native: Path) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """Name, picture and mask of every third."""
    for sample in load_samples(native, "kolektor-sdd"):
        image, path = open_image(sample.image).convert("L"), Path(sample.image)
        mask = Image.fromarray(read_mask(sample.mask)) if sample.mask else Image.new("1", image.size)
        for third in range(3):
            box = (0, round(image.height * third / 3), image.width, round(image.height * (third + 1) / 3))
            yield f"{path.parent.name}_{path.stem}_{third}", image.crop(box), mask.crop(box)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
