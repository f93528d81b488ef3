"""One table of samples from any source, and the checks a table must pass before it is used.

A *reader* is a function ``root -> list[Sample]`` that knows one native folder layout. Readers only list,
measure and read masks; pixels are opened later, by :func:`open_image`, one picture at a time. So a table of
thousands of pictures costs seconds and a few megabytes.

    samples = load_mvtec("MVTec-AD")           # every category
    samples = load_mvtec("MVTec-AD/screw")     # one category, the same rows
    problems = check_health(samples)           # what is wrong with the pictures, listed
    health_table(problems)                     # the same, counted by kind
    leakage(train, test)                       # pictures that stand in both
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
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
MAX_PIXELS = 89_478_485  # where Pillow begins to warn; a picture of this size takes 270 MB as RGB
GOOD = "good"  # MVTec-AD's folder name of normal pictures
MASK_NAMES = frozenset({"mask", "masks", "label", "labels", "ground_truth", "gt"})  # folders of masks
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
    """One finding about a data set: what kind (of KINDS), which file or folder, and a sentence for the reader."""

    kind: str
    image: str
    message: str


# Every kind of problem, in the order of a report. The first ones are found while a folder or file is read.
KINDS = {
    "outside": "a link or an entry that leads out of the folder; not followed",
    "broken link": "a link to nothing, or in a circle; not followed",
    "folder like a picture": "a folder that is called like a picture; not entered",
    "undecodable name": "a file name that is no text in this system's encoding; not read",
    "passed over": "a folder with pictures where the layout has none; not read",
    "misplaced": "defective pictures among the training pictures; not read",
    "no label": "a picture of which the data set does not say whether it is normal; not read",
    "broken row": "a row of an index or table that does not say what it must; not read",
    "unknown category": "entries of an index whose category its data set does not have",
    "in between": "a picture that its data set calls neither normal nor defective; not read",
    "unreadable": "a picture, mask or folder that cannot be read",
    "mask size": "a mask of another size than its picture",
    "empty mask": "a defective picture whose mask marks nothing",
    "defect without mask": "a defective picture without a mask",
    "good in path": "defective, but the path says good: the released evaluation counts it as normal",
    "good by accident": "normal, but the path says good only inside a longer word",
    "no good in path": "normal in an index, but the path lacks good: the released evaluation counts it as defective",
    "duplicate": "the same bytes as an earlier picture of the split",
    "duplicate across splits": "the same bytes as a picture of the other split",
    "duplicate across data sets": "the same bytes as a picture of another data set",
}
# While these stand, a table would be wrong or lack pictures: a strict reader refuses them.
_REFUSED = frozenset({"outside", "misplaced", "no label", "broken row", "unknown category", "unreadable"})


# Image -> kind of reference ("similar", "random") -> pictures that an index names for it, the best first.
Templates = dict[str, dict[str, list[Path]]]


class Table(list[Sample]):
    """A reader's rows; in `passed_over`, what it met and could make no row of; in `templates`, an index's references.

    A selection of rows is a plain list: give the whole table to :func:`check_health`.
    """

    def __init__(
        self,
        samples: Iterable[Sample] = (),
        passed_over: Iterable[Problem] = (),
        templates: Templates | None = None,
    ) -> None:
        super().__init__(samples)
        self.passed_over = list(passed_over)
        self.templates = templates or {}


def make_table(rows: Iterable[Sample | Problem], root: Path | None, strict: bool) -> Table:
    """A reader's rows as a table, with a :func:`survey` of the folder ``root`` where one is given.

    Raises:
        UserError: (strict) a problem that makes the table wrong, or a file that is not sound.
    """
    rows = list(rows)
    samples = [row for row in rows if isinstance(row, Sample)]
    problems = [row for row in rows if isinstance(row, Problem)]
    if root is not None:
        problems += survey(root, samples)
    if strict:
        refuse(problems)
        require_sound(samples)
    return Table(samples, problems)


def refuse(problems: Iterable[Problem]) -> None:
    """Raise UserError for the first problem that makes a table wrong; links in a circle and the like do not."""
    for problem in problems:
        if problem.kind in _REFUSED:
            raise UserError(problem.message)


# --- pictures and masks ---------------------------------------------------------------------------


def open_image(path: str | Path) -> Image.Image:
    """Read a picture of any size and mode as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid on white, grey values of more than 8 bits are scaled from
    the smallest camera depth that holds them (10, 12, 14 or 16 bits), and of several frames the first is
    taken.

    Raises:
        UserError: the file is missing, is no picture, is cut off, or has more than MAX_PIXELS.
    """
    return _decode(path, to_rgb)


def shrink(image: Image.Image, max_pixels: int | None) -> Image.Image:
    """The picture at no more than `max_pixels` pixels, its shape kept; None leaves it as it is.

    Nearest neighbour, as the released PA-SFT scales.
    """
    share = 1.0 if max_pixels is None else (max_pixels / (image.width * image.height)) ** 0.5
    if share >= 1:
        return image
    size = max(1, int(image.width * share)), max(1, int(image.height * share))
    return image.resize(size, Image.Resampling.NEAREST)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask as a bool array of height x width; whatever is above 0 (or above palette index 0) is
    defect.

    Masks come as 0/255, as 0/1 and with a class number per defect; "above 0" is right for all three.

    Raises:
        UserError: the file is missing, is no picture, is cut off, or has more than MAX_PIXELS.
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
    if not os.path.isfile(path):  # False, where Path.is_file raises: a folder that may not be searched
        raise UserError(f"There is no picture {path} that can be reached: check the path.")
    try:
        # Not by its path: Pillow would map a plain TIFF into memory, and garble it if it is to be rotated.
        with path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return read(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read: replace or remove the file.") from None
    except (Image.DecompressionBombError, MemoryError):
        raise UserError(f"{path} is too large to be opened safely: make it smaller first.") from None
    except PermissionError:
        raise UserError(f"{path} may not be read: change the file's permissions.") from None
    # A damaged file breaks Pillow's decoders in ways of every kind: OSError, SyntaxError, KeyError, struct.error, ...
    except Exception:
        raise UserError(f"{path} is cut off or damaged: copy or download it again, or remove it.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture of any mode as `open_image` gives it."""
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
    values = np.array(image, dtype=np.float32)  # one copy, changed in place: pictures may be large
    np.nan_to_num(values, copy=False)
    values.clip(min=0, out=values)
    top = float(values.max(initial=0))
    if image.mode == "F" and top <= 1:
        depth = 1.0
    else:
        depth = next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)
    values /= depth or 1.0
    values *= 255
    grey = Image.fromarray(np.round(values, out=values).astype(np.uint8))
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


def load_mvtec(root: str | Path, benchmark: str | None = None, *, strict: bool = True) -> Table:
    """Read a folder in MVTec-AD's layout (also MPDD's, and the mini world's).

        <root>/<category>/train/good/000.png
        <root>/<category>/test/good/000.png
        <root>/<category>/test/<defect_type>/000.png
        <root>/<category>/ground_truth/<defect_type>/000_mask.png   (or 000.png)

    Rows come in natural order (2 before 10) of category, split, type, file, the same on every machine. The
    table is of what the folder holds: a defective picture without a mask stays, with neither mask nor
    location. Files with other endings than pictures' and hidden files are not looked at; nothing outside the
    folder is read. The list is a :class:`Table`: it tells what was passed over.

    Args:
        root: a data set (folders of categories) or one category.
        benchmark: name of the data set; by default the name of the data set's folder.
        strict: raise at the first link out of the folder, unreadable picture or ill-fitting mask. False
            leaves them to :func:`check_health`.

    Raises:
        UserError: the folder is missing, is empty or has another layout; (strict) a file is no picture; a
            mask cannot be read or differs in size from its picture; a link leads out of the folder. Pictures
            are opened no further than their header: :func:`check_health` and :func:`open_image` find those
            that are cut off.
    """
    return make_table(read_mvtec(Path(root), benchmark), Path(root), strict)


def read_mvtec(root: Path, benchmark: str | None = None) -> Iterator[Sample | Problem]:
    """The rows of :func:`load_mvtec`, unchecked, and what the layout forbids."""
    folders = _category_folders(root)
    if benchmark is None:
        data_set = root.absolute().parent if folders == [root] else root.absolute()
        benchmark = Path(os.path.normpath(data_set)).name
    for folder in folders:
        yield from _read_category(folder, root, benchmark)


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
    refuse(survey(root))  # a link out of the folder may be why nothing is found
    if not any(_entries(root, root)):
        raise UserError(f"The folder {root} is empty: put a data set in MVTec-AD's layout there or name another.")
    raise UserError(
        f"{root} holds no pictures in MVTec-AD's layout: it needs <category>/test/good and "
        "<category>/test/<defect type>, or name a folder that has them."
    )


def _is_category(folder: Path, root: Path) -> bool:
    kinds = (kind for split in SPLITS for kind in list_folders(folder / split, root))
    return any(any(list_pictures(kind, root)) for kind in kinds)


def _read_category(folder: Path, root: Path, benchmark: str) -> Iterator[Sample | Problem]:
    # "." and ".." name a folder only once they are made absolute
    category = Path(os.path.normpath(folder.absolute())).name
    for split in SPLITS:
        for kind in list_folders(folder / split, root):
            good = kind.name.casefold() == GOOD
            if split == "train" and not good:
                told = f"{kind} lies beside train/good, where only good pictures belong: move it to test/."
                yield Problem("misplaced", str(kind), told)
                continue
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


# --- the folder's boundary ------------------------------------------------------------------------


def list_folders(folder: Path, root: Path) -> list[Path]:
    """Folders in ``folder`` in natural order, as far as they may be entered (see :func:`survey`)."""
    return [entry for entry in _entries(folder, root) if os.path.isdir(entry)]


def list_pictures(folder: Path, root: Path) -> list[Path]:
    """Pictures in ``folder`` by their names' endings, in natural order, as far as they may be read."""
    return [entry for entry in _entries(folder, root) if _is_picture_name(entry.name) and os.path.isfile(entry)]


def is_inside(path: str | Path, root: str | Path) -> bool:
    """True if ``path``, all links followed, lies in ``root``; it need not exist. Nothing else may be read."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):  # a name that no file can have
        return False


def survey(root: str | Path, samples: Iterable[Sample] = ()) -> list[Problem]:
    """What a folder holds that readers pass over, one line each.

    Links that lead out, to nothing or in a circle; folders called like pictures; names that are no text; folders
    that may not be listed; and folders with pictures of which no row of ``samples`` has a picture or a mask (not so
    those called masks, labels or ground_truth). Hidden files are not looked at, links are not followed.
    """
    root = Path(root)
    used = {os.path.dirname(path) for sample in samples for path in (sample.image, sample.mask) if path}
    used = {os.path.realpath(folder) for folder in used}
    problems, folders = [], [root]
    while folders:
        folder = folders.pop()
        try:
            entries = _visible(folder)
        except OSError as error:
            told = f"The folder {folder} cannot be listed ({error.strerror}): change its permissions or move it."
            problems.append(Problem("unreadable", str(folder), told))
            continue
        faults = {entry: _fault(entry, root) for entry in entries}
        problems += [fault for fault in faults.values() if fault]
        sound = [entry for entry, fault in faults.items() if not fault]
        folders += [entry for entry in reversed(sound) if os.path.isdir(entry) and not os.path.islink(entry)]
        pictures = sum(_is_picture_name(entry.name) for entry in sound)
        if used and pictures and os.path.realpath(folder) not in used and not _holds_masks(folder, root):
            told = f"{folder} holds {pictures} pictures where the layout has none: move them or leave them out."
            problems.append(Problem("passed over", str(folder), told))
    return problems


def _holds_masks(folder: Path, root: Path) -> bool:
    """True at and below a folder of masks: those of normal pictures are nobody's."""
    return bool(MASK_NAMES & {part.casefold() for part in folder.relative_to(root).parts})


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, in natural order, without hidden files; OSError where it may not be listed."""
    names = [name for name in os.listdir(folder) if not name.startswith(".")]
    return [folder / name for name in sorted(names, key=_natural)]


def _entries(folder: Path, root: Path) -> list[Path]:
    """What is in ``folder`` and may be read; nothing where the folder is missing, lies outside or is locked."""
    if not os.path.isdir(folder) or not is_inside(folder, root):
        return []
    try:
        return [entry for entry in _visible(folder) if not _fault(entry, root)]
    except OSError:  # the survey tells it
        return []


def _is_picture_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _fault(entry: Path, root: Path) -> Problem | None:
    """Why an entry of a folder is not followed, or None."""
    if not _is_text(entry.name):
        shown = os.fsencode(entry).decode("utf-8", "backslashreplace")
        return Problem("undecodable name", shown, f"{shown} has a name that is no text here: give it another.")
    if os.path.islink(entry):
        if not is_inside(entry, root):
            told = f"{entry} is a link that leads out of {root}: copy the files there or remove the link."
            return Problem("outside", str(entry), told)
        real = os.path.realpath(entry)
        if not os.path.exists(real) or Path(os.path.realpath(entry.parent)).is_relative_to(real):
            return Problem("broken link", str(entry), f"{entry} is a link to nothing or in a circle: remove it.")
    if _is_picture_name(entry.name) and os.path.isdir(entry):
        return Problem("folder like a picture", str(entry), f"{entry} is a folder with a picture's name: rename it.")
    return None


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that Python could only smuggle in; no table could hold them
        return False
    return True


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which "9" comes before "10"; the name itself decides between "1" and "01"."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part], name


# --- checks ---------------------------------------------------------------------------------------


def missing_label(samples: Iterable[Sample], where: str | Path) -> str | None:
    """A sentence that says what cannot be had where one of the two labels is missing; None where both are there.

    Raises:
        UserError: ``samples`` is empty; ``where`` is named in the sentence.
    """
    labels = {sample.label for sample in samples}
    if not labels:
        raise UserError(f"{where} has no pictures to score: put them into test/good and test/<defect type>.")
    if "no" not in labels:
        return f"{where} has no good pictures (<category>/test/good): only the share of defects found can be had."
    if "yes" not in labels:
        return f"{where} has no defective pictures (<category>/test/<type>): only the share of good ones accepted."
    return None


def check_health(samples: Iterable[Sample]) -> list[Problem]:
    """Decode every picture and mask and list what is wrong. Reads the samples' files, so it takes a while.

    Pictures are opened one at a time and only hashes are kept. A :class:`Table` brings along what its reader passed
    over. KINDS says which kinds there are, :func:`health_table` counts them. Nothing is raised.
    """
    problems = list(samples.passed_over) if isinstance(samples, Table) else []
    samples = list(samples)
    problems += [problem for sample in samples for problem in sample_problems(sample)]
    return problems + _duplicates(samples)


def health_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Problems counted: one row per kind that occurs, with columns kind, count, meaning and example (a path)."""
    groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
    for problem in problems:
        groups.setdefault(problem.kind, []).append(problem)
    rows = [(kind, len(found), KINDS.get(kind, ""), found[0].image) for kind, found in groups.items() if found]
    return pd.DataFrame(rows, columns=["kind", "count", "meaning", "example"])


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


def sample_problems(sample: Sample) -> list[Problem]:
    """What is wrong with one sample's picture, mask and path; both files are decoded."""
    problems = _path_problems(sample)
    size: tuple[int, int] | None = None
    try:
        size = open_image(sample.image).size
    except UserError as error:
        problems.append(Problem("unreadable", sample.image, str(error)))
    if sample.label == "no":
        return problems
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


def _path_problems(sample: Sample) -> list[Problem]:
    """The word "good" in the path against the label.

    The released evaluation takes the label from that word alone, wherever it stands. The readers here compare whole
    folder names, but rows from elsewhere may owe their label to a part of a word ("goodyear").
    """
    parts = _told_parts(sample)
    says_good = any(GOOD in part for part in parts)
    found: tuple[str, str] | None = None
    if sample.label == "yes" and says_good:
        found = "good in path", "is defective, but its path says good: the released evaluation counts it as normal"
    elif sample.label == "no" and says_good and GOOD not in parts[:-1]:
        found = "good by accident", "is filed as normal and says good only inside a longer word: check its label"
    elif sample.label == "no" and not says_good and sample.source == "index":
        found = "no good in path", "is normal, but its path does not say good: the released evaluation counts a defect"
    return [Problem(found[0], sample.image, f"{sample.image} {found[1]}.")] if found else []


def _told_parts(sample: Sample) -> tuple[str, ...]:
    """The path in lower case, from the data set's or else the category's folder on: the rest is the user's affair."""
    parts = tuple(part.casefold() for part in Path(sample.image).parts)
    for name in (sample.benchmark.casefold(), sample.category.casefold()):
        if name in parts[:-1]:
            return parts[len(parts) - 1 - parts[::-1].index(name) :]
    return parts


def require_present(samples: Iterable[Sample]) -> None:
    """Raise one UserError that counts the pictures which are not on disk and names the first."""
    samples = list(samples)
    missing = [sample.image for sample in samples if not os.path.isfile(sample.image)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(samples)} pictures cannot be reached on disk, the first is {missing[0]}: "
            "put them there, or name the folder that their paths start from."
        )


def require_sound(samples: list[Sample]) -> None:
    """Raise for pictures that are missing, and for the first that cannot be read or whose mask has another size."""
    require_present(samples)
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
        with contextlib.suppress(OSError, ValueError):  # a missing or locked picture is "unreadable", no duplicate
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
