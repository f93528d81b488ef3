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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from iadr1_lib.answer import DEFECT_TYPES, cell_of_mask
from iadr1_lib.errors import UserError
from iadr1_lib.files import write_text
from iadr1_lib.records import Sample

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 89_478_485  # where Pillow begins to warn; a picture of this size takes 270 MB as RGB
# Sound masks of real sets mark up to 63 % of their picture (tests/test_sources.py looks at all that are at hand),
# inverted ones all but the defect.
MOST = 0.75
GOOD = "good"  # MVTec-AD's folder name of normal pictures
# What public sets call their folders: of normal pictures, of defective ones (words that say only that), and of masks.
# Case and whether "_", "-" or a blank stands between words do not count. A kind of defect may have any other name.
_FOLDER_NAMES = {
    "good": "good ok okay normal io free clean flawless intact pass passed defect_free defectfree anomaly_free"
    " no_defect no_defects no_anomaly non_defect non_defective nondefective not_defective non_anomalous",
    "bad": "bad ko ng nok nio not_ok not_good no_good def defect defects defective anomaly anomalies anomalous abnormal"
    " fail failed faulty reject rejected",
    "masks": "mask masks label labels ground_truth ground_truths groundtruth gt gts annotation annotations segmentation"
    " segmentations seg segs anomaly_mask anomaly_masks defect_mask defect_masks pixel_labels",
}
_SAYS = {name: meaning for meaning, names in _FOLDER_NAMES.items() for name in names.split()}
T = TypeVar("T")
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "test": "test", "test_public": "test"}  # the last: MVTec AD 2


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
    "mask marks most": "a mask that marks most of its picture, as an inverted one does; says no place",
    "turned picture": "a square picture with a mark that turns it, and a mask without: whether they fit cannot be told",
    "ambiguous mask": "a defective picture whose mask may be another's, by its name; read without one",
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
    share_depth(sample.image for sample in samples)
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
    the smallest camera depth (10, 12, 14 or 16 bits) that holds the data set (see :func:`share_depth`) or else
    the picture, and of several frames the first is taken.

    Raises:
        UserError: the file is missing, is no picture, is cut off, or has more than MAX_PIXELS.
    """
    return _decode(path, lambda image: to_rgb(image, depth_of(path)))


_DEPTHS: dict[str, float] = {}  # path of a grey picture of more than 8 bits -> the value that is white in its data set


def share_depth(paths: Iterable[str | Path]) -> None:
    """Have a data set's grey pictures of more than 8 bits scaled alike, whatever the brightest spot of each.

    The readers call it with all pictures of a data set; whoever has only paths does so before opening the first.
    Pictures of 8 bits cost a look at the header. Other processes know nothing of it: see :func:`known_depths`.
    """
    tops: dict[str, tuple[bool, float]] = {}
    for path in paths:
        with contextlib.suppress(UserError):  # told when it is opened
            if top := _decode(path, lambda image: _deep_top(image) if _is_deep(image) else None):
                tops[os.path.abspath(path)] = top
    for floats in (False, True):
        alike = {path: top for path, (is_float, top) in tops.items() if is_float == floats}
        _DEPTHS.update(dict.fromkeys(alike, _depth(floats, max(alike.values(), default=0))))


def depth_of(path: str | Path) -> float | None:
    """The value that is white in a picture's data set, as :func:`share_depth` found it; None for one of 8 bits."""
    return _DEPTHS.get(os.path.abspath(path))


def known_depths() -> dict[str, float]:
    """What :func:`share_depth` found, for another process to :func:`take_depths` before it opens pictures."""
    return dict(_DEPTHS)


def take_depths(depths: Mapping[str, float]) -> None:
    """Know what another process found, or what was noted when the data set was read."""
    _DEPTHS.update({os.path.abspath(path): depth for path, depth in depths.items()})


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
    """Read a mask as a bool array of height x width: whatever is not black, and not transparent, is defect.

    Masks come as 0/255, as 0/1 and with a class number per defect; "above 0" is right for all three. In a lossy file
    (JPEG, lossy WebP) it is above half of the largest value, since compression leaves a halo. Palettes are read as
    their colours. Where some is transparent and the rest black, whatever is not transparent is defect. Of a folder, the
    masks are united.

    Raises:
        UserError: a file is missing, is no picture, is cut off, or has more than MAX_PIXELS; the masks of a folder are
            of several sizes.
    """
    marked = [_decode(file, _to_mask) for file in mask_files(path)]
    if len({pixels.shape for pixels in marked}) > 1:
        raise UserError(f"The masks in {path} are of several sizes: replace those of another size than the picture.")
    return np.asarray(np.logical_or.reduce(marked))


def mask_files(path: str | Path) -> list[Path]:
    """The files of a sample's mask: itself, or all pictures of a folder.

    Raises UserError for a folder without pictures or with links that lead out of it.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    refuse(fault for entry in _visible(path) if (fault := _fault(entry, path)))
    files = list_pictures(path, path)
    if not files:
        raise UserError(f"There is no mask in the folder {path}: put it there or remove the folder.")
    return files


def says_where(mask: np.ndarray) -> bool:
    """False for a mask that marks nothing or MOST of its picture: it says no place."""
    return bool(0 < mask.mean() <= MOST)


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


def to_rgb(image: Image.Image, depth: float | None = None) -> Image.Image:
    """An opened picture of any mode as :func:`open_image` gives it; ``depth``: the value that is white, if known."""
    image.load()  # before its EXIF is asked for: loading a TIFF rotates it and drops the mark
    if _is_deep(image):
        image = _to_eight_bits(image, depth)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        on_white = Image.new("RGBA", image.size, "white")
        on_white.alpha_composite(image.convert("RGBA"))
        image = on_white
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_eight_bits(image: Image.Image, depth: float | None) -> Image.Image:
    """Grey values of more than 8 bits, or floats, to 8 bits. Pillow's own conversion would clip at 255."""
    exif = image.getexif()
    values = np.array(image, dtype=np.float32)  # one copy, changed in place: pictures may be large
    depth = depth or _depth(*_deep_top(image))
    np.nan_to_num(values, copy=False)
    values.clip(0, depth, out=values)
    values /= depth or 1.0
    values *= 255
    grey = Image.fromarray(np.round(values, out=values).astype(np.uint8))
    grey.info["exif"] = exif.tobytes()  # the rotation is still to come
    return grey


def _deep_top(image: Image.Image) -> tuple[bool, float]:
    """Of a grey picture of more than 8 bits whether it is of floats, and its highest value or what its TIFF states."""
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # BitsPerSample
    values = np.asarray(image, dtype=np.float32)
    top = 2.0**bits - 1 if bits < 16 else float(values.max(initial=0, where=np.isfinite(values)))
    return image.mode == "F", top


def _depth(floats: bool, top: float) -> float:
    """The value that is white, where none is above `top`."""
    if floats and top <= 1:
        return 1.0
    return next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if top < 2**bits), top)


def _to_mask(image: Image.Image) -> np.ndarray:
    lossy = _is_lossy(image)  # asked first: once loaded, the file is closed
    image.load()
    image = ImageOps.exif_transpose(image)
    if _is_deep(image) or (image.mode in {"1", "L"} and not image.has_transparency_data):
        return _above(np.asarray(image), lossy)
    layers = np.asarray(image.convert("RGBA"))
    colours, visible = layers[..., :3].max(axis=2), _above(layers[..., 3], lossy)
    if image.mode == "P" and not np.ptp(colours) and np.ptp(np.asarray(image)):
        colours = np.asarray(image)  # the palette tells nothing, its numbers do
    marked = _above(colours, lossy)
    if visible.all() or not visible.any():  # transparency tells nothing
        return marked
    return marked & visible if (marked & visible).any() else visible


def _above(values: np.ndarray, lossy: bool) -> np.ndarray:
    return np.asarray(values > (values.max(initial=0) / 2 if lossy else 0))


def _is_lossy(image: Image.Image) -> bool:
    """Whether a file not yet loaded was compressed with loss, as its format says."""
    if image.format == "WEBP" and (file := getattr(image, "fp", None)):
        file.seek(0)
        return b"VP8 " in file.read()  # the chunk of lossy pictures; VP8L is the other kind
    return image.format in {"JPEG", "MPO"} or image.info.get("compression") in {"jpeg", "tiff_jpeg"}


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
        <root>/<category>/ground_truth/<defect_type>/000_mask.png   (or 000.png, or 000/*.png)

    Folders called ok, normal and the like are as good, those called masks, gt and the like as
    ground_truth; test_public (MVTec AD 2) is as test and may hold its own ground_truth.

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
    if is_category(root, root):
        return [root]
    children = list(list_folders(root, root))
    categories = [child for child in children if is_category(child, root)]
    if categories:
        return categories
    deeper = [child for child in children if any(is_category(below, root) for below in list_folders(child, root))]
    if deeper:
        raise UserError(f"{root} holds several data sets: name one of them, such as {deeper[0]}.")
    refuse(survey(root))  # a link out of the folder may be why nothing is found
    if not any(_entries(root, root)):
        raise UserError(f"The folder {root} is empty: put a data set in MVTec-AD's layout there or name another.")
    raise UserError(
        f"{root} holds no pictures in MVTec-AD's layout: it needs <category>/test/good and "
        "<category>/test/<defect type>, or name a folder that has them."
    )


def is_category(folder: Path, root: Path) -> bool:
    """True for a folder with pictures where MVTec-AD's layout has them."""
    return any(list_pictures(kind, root) for split in _SPLIT_FOLDERS for kind in list_folders(folder / split, root))


def _read_category(folder: Path, root: Path, benchmark: str) -> Iterator[Sample | Problem]:
    for name, split in _SPLIT_FOLDERS.items():
        places = [*mask_folders(folder / name, root), *mask_folders(folder, root)]
        kinds = kinds_in(folder / name, places, root)
        misplaced = [kind for kind in kinds if split == "train" and says(kind.name) != "good"]
        for kind in misplaced:
            told = f"{kind} lies in train/, where only good pictures belong: call it good, or move it to test/."
            yield Problem("misplaced", str(kind), told)
        kinds = [kind for kind in kinds if kind not in misplaced]
        yield from read_kinds(kinds, places, root, split, folder_name(folder), benchmark, "mvtec", _type_name)


def folder_name(folder: Path) -> str:
    """A folder's own name; "." and ".." have one only once they are made absolute."""
    return os.path.basename(os.path.abspath(folder))


def _type_name(folder_name: str) -> str:
    """A folder's name as a defect type ("missing_parts" -> "missing parts"); a data set's own names stay."""
    name = folder_name.replace("_", " ")
    return name.lower() if name.lower() in DEFECT_TYPES else name


# --- folders of one kind of picture each, and their masks -------------------------------------------


def says(name: str) -> str | None:
    """Whether a folder's name says that its pictures are "good", are "bad" (and no more), or are "masks".

    A number in it says nothing more: "good_2", "1_bad".
    """
    plain = re.sub(r"[\W_]+", "_", name.casefold())
    return _SAYS.get(plain) or _SAYS.get(re.sub(r"[\d_]+", "_", plain).strip("_"))


def mask_folders(folder: Path, root: Path) -> list[Path]:
    """The folders of masks in a folder."""
    return [entry for entry in list_folders(folder, root) if says(entry.name) == "masks"]


def kinds_in(folder: Path, places: Iterable[Path], root: Path) -> list[Path]:
    """The folders of pictures in a folder: all but those of masks (also crack_masks beside crack).

    A kind "label" with masks of its own is one, too.
    """
    places, folders = list(places), list_folders(folder, root)
    names = {entry.name for entry in folders}
    return [
        kind
        for kind in folders
        if (says(kind.name) != "masks" or any(os.path.isdir(place / kind.name) for place in places))
        and not (_shown_stem(kind) != kind.name and _shown_stem(kind) in names)
    ]


def read_kinds(
    kinds: Iterable[Path],
    places: Iterable[Path],
    root: Path,
    split: Split,
    category: str,
    benchmark: str,
    source: str,
    type_of: Callable[[str], str | None],
) -> Iterator[Sample | Problem]:
    """The pictures of folders that are each of one kind, normal by name or else defective, with their masks.

    Masks lie in <place>/<kind>, in a folder of masks within the kind, beside the pictures, in <kind>_masks beside the
    kind, or in <place> itself.
    """
    pictures: dict[Path, list[Path]] = {}
    masks: dict[Path, list[Path]] = {}  # by the folder that they are taken from
    shown: dict[Path, list[Path]] = defaultdict(list)  # defective pictures by that folder
    for kind in kinds:
        files = list_pictures(kind, root)
        stems = {file.stem for file in files}
        beside = {file: None for file in files if _shown_stem(file) != file.stem and _shown_stem(file) in stems}
        pictures[kind] = [file for file in files if file not in beside]
        own = [entry for entry in list_folders(kind.parent, root) if _shown_stem(entry) == kind.name != entry.name]
        choices = [*(place / kind.name for place in places), *mask_folders(kind, root), kind, *own, *places]
        if says(kind.name) != "good":
            for choice in choices:
                masks[choice] = list(beside) if choice == kind else masks_in(choice, root)
                if masks[choice]:
                    shown[choice] += pictures[kind]
                    break
    matched: dict[Path, Path] = {}
    for place, group in shown.items():
        found, unclear = match_masks(group, masks[place])
        matched |= found
        yield from unclear
    for kind, files in pictures.items():
        label: Literal["yes", "no"] = "no" if says(kind.name) == "good" else "yes"
        for file in files:
            told = type_of(kind.name)
            yield make_sample(file, label, matched.get(file), told, category, benchmark, split, source)


def masks_in(folder: Path, root: Path) -> list[Path]:
    """A folder's masks: its pictures, and its folders that hold several for one picture."""
    several = [entry for entry in list_folders(folder, root) if list_pictures(entry, root)]
    return [*list_pictures(folder, root), *several]


def match_masks(pictures: Iterable[Path], masks: Iterable[Path]) -> tuple[dict[Path, Path], list[Problem]]:
    """Picture -> mask by their names, 7.png -> 7.png, 7_mask.png or the folder 7; and the pictures where that is open.

    Open is what fits several: then the mask of one defect would be told of another.
    """
    pictures = list(pictures)
    named: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        named[_shown_stem(mask)].append(mask)
    shared = Counter(picture.stem for picture in pictures)
    matched, unclear = {}, []
    for picture in pictures:
        fitting = named.get(picture.stem, [])
        fitting = [mask for mask in fitting if mask.stem != picture.stem] or fitting  # 7_mask.png, if there is one
        if len(fitting) == shared[picture.stem] == 1:
            matched[picture] = fitting[0]
        elif fitting:
            told = f"{picture} and the mask {fitting[0]} cannot be matched: several have that name; file masks by kind."
            unclear.append(Problem("ambiguous mask", str(picture), told))
    return matched, unclear


def _shown_stem(mask: Path) -> str:
    """The stem of the picture that a mask is of: 7 of 7.png, 7_mask.png, 7_label.bmp, and of a folder 7."""
    name = mask.stem if _is_picture_name(mask.name) else mask.name
    stem, _, word = name.rpartition("_")
    return stem if stem and says(word) == "masks" else name


def make_sample(
    picture: Path,
    label: Literal["yes", "no"],
    mask: Path | None,
    kind: str | None,
    category: str,
    benchmark: str,
    split: Split,
    source: str,
) -> Sample:
    """A picture's row; mask and type of a normal one are dropped."""
    if label == "no":
        return Sample(str(picture), label, None, None, None, category, benchmark, split, source)
    place = mask_location(mask) if mask else None
    return Sample(str(picture), label, str(mask) if mask else None, kind, place, category, benchmark, split, source)


def mask_location(mask: Path) -> str | None:
    """The mask's grid cell; None for a mask that says no place or cannot be read (the checks name both)."""
    try:
        pixels = read_mask(mask)
    except UserError:
        return None
    return cell_of_mask(pixels) if says_where(pixels) else None


def without_place(samples: Iterable[Sample]) -> list[Sample]:
    """Defective pictures without a mask that says where: their location cannot be scored. No file is opened."""
    return [sample for sample in samples if sample.label == "yes" and sample.location is None]


# --- the folder's boundary ------------------------------------------------------------------------


def list_folders(folder: Path, root: Path) -> list[Path]:
    """Folders in ``folder`` in natural order, as far as they may be entered (see :func:`survey`)."""
    return [entry for entry in _entries(folder, root) if os.path.isdir(entry)]


def list_pictures(folder: Path, root: Path) -> list[Path]:
    """Pictures in ``folder`` by their names' endings, in natural order, as far as they may be read."""
    return [entry for entry in _entries(folder, root) if _is_picture_name(entry.name) and os.path.isfile(entry)]


def is_inside(path: str | Path, root: str | Path) -> bool:
    """True if ``path``, all links followed, lies in ``root``; it need not exist. Nothing else may be read.

    A hub's cache keeps <repository>/snapshots/<revision> as links to files in <repository>/blobs: they are inside, too.
    """
    try:
        real, folder = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    except (OSError, ValueError):  # a name that no file can have
        return False
    return real.is_relative_to(folder) or real.parent in _blobs(folder)


def _blobs(folder: Path) -> list[Path]:
    """The folder of a hub cache's files, where ``folder`` is one of its snapshots or lies in one."""
    snapshots = [above.parent for above in (folder, *folder.parents) if above.parent.name == "snapshots"]
    return [blobs for above in snapshots if (blobs := above.parent / "blobs").is_dir() and not blobs.is_symlink()]


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
    return any(says(part) == "masks" for part in folder.relative_to(root).parts)


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
    elif size and size[0] == size[1] and _is_turned(sample.image) and not _is_turned(mask_files(sample.mask)[0]):
        told = f"{sample.image} is turned by its EXIF mark, and its mask has none: save the picture upright."
        problems.append(Problem("turned picture", sample.image, told))
    if not mask.any():
        problems.append(Problem("empty mask", sample.image, f"The mask {sample.mask} marks nothing."))
    elif not says_where(mask):
        told = f"The mask {sample.mask} marks {mask.mean():.0%} of its picture: turn it around if it is inverted."
        problems.append(Problem("mask marks most", sample.image, told))
    return problems


def _is_turned(path: str | Path) -> bool:
    """Whether a picture has an EXIF mark that turns or mirrors it."""
    return _decode(path, lambda image: image.getexif().get(0x0112, 1) != 1)


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
        mask_size = image_size(mask_files(sample.mask)[0])
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
