"""One table of samples from any source, and the checks a table must pass before it is used.

A *reader* is a function ``root -> list[Sample]`` that knows one native folder layout. Readers only list,
measure and read masks; pixels are opened later, by :func:`open_image`, one picture at a time. So a table of
thousands of pictures costs seconds and a few megabytes.

    samples = load_mvtec("MVTec-AD")           # every category
    samples = load_mvtec("MVTec-AD/screw")     # one category, the same rows
    check_health(samples)                      # what is wrong with the pictures, counted and listed
    leakage(train, test)                       # pictures that stand in both
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask
from iadr1_lib.runs import UserError, write_text

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"  # MVTec-AD's folder name of normal pictures
T = TypeVar("T")
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclass(frozen=True)
class Sample:
    """One picture and all that is known to be true of it.

    Attributes:
        image: path of the picture, below the root as it was given.
        label: "yes" if the picture shows a defect, "no" if it is normal.
        mask: path of the mask (above 0 = defect, same size as the picture); None if there is none.
        type: defect type; one of ``answer.DEFECT_TYPES`` where the data set uses that name, else its own
            name.
        location: cell of the 3x3 grid, from the mask; None without a mask.
        category: kind of part or surface, such as "screw".
        benchmark: data set, such as "MVTec-AD".
        split: "train" or "test", as the data set files it.
        source: the reader that made this row.
    """

    image: str
    label: Literal["yes", "no"]
    mask: str | None
    type: str | None
    location: str | None
    category: str
    benchmark: str
    split: Literal["train", "test"]
    source: str


@dataclass(frozen=True)
class Problem:
    """One finding of :func:`check_health`: what kind, which picture, and a sentence for the reader."""

    kind: str
    image: str
    message: str


# --- pictures and masks ---------------------------------------------------------------------------


def open_image(path: str | Path) -> Image.Image:
    """Read a picture of any size and mode as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid on white, grey values of more than 8 bits are scaled from
    the smallest camera depth that holds them (10, 12, 14 or 16 bits), and of several frames the first is
    taken.

    Raises:
        UserError: the file is missing, is no picture, or is cut off.
    """
    return _decode(path, _to_rgb)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as a bool array of height x width; whatever is above 0 (or above palette index 0) is
    defect.

    Masks come as 0/255, as 0/1 and with a class number per defect; "above 0" is right for all three.

    Raises:
        UserError: the file is missing, is no picture, or is cut off.
    """
    return _decode(path, _to_mask)


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels as :func:`open_image` would give them, from the file's header alone."""
    return _decode(path, _upright_size)


def content_hash(path: str | Path) -> str:
    """SHA-256 of the file's bytes, as hex. The same pixels saved in another format hash differently."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    """Open ``path`` and apply ``read``; every way in which that fails becomes one sentence."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no picture {path}: check the path.")
    try:
        # Not by its path: Pillow would map a plain TIFF into memory, and garble it if it is to be rotated.
        with path.open("rb") as file, Image.open(file) as image:
            return read(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read: replace or remove the file.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} is too large to be opened safely: make it smaller first.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: change the file's permissions.") from None
    # Pillow reports damage by whichever of these its decoder met first.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error):
        raise UserError(f"{path} is cut off or damaged: copy or download it again, or remove it.") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # before its EXIF is asked for: loading a TIFF rotates it and drops the mark
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of more than 8 bits, or floats, to 8 bits. Pillow's own conversion would clip at 255."""
    exif = image.getexif()
    values = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(min=0)
    top = values.max(initial=0)
    if image.mode == "F" and top <= 1:
        depth = 1.0
    else:
        depth = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)
    grey = Image.fromarray(np.round(values * 255 / depth).astype(np.uint8))
    grey.info["exif"] = exif.tobytes()  # the rotation is still to come
    return grey


def _to_mask(image: Image.Image) -> np.ndarray:
    image.load()
    values = np.asarray(ImageOps.exif_transpose(image))
    if values.ndim == 3:
        colours = values.shape[2] - (1 if image.mode in {"LA", "RGBA", "PA", "La", "RGBa"} else 0)
        values = values[..., :colours].max(axis=2)
    return values > 0


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if image.format == "PNG" and "exif" not in image.info:
        return width, height  # to be asked for its EXIF, Pillow would decode the whole picture
    lies = image.getexif().get(0x0112, 1) in {5, 6, 7, 8}  # EXIF orientations that lie on their side
    turned = lies and image.format != "TIFF"  # Pillow's TIFF reader gives the upright size itself
    return (height, width) if turned else (width, height)


# --- MVTec-AD's layout ----------------------------------------------------------------------------


def load_mvtec(root: str | Path, benchmark: str | None = None, *, strict: bool = True) -> list[Sample]:
    """Read a folder in MVTec-AD's layout (also MPDD's, and the mini world's).

        <root>/<category>/train/good/000.png
        <root>/<category>/test/good/000.png
        <root>/<category>/test/<defect_type>/000.png
        <root>/<category>/ground_truth/<defect_type>/000_mask.png   (or 000.png)

    Rows come in natural order (2 before 10) of category, split, type, file, the same on every machine. The
    table is of what the folder holds: a defective picture without a mask stays, with neither mask nor
    location. Files with other endings than pictures' and hidden files are not looked at; nothing outside the
    folder is read.

    Args:
        root: a data set (folders of categories) or one category.
        benchmark: name of the data set; by default the name of the data set's folder.
        strict: raise at the first unreadable picture or ill-fitting mask. False leaves them to
            :func:`check_health`.

    Raises:
        UserError: the folder is missing, is empty or has another layout; a file is no picture; a mask cannot
            be read or differs in size from its picture; a link leads out of the folder. Pictures are opened
            no further than their header: :func:`check_health` and :func:`open_image` find those that are cut
            off.
    """
    root = Path(root)
    folders = _category_folders(root)
    if benchmark is None:
        data_set = root.absolute().parent if folders == [root] else root.absolute()
        benchmark = Path(os.path.normpath(data_set)).name
    samples = [sample for folder in folders for sample in _read_category(folder, root, benchmark)]
    if strict:
        require_sound(samples)
    return samples


def _category_folders(root: Path) -> list[Path]:
    """The root itself if it is a category, else the categories below it."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: check the path of the data set.")
    if _is_category(root, root):
        return [root]
    children = list(list_folders(root, root))
    categories = [child for child in children if _is_category(child, root)]
    if categories:
        return categories
    deeper = [child for child in children if any(_is_category(below, root) for below in list_folders(child, root))]
    if deeper:
        raise UserError(f"{root} holds several data sets: name one of them, such as {deeper[0]}.")
    if not any(_entries(root, root)):
        raise UserError(f"The folder {root} is empty: put a data set in MVTec-AD's layout there or name another.")
    raise UserError(
        f"{root} holds no pictures in MVTec-AD's layout: it needs <category>/test/good and "
        "<category>/test/<defect type>, or name a folder that has them."
    )


def _is_category(folder: Path, root: Path) -> bool:
    kinds = (kind for split in SPLITS for kind in list_folders(folder / split, root))
    return any(any(list_pictures(kind, root)) for kind in kinds)


def _read_category(folder: Path, root: Path, benchmark: str) -> Iterator[Sample]:
    # "." and ".." name a folder only once they are made absolute
    category = Path(os.path.normpath(folder.absolute())).name
    for split in SPLITS:
        for kind in list_folders(folder / split, root):
            good = kind.name.casefold() == GOOD
            if split == "train" and not good:
                raise UserError(f"{kind} lies beside train/good, where only good pictures belong: move it to test/.")
            masks = {} if good else _masks(folder / "ground_truth" / kind.name, root)
            for picture in list_pictures(kind, root):
                mask = masks.get(f"{picture.stem}_mask") or masks.get(picture.stem)
                yield Sample(
                    image=str(picture),
                    label="no" if good else "yes",
                    mask=str(mask) if mask else None,
                    type=None if good else _type_name(kind.name),
                    location=mask_location(mask) if mask else None,
                    category=category,
                    benchmark=benchmark,
                    split=split,
                    source="mvtec",
                )


def _masks(folder: Path, root: Path) -> dict[str, Path]:
    return {path.stem: path for path in list_pictures(folder, root)}


def _type_name(folder_name: str) -> str:
    """A folder's name as a defect type ("missing_parts" -> "missing parts"); a data set's own names stay."""
    name = folder_name.replace("_", " ")
    return name.lower() if name.lower() in DEFECT_TYPES else name


def mask_location(mask: Path) -> str | None:
    """The mask's grid cell; None for an empty mask and for one that cannot be read (the checks name both)."""
    try:
        pixels = read_mask(mask)
    except UserError:
        return None
    return cell_of_mask(pixels) if pixels.any() else None


def list_folders(folder: Path, root: Path) -> list[Path]:
    return [entry for entry in _entries(folder, root) if entry.is_dir()]


def list_pictures(folder: Path, root: Path) -> list[Path]:
    return [entry for entry in _entries(folder, root) if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file()]


def _entries(folder: Path, root: Path) -> list[Path]:
    """What is in ``folder``, in natural order, without hidden files and links that run in a circle."""
    if not folder.is_dir():
        return []
    _require_inside(folder, root)
    seen = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    return sorted((entry for entry in seen if not _is_loop(entry, root)), key=lambda entry: _natural(entry.name))


def _is_loop(entry: Path, root: Path) -> bool:
    """True for a link to nothing, to itself or to a folder that it lies in."""
    if not entry.is_symlink():
        return False
    _require_inside(entry, root)
    return not entry.exists() or entry.parent.resolve().is_relative_to(os.path.realpath(entry))


def _require_inside(path: Path, root: Path) -> None:
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{path} is a link that leads out of {root}: copy the files there or remove the link.")


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which "9" comes before "10"; the name itself decides between "1" and "01"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], name


# --- checks ---------------------------------------------------------------------------------------


def require_both_labels(samples: Iterable[Sample], where: str | Path) -> None:
    """Balanced accuracy needs both labels.

    Raises:
        UserError: ``samples`` has no normal or no defective picture; ``where`` is named in the sentence.
    """
    labels = {sample.label for sample in samples}
    if not labels:
        raise UserError(f"{where} has no pictures to score: put them into test/good and test/<defect type>.")
    if "no" not in labels:
        raise UserError(f"{where} has no good pictures to score: put some into <category>/test/good.")
    if "yes" not in labels:
        raise UserError(f"{where} has no defective pictures to score: put some into <category>/test/<defect type>.")


def check_health(samples: Iterable[Sample]) -> list[Problem]:
    """Decode every picture and mask and list what is wrong. Reads the samples' files, so it takes a while.

    Kinds: "unreadable" (picture or mask), "mask size" (differs from its picture), "empty mask" and "defect
    without mask" and "good in path" (defective pictures only), "duplicate" (same bytes as an earlier picture of the
    split), "duplicate across splits" and "duplicate across data sets". ``Counter(problem.kind for problem in
    problems)`` counts them.
    """
    samples = list(samples)
    problems = [problem for sample in samples for problem in _sample_problems(sample)]
    return problems + _duplicates(samples)


def leakage(first: Iterable[Sample], second: Iterable[Sample]) -> dict[str, tuple[list[str], list[str]]]:
    """Pictures that stand in both tables (training and test, say): content hash -> their paths in each.

    An empty result means that no file of one is, byte for byte, a file of the other.
    """
    left, right = _by_content(first), _by_content(second)
    return {
        digest: ([sample.image for sample in group], [sample.image for sample in right[digest]])
        for digest, group in left.items()
        if digest in right
    }


def _sample_problems(sample: Sample) -> list[Problem]:
    problems = []
    size: tuple[int, int] | None = None
    try:
        size = open_image(sample.image).size
    except UserError as error:
        problems.append(Problem("unreadable", sample.image, str(error)))
    if sample.label == "no":
        return problems
    if GOOD in sample.image.casefold():
        message = f"{sample.image} is defective, but its path says good: the released evaluation counts it as normal."
        problems.append(Problem("good in path", sample.image, message))
    if sample.mask is None:
        return [*problems, Problem("defect without mask", sample.image, f"{sample.image} has no mask.")]
    try:
        mask = read_mask(sample.mask)
    except UserError as error:
        return [*problems, Problem("unreadable", sample.image, str(error))]
    if size and size != mask.shape[::-1]:
        problems.append(_size_problem(sample, size, (mask.shape[1], mask.shape[0])))
    if not mask.any():
        problems.append(Problem("empty mask", sample.image, f"The mask {sample.mask} marks nothing."))
    return problems


def require_sound(samples: list[Sample]) -> None:
    """Raise for the first picture or mask whose header cannot be read, or whose sizes do not agree."""
    for sample in samples:
        size = image_size(sample.image)
        if sample.mask is None:
            continue
        if sample.location is None:
            read_mask(sample.mask)  # the reader found no cell: tell a damaged mask from an empty one
        mask_size = image_size(sample.mask)
        if size != mask_size:
            raise UserError(_size_problem(sample, size, mask_size).message)


def _size_problem(sample: Sample, size: tuple[int, int], mask_size: tuple[int, int]) -> Problem:
    message = (
        f"The mask {sample.mask} has {mask_size[0]} x {mask_size[1]} pixels and its picture "
        f"{size[0]} x {size[1]}: replace the mask by one of the picture's size."
    )
    return Problem("mask size", sample.image, message)


def _by_content(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if Path(sample.image).is_file():  # a missing picture is "unreadable", not a duplicate
            groups[content_hash(sample.image)].append(sample)
    return groups


def _duplicates(samples: list[Sample]) -> list[Problem]:
    problems = []
    for first, *others in _by_content(samples).values():
        for other in others:
            kind = "duplicate" if other.split == first.split else "duplicate across splits"
            kind = kind if other.benchmark == first.benchmark else "duplicate across data sets"
            problems.append(Problem(kind, other.image, f"{other.image} has the same content as {first.image}."))
    return problems


# --- tables and files -----------------------------------------------------------------------------


def samples_table(samples: Iterable[Sample]) -> pd.DataFrame:
    """One row per sample, one column per field of :class:`Sample`."""
    return pd.DataFrame([asdict(sample) for sample in samples], columns=[field.name for field in fields(Sample)])


def counts(samples: Iterable[Sample]) -> pd.DataFrame:
    """Pictures per benchmark, category and split (columns good, defective, with mask), in order."""
    groups: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for sample in samples:
        tally = groups[sample.benchmark, sample.category, sample.split]
        tally["good" if sample.label == "no" else "defective"] += 1
        tally["with mask"] += sample.mask is not None
    columns = ("good", "defective", "with mask")
    rows = [(*group, *(tally[column] for column in columns)) for group, tally in groups.items()]
    return pd.DataFrame(rows, columns=["benchmark", "category", "split", *columns])


def write_samples(samples: Iterable[Sample], path: str | Path) -> Path:
    """Write one JSON object per line; the file appears whole or not at all."""
    return write_text(Path(path), "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples))


def read_samples(path: str | Path) -> list[Sample]:
    """Read what :func:`write_samples` wrote.

    Raises:
        UserError: the file is missing, or a line is not a sample (the line is named).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no table of samples {path}: write it first with write_samples.")
    samples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                samples.append(Sample(**json.loads(line)))
            except (ValueError, TypeError):
                raise UserError(f"Line {number} of {path} is not a sample: write the table again.") from None
    return samples
