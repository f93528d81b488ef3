"""Readers of native folder layouts: many data sets, one table of samples (`benchmarks.Sample`).

    samples = load_samples("MagneticTile")                   # the layout is found by looking
    samples = load_samples("archive", layout="visa")         # or named
    samples = load_samples("test_MPDD_format.json", root="data")   # an index file; its paths lie below root

A reader yields a row per picture, or a `benchmarks.Problem` where it can make none; nothing outside the folder that was
named is read. (One table is looked for beside it: VisA's split_csv lies next to the folder of a class.)

A data set that files no training split is all "test". Types keep the data set's own names, except that folders called
"bad", "defect" and the like say nothing and give None.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from iadr1_lib.data.benchmarks import (
    GOOD,
    SPLITS,
    Problem,
    Split,
    Table,
    Templates,
    folder_name,
    is_category,
    is_inside,
    kinds_in,
    list_folders,
    list_pictures,
    make_sample,
    make_table,
    mask_folders,
    match_masks,
    open_image,
    read_kinds,
    read_mask,
    read_mvtec,
    refuse,
    says,
    survey,
)
from iadr1_lib.data.type_names import data_set_named
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text, write_json
from iadr1_lib.records import Sample

Row = Sample | Problem

# KolektorSDD cut into thirds, as the released index names them: kos01_Part1_2 is the lowest third of kos01/Part1.
CROP_NAME = re.compile(r"kos\d+_Part\d+_[0-2]", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """One native layout: how to know it, how to read it, and what it looks like."""

    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Iterable[Row]]
    looks_like: str


def load_samples(
    path: str | Path,
    layout: str | None = None,
    benchmark: str | None = None,
    *,
    root: str | Path | None = None,
    strict: bool = True,
) -> Table:
    """The table of a data set's folder, or of an index or meta file.

    Args:
        path: a folder in one of LAYOUTS, or a JSON file in the released index or meta format.
        layout: its name in LAYOUTS; by default the first that fits.
        benchmark: name of the data set; by default the folder's or the file's.
        root: of a JSON file, the folder that its paths start from; by default the file's own.
        strict: raise at the first link or entry that leads out of the folder, unreadable picture, ill-fitting mask or
            broken row; False leaves them to `benchmarks.check_health`, which lists them.

    Returns a `benchmarks.Table`: the rows; in `passed_over` what no row could be made of; in `templates` the reference
    pictures that an index names.

    Raises:
        UserError: nothing is there, no layout fits, the layout is unknown, or (strict) something is not sound.
    """
    path = Path(path)
    if os.path.isfile(path):
        base = Path(root) if root else path.parent
        table = make_table(_read_json(path, base, benchmark), None, strict)
        table.templates = _templates(path, base)
    else:
        name = layout or find_layout(path)
        if name not in LAYOUTS:
            raise UserError(f"no layout is called {name}: choose from {', '.join(LAYOUTS)}")
        table = make_table(LAYOUTS[name].read(path, benchmark or _data_set_name(path, name)), path, strict)
    if not table:
        refuse(table.passed_over)  # they say why
        raise UserError(f"{path} lists no pictures: check that it is the data set's root or one category of it")
    return table


def _data_set_name(folder: Path, layout: str) -> str:
    """The folder's name, or its parent's where the folder is one category of a data set."""
    folder = folder.absolute()
    is_part = _IS_PART.get(layout)
    return folder.parent.name if is_part and is_part(folder) else folder.name


def find_layout(root: str | Path) -> str:
    """The name of the first layout that fits a folder; UserError that lists what is known."""
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(f"There is no folder {root}: check the path of the data set.")
    for name, layout in LAYOUTS.items():
        if layout.fits(root):
            return name
    refuse(survey(root))  # a locked folder or a link that leads out may be why
    if not os.listdir(root):
        raise UserError(f"The folder {root} is empty: put a data set there or name another.")
    known = "; ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    raise UserError(
        f"{root} has none of the layouts that can be read ({known}): name a folder that has, or sort it so."
    )


def _own(path: Path, root: Path) -> Path | None:
    """The path if a file is there and lies in the root, else None."""
    return path if os.path.isfile(path) and is_inside(path, root) else None


def _kind(name: str) -> str | None:
    """A folder's or a table's word for a defect; None where it only says that there is one."""
    return None if says(name) == "bad" else name.replace("_", " ")


def _parts(root: Path, is_part: Callable[[Path], bool]) -> list[Path]:
    """The root itself if it is one category, else its folders that are."""
    return [root] if is_part(root) else [folder for folder in list_folders(root, root) if is_part(folder)]


# ------------------------------------------------------------------------------------- one reader per layout


def _is_visa(folder: Path) -> bool:
    return os.path.isdir(folder / "Data" / "Images")


def _read_visa(root: Path, benchmark: str) -> Iterator[Row]:
    """VisA: masks hold a class number per defect, types stand in image_anno.csv, splits in split_csv/1cls.csv.

    The other official splits (2cls_highshot.csv, 2cls_fewshot.csv) train on defective pictures and are not used.
    """
    for folder in _parts(root, _is_visa):
        types, splits = {}, {}
        try:
            types = _columns(folder / "image_anno.csv", "image", "label", root)
            splits = _visa_splits(folder)
        except UserError as error:
            yield Problem("broken row", str(folder), str(error))
        for kind in list_folders(folder / "Data" / "Images", root):
            pictures = list_pictures(kind, root)
            masks, unclear = match_masks(pictures, list_pictures(folder / "Data" / "Masks" / kind.name, root))
            yield from unclear
            for picture in pictures:
                key = f"{folder.name}/{picture.relative_to(folder).as_posix()}"
                yield make_sample(
                    picture,
                    "no" if says(kind.name) == "good" else "yes",
                    masks.get(picture),
                    _kind(types.get(key, kind.name)),
                    folder.name,
                    benchmark,
                    "train" if splits.get(key) == "train" else "test",
                    "visa",
                )


def _visa_splits(folder: Path) -> dict[str, str]:
    """image -> split from the official one-class split file, where it lies beside the data."""
    for base in (folder, folder.absolute().parent):
        splits = _columns(base / "split_csv" / "1cls.csv", "image", "split", base)
        if splits:
            return splits
    return {}


def _columns(path: Path, key: str, value: str, root: Path) -> dict[str, str]:
    """Two columns of a CSV file as a dict, empty where there is no such file; UserError for one of another kind."""
    if not _own(path, root):
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row[key]: row[value] or "" for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, csv.Error):
        raise UserError(f"{path} is no CSV file with columns {key} and {value}: download it again.") from None


def _is_dagm(folder: Path) -> bool:
    return any(os.path.isdir(folder / split / "Label") for split in ("Train", "Test"))


def _read_dagm(root: Path, benchmark: str) -> Iterator[Row]:
    """DAGM 2007: Train and Test with ellipses in Label for the defective ones; all defects of a class are of one kind.

    A folder of another name that says "defect" holds defective pictures without masks.
    """
    for folder in _parts(root, _is_dagm):
        for kind in list_folders(folder, root):
            filed: Split = "train" if kind.name.casefold() == "train" else "test"
            pictures = list_pictures(kind, root)
            masks, unclear = match_masks(pictures, list_pictures(kind / "Label", root))
            yield from unclear
            defective = {*map(str, masks), *(problem.image for problem in unclear)}
            unlabelled = "defect" in kind.name.casefold() and says(kind.name) != "good"
            for picture in pictures:
                label: Literal["yes", "no"] = "yes" if str(picture) in defective or unlabelled else "no"
                yield make_sample(picture, label, masks.get(picture), None, folder.name, benchmark, filed, "dagm")


def _is_kolektor(folder: Path) -> bool:
    return folder.name.startswith("kos") and any(p.stem.endswith("_label") for p in list_pictures(folder, folder))


def _read_kolektor(root: Path, benchmark: str) -> Iterator[Row]:
    """KolektorSDD: every picture has a label picture beside it, which is empty for a normal one."""
    for folder in _parts(root, _is_kolektor):
        yield from _read_labelled(folder, root, benchmark, "kolektor-sdd", "test")


def _read_labelled(folder: Path, root: Path, benchmark: str, source: str, split: Split) -> Iterator[Row]:
    """Pictures with <name>_label beside them: defective where it marks anything, unknown where it cannot be read."""
    files = list_pictures(folder, root)
    labels = [file for file in files if file.stem.endswith("_label")]
    pictures = [file for file in files if not file.stem.endswith("_label")]
    masks, _ = match_masks(pictures, labels)
    for picture in pictures:
        mask = masks.get(picture)
        if mask is None:
            told = f"{picture} has no one {picture.stem}_label beside it, so nobody knows whether it is normal: add it."
            yield Problem("no label", str(picture), told)
            continue
        try:
            label: Literal["yes", "no"] = "yes" if read_mask(mask).any() else "no"
        except UserError as error:
            yield Problem("no label", str(picture), str(error))
            continue
        yield make_sample(picture, label, mask, None, "commutator", benchmark, split, source)


def _crop_folders(root: Path) -> list[tuple[Path, Split]]:
    """Folders of KolektorSDD's thirds with their split: test/good, test/defect, good, defect, or the root itself."""
    found: list[tuple[Path, Split]] = [(kind, split) for split in SPLITS for kind in kinds_in(root / split, [], root)]
    found += [(kind, "test") for kind in list_folders(root, root) if says(kind.name) in {"good", "bad"}]
    return [pair for pair in [*found, (root, "test")] if _are_crops(list_pictures(pair[0], root))]


def _are_crops(pictures: list[Path]) -> bool:
    return any(CROP_NAME.fullmatch(picture.stem) for picture in pictures)


def _read_crops(root: Path, benchmark: str) -> Iterator[Row]:
    """KolektorSDD's thirds: in good and defect folders (masks in ground_truth/<folder>), or with labels beside them."""
    for folder in _parts(root, lambda part: bool(_crop_folders(part))):
        for kind, split in _crop_folders(folder):
            if kind == folder:
                yield from _read_labelled(kind, root, benchmark, "kolektor-crops", split)
                continue
            places = mask_folders(folder, root)
            yield from read_kinds([kind], places, root, split, "commutator", benchmark, "kolektor-crops", _kind)


def cut_kolektor(native: str | Path, target: str | Path, index: str | Path | None = None) -> Path:
    """Cut native KolektorSDD pictures into the thirds that the released test index names.

    Every picture and its label picture are cut at a third and two thirds of their height (they stand about 500 x 1250
    pixels); 0 is the top. The index names the files, the released crops were not at hand: direction and rounding are
    ours. A third is defective if its part of the mask marks anything.

    Args:
        native: folder with kosNN/PartN.jpg and PartN_label.bmp.
        target: folder to write to, as SDD/test/{good,defect}/kosNN_PartM_K.png and
            SDD/ground_truth/defect/kosNN_PartM_K_mask.png. ``load_samples(index, root=target)`` finds them there.
        index: released index; then only its crops are cut, and lie where it files them whatever the mask says.

    Returns the folder SDD, which `load_samples` reads too (layout kolektor-crops).

    Raises:
        UserError: `native` is no such folder, a picture or label cannot be read, or the index wants a missing picture.
    """
    native, target = Path(native), Path(target)
    filed = {name.stem: name.parent.name for name in map(Path, map(_slashes, read_index(index)))} if index else None
    if filed and set(filed.values()) - {GOOD, "defect"}:
        raise UserError(f"{index} files pictures in other folders than good and defect: name the released SDD index")
    cut = set()
    for folder in _parts(native, _is_kolektor):
        for picture in list_pictures(folder, native):
            if picture.stem.endswith("_label"):
                continue
            mask = read_mask(_label_of(picture, native))
            image = open_image(picture).convert("L")
            if mask.shape != image.size[::-1]:
                raise UserError(f"the label of {picture} has another size: download the data set again")
            for third in range(3):
                top, bottom = (round(image.height * step / 3) for step in (third, third + 1))
                part, name = mask[top:bottom], f"{folder.name}_{picture.stem}_{third}"
                kind = filed.get(name) if filed is not None else "defect" if part.any() else GOOD
                if kind is None:
                    continue
                cut.add(name)
                _save(image.crop((0, top, image.width, bottom)), target / "SDD" / "test" / kind / f"{name}.png")
                if kind != GOOD:
                    _save(Image.fromarray(part), target / "SDD" / "ground_truth" / kind / f"{name}_mask.png")
    missing = sorted(set(filed or ()) - cut)
    if missing:
        raise UserError(f"{native} lacks the pictures of {len(missing)} entries of {index}, such as {missing[0]}")
    if not cut:
        raise UserError(f"{native} holds no kosNN/PartN.jpg with PartN_label.bmp: name KolektorSDD's folder")
    return target / "SDD"


def _label_of(picture: Path, root: Path) -> Path:
    labels = [path for path in list_pictures(picture.parent, root) if path.stem == f"{picture.stem}_label"]
    if not labels:
        raise UserError(f"{picture} has no {picture.stem}_label beside it: download the data set again")
    return labels[0]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _is_tile(folder: Path) -> bool:
    return folder.name.startswith("MT_") and os.path.isdir(folder / "Imgs")


def _read_tiles(root: Path, benchmark: str) -> Iterator[Row]:
    """Magnetic tiles: MT_<type>/Imgs holds pictures (.jpg) with masks of the same name (.png); MT_Free is normal."""
    for folder in _parts(root, _is_tile):
        name = folder.name.removeprefix("MT_")
        label: Literal["yes", "no"] = "no" if says(name) == "good" else "yes"
        files = list_pictures(folder / "Imgs", root)
        masks = [file for file in files if file.suffix.lower() == ".png"]
        pictures = [file for file in files if file.suffix.lower() != ".png"]
        matched, unclear = match_masks(pictures, masks)
        yield from unclear
        for picture in pictures:
            mask = matched.get(picture)
            yield make_sample(picture, label, mask, name.lower(), "magnetic tile", benchmark, "test", "magnetic-tile")


# Real-IAD's type codes in the words of `answer.DEFECT_TYPES`. Not checked against the data set, which was not at hand;
# its paper speaks of pits where the vocabulary has holes.
REAL_IAD_TYPES = {
    "AK": "hole",
    "BX": "deformation",
    "CH": "abrasion",
    "HS": "scratch",
    "PS": "damage",
    "QS": "missing parts",
    "YW": "presence of foreign objects",
    "ZW": "contamination",
}


def _real_iad_indexes(root: Path) -> list[Path]:
    folders = [root, *(f for f in list_folders(root, root) if "json" in f.name.casefold())]
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return [path for path in paths if _own(path, root) and _is_real_iad_index(path)]


def _is_real_iad_index(path: Path) -> bool:
    try:
        content = _load_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and {"meta", "train", "test"} <= set(content)


def _read_real_iad(root: Path, benchmark: str) -> Iterator[Row]:
    """Real-IAD: one JSON per category with paths, masks and a two-letter type code; "OK" is normal."""
    for index in _real_iad_indexes(root):
        content = _load_json(index)
        for split in SPLITS:
            rows = content[split] if isinstance(content[split], list) else [None]
            for number, row in enumerate(rows):
                try:
                    yield _real_iad_row(row, content["meta"], index, root, benchmark, split)
                except (KeyError, TypeError, AttributeError, ValueError):
                    told = f"{index}: row {number} of {split} lacks anomaly_class or image_path: download it again."
                    yield Problem("broken row", str(index), told)


def _real_iad_row(row: Any, meta: Any, index: Path, root: Path, benchmark: str, split: Split) -> Row:
    category, code = row.get("category") or index.stem, row["anomaly_class"]
    folder = _first_folder(root, meta.get("prefix", ""), category)
    mask = folder / _slashes(row["mask_path"]) if row.get("mask_path") else None
    label: Literal["yes", "no"] = "no" if code == meta.get("normal_class", "OK") else "yes"
    kind = REAL_IAD_TYPES.get(code, code)
    return _listed(
        folder / _slashes(row["image_path"]), mask, root, label, kind, category, benchmark, split, "real-iad"
    )


def _first_folder(root: Path, prefix: str, category: str) -> Path:
    """Where the pictures of a category lie: below the prefix that the index names, or simply below its name."""
    choices = [*([root / _slashes(prefix)] if prefix else []), root / category]
    return next((folder for folder in choices if os.path.isdir(folder)), choices[0])


def _is_good_and_bad(folder: Path) -> bool:
    said = {says(kind.name) for kind in list_folders(folder, folder)}
    return "good" in said and bool(said - {"good", "masks"})


def _read_good_and_bad(root: Path, benchmark: str) -> Iterator[Row]:
    """Any folder with good/ (or ok/, normal/) beside others, each a kind of defect; masks in masks/ or masks/<kind>."""
    places = mask_folders(root, root)
    kinds = kinds_in(root, places, root)
    return read_kinds(kinds, places, root, "test", folder_name(root), benchmark, "good-and-bad", _kind)


def _has_parts(is_part: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda root: bool(_parts(root, is_part))


_IS_PART: dict[str, Callable[[Path], bool]] = {
    "visa": _is_visa,
    "dagm": _is_dagm,
    "kolektor-sdd": _is_kolektor,
    "kolektor-crops": lambda folder: bool(_crop_folders(folder)),
    "magnetic-tile": _is_tile,
    "mvtec": lambda folder: is_category(folder, folder),
}
LAYOUTS: dict[str, Layout] = {
    "visa": Layout(_has_parts(_is_visa), _read_visa, "<class>/Data/Images/{Normal,Anomaly}"),
    "dagm": Layout(_has_parts(_is_dagm), _read_dagm, "<class>/{Train,Test}/Label"),
    "kolektor-sdd": Layout(_has_parts(_is_kolektor), _read_kolektor, "kosNN/PartN.jpg with PartN_label.bmp"),
    "kolektor-crops": Layout(
        _has_parts(_IS_PART["kolektor-crops"]), _read_crops, "{good,defect}/kosNN_PartN_{0,1,2}.png"
    ),
    "magnetic-tile": Layout(_has_parts(_is_tile), _read_tiles, "MT_<type>/Imgs"),
    "real-iad": Layout(lambda root: bool(_real_iad_indexes(root)), _read_real_iad, "a JSON index per category"),
    "mvtec": Layout(
        _has_parts(_IS_PART["mvtec"]),
        read_mvtec,
        "<category>/test/<kind> or train/good, as in MVTec-AD, MPDD and DTD-Synthetic",
    ),
    "good-and-bad": Layout(_is_good_and_bad, _read_good_and_bad, "good/ beside folders of defects"),
}


# ---------------------------------------------------------------------------------------------- index files


def _listed(
    picture: Path,
    mask: Path | None,
    root: Path,
    label: Literal["yes", "no"],
    kind: str | None,
    category: str,
    benchmark: str,
    split: Split,
    source: str,
) -> Row:
    """The row of a picture that a file names, as long as picture and mask lie below the root."""
    for path in (picture, mask):
        if path is not None and not is_inside(path, root):
            told = f"{path} lies outside of {root}: correct the index file, or name another root."
            return Problem("outside", str(path), told)
    return make_sample(picture, label, mask, kind, category, benchmark, split, source)


def _slashes(path: str) -> str:
    """A path of a file's entry; those written on Windows have backslashes."""
    return path.replace("\\", "/")


def read_index(path: str | Path) -> dict[str, dict[str, Any]]:
    """A test index in the released format: image path -> entry, each entry as it stands in the file.

    Raises UserError for a file that is no such index, naming the first entry at fault.
    """
    content = _load_json(Path(path))
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no entries: name an index file in the released format")
    for name, entry in content.items():
        try:
            fits = _label(entry) and isinstance(entry["image_path"], str)
            fits = fits and isinstance(entry.get("mask_path") or "", str)
        except (KeyError, IndexError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise UserError(f"{path}: the entry {name} has no question with options Yes and No, or no paths")
    return content


def write_index(entries: dict[str, dict[str, Any]], path: str | Path) -> Path:
    """Write what `read_index` gave."""
    return write_json(Path(path), entries)


def _label(entry: dict[str, Any]) -> Literal["yes", "no"] | None:
    """The answer to an entry's first question with options Yes and No; other questions may stand before it."""
    for question in entry["conversation"]:
        options = {key: _verdict(str(option)) for key, option in (question.get("Options") or {}).items()}
        if {"yes", "no"} <= set(options.values()):
            return options[question["Answer"]]
    return None


def _verdict(option: str) -> Literal["yes", "no"] | None:
    word = option.strip(" .!").lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file that can be read: check it or name another ({error})") from None


def _read_json(path: Path, root: Path, benchmark: str | None) -> Iterator[Row]:
    content = _load_json(path)
    entries = content.values() if isinstance(content, dict) else []
    if any(isinstance(entry, dict) and "conversation" in entry for entry in entries):
        return _read_entries(read_index(path), root, benchmark)
    return _read_meta(content, path, root, benchmark or path.stem)


# Categories of the paper's benchmarks that have several, so that an index with a slip in a path is noticed.
CATEGORIES = {
    "MVTec-AD": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood"
    " zipper",
    "VisA": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
    "MPDD": "bracket_black bracket_brown bracket_white connector metal_plate tubes",
    "DAGM": "Class1 Class2 Class3 Class4 Class5 Class6 Class7 Class8 Class9 Class10",
    "DTD-Synthetic": "Blotchy_099 Fibrous_183 Marbled_078 Matted_069 Mesh_114 Perforated_037 Stratified_154 Woven_001"
    " Woven_068 Woven_104 Woven_125 Woven_127",
}


def _unknown_categories(samples: Iterable[Sample]) -> Iterator[Problem]:
    """One problem per category of an index that the data set which its paths name does not have."""
    counted = Counter((sample.benchmark, sample.category) for sample in samples)
    for (benchmark, category), count in counted.items():
        known = CATEGORIES.get(data_set_named(benchmark) or "", "").split()
        if known and category not in known:
            told = f"{count} entries are of {benchmark}/{category}, but its categories are {', '.join(known)}: correct "
            yield Problem("unknown category", f"{benchmark}/{category}", told + "the index or name its data set anew.")


def _templates(path: Path, root: Path) -> Templates:
    """The reference pictures that an index names, by picture and kind; none for a meta file.

    Raises UserError for one that lies outside the root or is no path.
    """
    content = _load_json(path)
    found: Templates = {}
    for entry in content.values() if isinstance(content, dict) else ():
        if not isinstance(entry, dict) or "conversation" not in entry:
            continue
        named = {kind: entry.get(f"{kind}_templates") or [] for kind in ("similar", "random")}
        for kind, names in named.items():
            fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if not fits or not all(is_inside(root / _slashes(name), root) for name in names):
                image = entry["image_path"]
                raise UserError(f"{path}: {kind}_templates of {image} are no paths below {root}: correct the index")
        templates = {kind: [root / _slashes(name) for name in names] for kind, names in named.items()}
        found[str(root / _slashes(entry["image_path"]))] = templates
    return found


def _read_entries(entries: dict[str, dict[str, Any]], root: Path, benchmark: str | None) -> Iterator[Row]:
    """The released index: paths are <benchmark>/<category>/…/<type>/<file>; labels are the index's own.

    A benchmark of one category goes on with its split at once, and then the category has its name.
    """
    rows = [*_entry_rows(entries, root, benchmark)]
    yield from rows
    yield from _unknown_categories(row for row in rows if isinstance(row, Sample))


def _entry_rows(entries: dict[str, dict[str, Any]], root: Path, benchmark: str | None) -> Iterator[Row]:
    for entry in entries.values():
        label = _label(entry)
        assert label is not None  # read_index has seen to it
        image = Path(_slashes(entry["image_path"]))
        mask = root / _slashes(entry["mask_path"]) if entry.get("mask_path") else None
        name = image.parts[0] if len(image.parts) > 1 else "index"
        category = image.parts[1] if len(image.parts) > 3 and image.parts[1] not in SPLITS else name
        kind, data_set = _kind(image.parent.name), benchmark or name
        yield _listed(root / image, mask, root, label, kind, category, data_set, "test", "index")


def _read_meta(content: Any, path: Path, root: Path, benchmark: str) -> Iterator[Row]:
    """meta.json: category -> rows of img_path, mask_path, cls_name, specie_name, anomaly; by split or all test."""
    by_split = content if isinstance(content, dict) and set(content) <= set(SPLITS) and content else {"test": content}
    for split, categories in by_split.items():
        if not isinstance(categories, dict) or not all(isinstance(rows, list) for rows in categories.values()):
            raise UserError(f"{path} is neither an index nor a meta file: it holds no categories with rows")
        for category, rows in categories.items():
            for number, row in enumerate(rows):
                try:
                    yield _meta_row(row, root, category, benchmark, "train" if split == "train" else "test")
                except (KeyError, TypeError, ValueError, AttributeError):
                    told = f"{path}: row {number} of {category} lacks img_path or anomaly: correct it."
                    yield Problem("broken row", str(path), told)


def _meta_row(row: Any, root: Path, category: str, benchmark: str, split: Split) -> Row:
    label: Literal["yes", "no"] = "yes" if int(row["anomaly"]) else "no"
    mask = root / _slashes(row["mask_path"]) if row.get("mask_path") else None
    kind, name = _kind(str(row.get("specie_name") or "bad")), str(row.get("cls_name") or category)
    return _listed(root / _slashes(row["img_path"]), mask, root, label, kind, name, benchmark, split, "meta")
