"""One small reader per folder layout. To read a new data set, write one and add it to LAYOUTS.

A reader takes one part (a folder that is one category, or the data set) and the root, and yields an `Entry` per picture
or a `Problem` where it can make none. It lists folders with `list_folders` and `list_pictures`, so that nothing outside
of the root is read.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from iadr1_lib.answer import Label
from iadr1_lib.data.boxes import largest_kind, read_boxes
from iadr1_lib.data.folders import folder_name, is_inside, list_folders, list_pictures, says
from iadr1_lib.data.index import read_real_iad, real_iad_indexes
from iadr1_lib.data.masks import mask_size, read_mask
from iadr1_lib.data.pairing import kinds_in, label_of, mask_folders, match_masks, read_kinds, type_of
from iadr1_lib.data.table import Entry, Problem, Split
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text

Entries = Iterable[Entry | Problem]

# The last: MVTec AD 2, which keeps its public test apart.
_SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "test": "test", "test_public": "test"}


def _is_mvtec(folder: Path) -> bool:
    return any(list_pictures(kind, folder) for split in _SPLIT_FOLDERS for kind in list_folders(folder / split, folder))


def _read_mvtec(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """MVTec-AD, and MPDD, DTD-Synthetic, MVTec LOCO, MVTec AD 2, BTAD and the drawn world.

        <category>/train/good/000.png
        <category>/test/good/000.png
        <category>/test/<defect_type>/000.png
        <category>/ground_truth/<defect_type>/000_mask.png   (or 000.png, or 000/*.png)

    Folders called ok, normal and the like are as good, those called masks, gt and the like as ground_truth, which may
    also lie in test.
    """
    for name, split in _SPLIT_FOLDERS.items():
        places = [*mask_folders(folder / name, root), *mask_folders(folder, root)]
        kinds = kinds_in(folder / name, places, root)
        if split == "train":
            for kind in [kind for kind in kinds if says(kind.name) != "good"]:
                message = f"{kind} lies in train/, where only good pictures belong: call it good, or move it to test/."
                yield Problem("misplaced", str(kind), message)
                kinds.remove(kind)
        yield from read_kinds(kinds, places, root, split, keep_bad=True)


def _read_visa(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """VisA: masks hold a class number per defect, types stand in image_anno.csv, splits in split_csv/1cls.csv.

    The other official splits (2cls_highshot.csv, 2cls_fewshot.csv) train on defective pictures and are not used.
    """
    types: dict[str, str] = {}
    splits: dict[str, str] = {}
    try:
        types = _columns(folder / "image_anno.csv", "image", "label", root)
        for base in (folder, folder.absolute().parent):  # split_csv may lie beside the folder of a class
            splits = splits or _columns(base / "split_csv" / "1cls.csv", "image", "split", base)
    except UserError as error:
        yield Problem("broken row", str(folder), str(error))
    for kind in list_folders(folder / "Data" / "Images", root):
        pictures = list_pictures(kind, root)
        masks, unclear = match_masks(pictures, list_pictures(folder / "Data" / "Masks" / kind.name, root))
        yield from unclear
        for picture in pictures:
            key = f"{folder_name(folder)}/{picture.relative_to(folder).as_posix()}"
            split: Split = "train" if splits.get(key) == "train" else "test"
            yield Entry(picture, label_of(kind.name), masks.get(picture), type_of(types.get(key, kind.name)), split)


def _columns(path: Path, key: str, value: str, root: Path) -> dict[str, str]:
    """Two columns of a CSV file as a dict, empty where there is no such file; UserError for one of another kind."""
    if not (os.path.isfile(path) and is_inside(path, root)):
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row[key]: row[value] or "" for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        raise UserError(f"{path} is no CSV file with columns {key} and {value}: download it again.") from None


def _read_dagm(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """DAGM 2007: Train and Test with ellipses in Label for the defective ones; all defects of a class are of one kind.

    A folder of another name that says "defect" holds defective pictures without masks.
    """
    for kind in list_folders(folder, root):
        pictures = list_pictures(kind, root)
        masks, unclear = match_masks(pictures, list_pictures(kind / "Label", root))
        yield from unclear
        split: Split = "train" if kind.name.casefold() == "train" else "test"
        unlabelled = "defect" in kind.name.casefold() and label_of(kind.name) == "yes"
        defective = {*map(str, pictures if unlabelled else masks), *(problem.image for problem in unclear)}
        for picture in pictures:
            label: Label = "yes" if str(picture) in defective else "no"
            yield Entry(picture, label, masks.get(picture), None, split)


def _is_kolektor(folder: Path) -> bool:
    return folder.name.startswith("kos") and any(p.stem.endswith("_label") for p in list_pictures(folder, folder))


def _read_kolektor(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """KolektorSDD: pictures with <name>_label beside them, defective where it marks anything."""
    files = list_pictures(folder, root)
    pictures = [file for file in files if not file.stem.endswith("_label")]
    masks, _ = match_masks(pictures, (file for file in files if file.stem.endswith("_label")))
    for picture in pictures:
        try:
            if picture not in masks:
                raise UserError(
                    f"{picture} needs exactly one file {picture.stem}_label beside it: add the one that belongs to it."
                )
            label: Label = "yes" if read_mask(masks[picture]).any() else "no"
            yield Entry(picture, label, masks[picture], category="commutator")
        except UserError as error:
            yield Problem("no label", str(picture), str(error))


def _read_tiles(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """Magnetic tiles: MT_<type>/Imgs holds pictures (.jpg) with masks of the same name (.png); MT_Free is normal."""
    name = folder.name.removeprefix("MT_")
    files = list_pictures(folder / "Imgs", root)
    pictures = [file for file in files if file.suffix.lower() != ".png"]
    masks, unclear = match_masks(pictures, (file for file in files if file.suffix.lower() == ".png"))
    yield from unclear
    for picture in pictures:
        yield Entry(picture, label_of(name), masks.get(picture), name.lower(), "test", "magnetic tile")


def _boxed(entry: Entry, boxes: Path, root: Path, names: Sequence[str] = ()) -> Entry:
    """The entry with its list of boxes for a mask, if there is one, and the type of the largest; `names` of classes."""
    if not (os.path.isfile(boxes) and is_inside(boxes, root)):
        return entry
    try:
        kind = largest_kind(read_boxes(boxes, mask_size(boxes, entry.image)))
    except UserError:  # the checks find it again
        kind = None
    if kind and names:
        kind = names[int(kind)] if kind.isdecimal() and int(kind) < len(names) else None
    return entry._replace(mask=boxes, type=type_of(kind) if kind else entry.type)


def _is_wood(folder: Path) -> bool:
    return os.path.isfile(folder / "classes.txt") and os.path.isdir(folder / "boxes") and _is_mvtec(folder)


def _read_wood(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """WoodSurface as cut into windows: MVTec-AD's folders, with YOLO's rows in boxes/<name>.txt instead of masks."""
    path = folder / "classes.txt"
    names = read_text(path).split() if is_inside(path, root) else []
    for entry in _read_mvtec(folder, root):
        if isinstance(entry, Entry) and entry.label == "yes":
            entry = _boxed(entry, folder / "boxes" / f"{entry.image.stem}.txt", root, names)
        yield entry


_PCB_TYPES = ("", "open", "short", "mousebite", "spur", "copper", "pin-hole")  # by DeepPCB's numbers


def _pcb_folders(folder: Path) -> list[Path]:
    """The folders G of DeepPCB: each lies in a folder groupG, beside its boxes in G_not."""
    base = folder / "PCBData" if os.path.isdir(folder / "PCBData") else folder
    groups = [group for group in list_folders(base, folder) if group.name.startswith("group")]
    inner = [entry for group in groups for entry in list_folders(group, folder)]
    return [entry for entry in inner if entry.with_name(f"{entry.name}_not") in inner]


def _read_pcb(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """DeepPCB: <board>_test.jpg is defective, <board>_temp.jpg the same board without defects, its template.

    So a defective board has a reference of its own. A template has none and is compared with those of other boards,
    which are printed otherwise: what a model that looks at references says of templates is hard to read.
    """
    for pictures in _pcb_folders(folder):
        for picture in list_pictures(pictures, root):
            board, _, kind = picture.stem.rpartition("_")
            if kind == "temp":
                yield Entry(picture, "no", category="circuit board")
            elif kind == "test":
                template = picture.with_stem(f"{board}_temp")
                entry = Entry(picture, "yes", None, None, "test", "circuit board")
                entry = _boxed(entry, pictures.with_name(f"{pictures.name}_not") / f"{board}.txt", root, _PCB_TYPES)
                yield entry._replace(template=template if os.path.isfile(template) else None)


def _voc_folders(folder: Path) -> list[Path]:
    """The folders of pictures and of boxes of a Pascal VOC data set; none where it is not one."""
    named = {entry.name.casefold(): entry for entry in list_folders(folder, folder)}
    pictures, boxes = named.get("images") or named.get("jpegimages"), named.get("annotations")
    return [pictures, boxes] if pictures and boxes and any(boxes.glob("*.xml")) else []


def _read_voc(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """Pascal VOC, as NEU-DET: IMAGES/<name>.jpg and boxes in ANNOTATIONS/<name>.xml; one without boxes is normal."""
    pictures, boxes = _voc_folders(folder)
    for picture in list_pictures(pictures, root):
        path = boxes / f"{picture.stem}.xml"
        try:
            if not (os.path.isfile(path) and is_inside(path, root)):
                raise UserError(f"{picture} needs the file {path}, which says what is in it: add it.")
            defective = read_boxes(path, mask_size(path))
            yield _boxed(Entry(picture, "yes"), path, root) if defective else Entry(picture, "no")
        except UserError as error:
            yield Problem("no label", str(picture), str(error))


_ELPV_LABELS: dict[float, Label] = {0.0: "no", 1.0: "yes"}


def _read_elpv(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """ELPV: labels.csv has rows of picture, probability of a defect and module, with blanks between.

    A cell of probability 0 is normal, one of 1 defective; the others are left out. No masks, no types.
    """
    path, labels = folder / "labels.csv", _ELPV_LABELS
    for number, row in enumerate(read_text(path).splitlines() if is_inside(path, root) else [], start=1):
        try:
            name, probability, module = row.split()
            picture, label = folder / name, labels.get(float(probability))
        except ValueError:
            message = f"{path}, line {number} is not a picture, a probability and a module: download the file again."
            yield Problem("broken row", str(path), message)
            continue
        if label:
            yield Entry(picture, label, category=module)
        else:
            message = f"{picture} is defective with probability {float(probability):.2f}."
            yield Problem("in between", str(picture), message)


_STEEL_TYPES = {"In": "inclusion", "Pa": "patches", "Sc": "scratches"}


def _read_saliency(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """SD-saliency-900, steel with defects only: the beginning of a picture's name is its type."""
    pictures = list_pictures(folder / "Source Images", root)
    masks, unclear = match_masks(pictures, list_pictures(folder / "Ground truth", root))
    yield from unclear
    for picture in pictures:
        yield Entry(picture, "yes", masks.get(picture), _STEEL_TYPES.get(picture.stem.partition("_")[0]))


def _is_good_and_bad(folder: Path) -> bool:
    meanings = {says(kind.name) for kind in list_folders(folder, folder)}
    return "good" in meanings and bool(meanings - {"good", "masks"})


def _read_good_and_bad(folder: Path, root: Path) -> Entries:
    """Any folder with good/ (or ok/, normal/) beside others, each a kind of defect; masks in masks/ or masks/<kind>."""
    places = mask_folders(folder, root)
    return read_kinds(kinds_in(folder, places, root), places, root, "test")


class Layout(NamedTuple):
    """One layout: how to know a part (one category of a data set), how to read it, and what it looks like.

    A data set is a part, or a folder of parts; with `whole` it is one part.
    """

    looks_like: str
    is_part: Callable[[Path], bool]
    read: Callable[[Path, Path], Entries]
    whole: bool = False

    def parts(self, root: Path) -> list[Path]:
        """The root itself if it is a part, else its folders that are."""
        if self.is_part(root):
            return [root]
        return [] if self.whole else [folder for folder in list_folders(root, root) if self.is_part(folder)]


LAYOUTS = {
    "visa": Layout("<class>/Data/Images/{Normal,Anomaly}", lambda f: os.path.isdir(f / "Data" / "Images"), _read_visa),
    "dagm": Layout(
        "<class>/{Train,Test}/Label",
        lambda f: any(os.path.isdir(f / s / "Label") for s in ("Train", "Test")),
        _read_dagm,
    ),
    "kolektor-sdd": Layout("kosNN/PartN.jpg with PartN_label.bmp", _is_kolektor, _read_kolektor),
    "magnetic-tile": Layout(
        "MT_<type>/Imgs", lambda f: f.name.startswith("MT_") and os.path.isdir(f / "Imgs"), _read_tiles
    ),
    "real-iad": Layout("a JSON index per category", lambda f: bool(real_iad_indexes(f)), read_real_iad, whole=True),
    "wood-surface": Layout(
        "MVTec-AD's folders with boxes/<name>.txt and classes.txt", _is_wood, _read_wood, whole=True
    ),
    "mvtec": Layout(
        "<category>/test/<kind> or train/good, as in MVTec-AD, MPDD and DTD-Synthetic", _is_mvtec, _read_mvtec
    ),
    "good-and-bad": Layout("good/ beside folders of defects", _is_good_and_bad, _read_good_and_bad, whole=True),
    "elpv": Layout(
        "images/ with labels.csv, as in ELPV",
        lambda f: os.path.isfile(f / "labels.csv") and os.path.isdir(f / "images"),
        _read_elpv,
        whole=True,
    ),
    "deep-pcb": Layout(
        "PCBData/groupG/G/<board>_{temp,test}.jpg with boxes in groupG/G_not",
        lambda f: bool(_pcb_folders(f)),
        _read_pcb,
        whole=True,
    ),
    "voc": Layout("IMAGES/ with boxes in ANNOTATIONS/*.xml", lambda f: bool(_voc_folders(f)), _read_voc, whole=True),
    "sd-saliency": Layout(
        "Source Images/ with Ground truth/, defective pictures only",
        lambda f: all(os.path.isdir(f / name) for name in ("Source Images", "Ground truth")),
        _read_saliency,
        whole=True,
    ),
    "x-sdd": Layout(
        "the folders of X-SDD, one for each type of defect",
        lambda f: all(os.path.isdir(f / name) for name in ("iron sheet ash", "red iron", "slag inclusion")),
        lambda folder, root: read_kinds(list_folders(folder, root), [], root, "test"),
        whole=True,
    ),
}
