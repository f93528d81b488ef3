"""Readers of native folder layouts: many data sets, one table of samples (`benchmarks.Sample`).

    samples = load_samples("MagneticTile")                   # the layout is found by looking
    samples = load_samples("archive", layout="visa")         # or named
    samples = load_samples("test_MPDD_format.json", root="data")   # an index file; its paths lie below root

A data set that files no training split is all "test". Types keep the data set's own names, except that folders called
"bad", "defect" and the like say nothing and give None.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iadr1_lib.benchmarks import (
    SPLITS,
    Sample,
    list_folders,
    list_pictures,
    load_mvtec,
    mask_location,
    read_mask,
    require_sound,
)
from iadr1_lib.runs import UserError, write_json

Split = Literal["train", "test"]

GOOD_NAMES = frozenset({"good", "ok", "normal", "free", "no_defect", "non_defective"})
BAD_NAMES = frozenset({"bad", "ng", "defect", "defects", "defective", "anomaly", "anomalous", "abnormal"})
MASK_NAMES = frozenset({"mask", "masks", "label", "labels", "ground_truth", "gt"})


@dataclass(frozen=True)
class Layout:
    """One native layout: how to know it, how to read it, and what it looks like."""

    fits: Callable[[Path], bool]
    read: Callable[[Path, str], Iterable[Sample]]
    looks_like: str


def load_samples(
    path: str | Path,
    layout: str | None = None,
    benchmark: str | None = None,
    *,
    root: str | Path | None = None,
    strict: bool = True,
) -> list[Sample]:
    """The table of a data set's folder, or of an index or meta file.

    Args:
        path: a folder in one of LAYOUTS, or a JSON file in the released index or meta format.
        layout: its name in LAYOUTS; by default the first that fits.
        benchmark: name of the data set; by default the folder's or the file's.
        root: of a JSON file, the folder that its paths start from; by default the file's own.
        strict: raise at the first unreadable picture or ill-fitting mask; False leaves them to
            `benchmarks.check_health`.

    Raises:
        UserError: nothing is there, no layout fits, the layout is unknown, or (strict) a file is not sound.
    """
    path = Path(path)
    if path.is_file():
        samples = _read_json(path, Path(root) if root else path.parent, benchmark)
    else:
        name = layout or find_layout(path)
        if name not in LAYOUTS:
            raise UserError(f"no layout is called {name}: choose from {', '.join(LAYOUTS)}")
        samples = list(LAYOUTS[name].read(path, benchmark or _data_set_name(path, name)))
    if not samples:
        raise UserError(f"{path} lists no pictures: check that it is the data set's root or one category of it")
    if strict:
        require_sound(samples)
    return samples


def _data_set_name(folder: Path, layout: str) -> str:
    """The folder's name, or its parent's where the folder is one category of a data set."""
    folder = folder.absolute()
    is_part = _IS_PART.get(layout)
    return folder.parent.name if is_part and is_part(folder) else folder.name


def find_layout(root: str | Path) -> str:
    """The name of the first layout that fits a folder; UserError that lists what is known."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: check the path of the data set.")
    if not any(root.iterdir()):
        raise UserError(f"The folder {root} is empty: put a data set there or name another.")
    for name, layout in LAYOUTS.items():
        if layout.fits(root):
            return name
    known = "; ".join(f"{name}: {layout.looks_like}" for name, layout in LAYOUTS.items())
    raise UserError(
        f"{root} has none of the layouts that can be read ({known}): name a folder that has, or sort it so."
    )


def _sample(
    picture: Path,
    label: Literal["yes", "no"],
    mask: Path | None,
    kind: str | None,
    category: str,
    benchmark: str,
    split: Split,
    source: str,
) -> Sample:
    marked = mask if label == "yes" else None
    place = mask_location(marked) if marked else None
    told = str(marked) if marked else None
    return Sample(
        str(picture), label, told, kind if label == "yes" else None, place, category, benchmark, split, source
    )


def _kind(name: str) -> str | None:
    """A folder's or a table's word for a defect; None where it only says that there is one."""
    return None if name.casefold() in BAD_NAMES else name.replace("_", " ")


def _parts(root: Path, is_part: Callable[[Path], bool]) -> list[Path]:
    """The root itself if it is one category, else its folders that are."""
    return [root] if is_part(root) else [folder for folder in list_folders(root, root) if is_part(folder)]


# ------------------------------------------------------------------------------------- one reader per layout


def _is_visa(folder: Path) -> bool:
    return (folder / "Data" / "Images").is_dir()


def _read_visa(root: Path, benchmark: str) -> Iterator[Sample]:
    """VisA: masks hold a class number per defect, types stand in image_anno.csv, splits in split_csv/1cls.csv."""
    for folder in _parts(root, _is_visa):
        types = {row["image"]: row["label"] for row in _read_csv(folder / "image_anno.csv")}
        splits = _visa_splits(folder)
        for kind in list_folders(folder / "Data" / "Images", root):
            good = kind.name.casefold() in GOOD_NAMES
            for picture in list_pictures(kind, root):
                key = f"{folder.name}/{picture.relative_to(folder).as_posix()}"
                mask = folder / "Data" / "Masks" / kind.name / f"{picture.stem}.png"
                yield _sample(
                    picture,
                    "no" if good else "yes",
                    mask if mask.is_file() else None,
                    _kind(types.get(key, kind.name)),
                    folder.name,
                    benchmark,
                    splits.get(key, "test"),
                    "visa",
                )


def _visa_splits(folder: Path) -> dict[str, Split]:
    """image -> split from the official one-class split file, where it lies beside the data."""
    for base in (folder, folder.parent):
        rows = _read_csv(base / "split_csv" / "1cls.csv")
        if rows:
            return {row["image"]: "train" if row["split"] == "train" else "test" for row in rows}
    return {}


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _is_dagm(folder: Path) -> bool:
    return any((folder / split / "Label").is_dir() for split in ("Train", "Test"))


def _read_dagm(root: Path, benchmark: str) -> Iterator[Sample]:
    """DAGM 2007: Train and Test with ellipses in Label for the defective ones; all defects of a class are of one kind.

    A folder of another name that says "defect" holds defective pictures without masks.
    """
    for folder in _parts(root, _is_dagm):
        for kind in list_folders(folder, root):
            filed: Split = "train" if kind.name.casefold() == "train" else "test"
            masks = {path.stem.removesuffix("_label"): path for path in list_pictures(kind / "Label", root)}
            unlabelled = "defect" in kind.name.casefold()
            for picture in list_pictures(kind, root):
                mask = masks.get(picture.stem)
                label: Literal["yes", "no"] = "yes" if mask or unlabelled else "no"
                yield _sample(picture, label, mask, None, folder.name, benchmark, filed, "dagm")


def _is_kolektor(folder: Path) -> bool:
    return folder.name.startswith("kos") and any(p.stem.endswith("_label") for p in list_pictures(folder, folder))


def _read_kolektor(root: Path, benchmark: str) -> Iterator[Sample]:
    """KolektorSDD: every picture has a label picture beside it, which is empty for a normal one."""
    for folder in _parts(root, _is_kolektor):
        files = list_pictures(folder, root)
        masks = {path.stem.removesuffix("_label"): path for path in files if path.stem.endswith("_label")}
        for picture in files:
            if picture.stem.endswith("_label"):
                continue
            mask = masks.get(picture.stem)
            label: Literal["yes", "no"] = "yes" if mask and read_mask(mask).any() else "no"
            yield _sample(picture, label, mask, None, "commutator", benchmark, "test", "kolektor-sdd")


def _is_tile(folder: Path) -> bool:
    return folder.name.startswith("MT_") and (folder / "Imgs").is_dir()


def _read_tiles(root: Path, benchmark: str) -> Iterator[Sample]:
    """Magnetic tiles: MT_<type>/Imgs holds pictures (.jpg) with masks of the same name (.png); MT_Free is normal."""
    for folder in _parts(root, _is_tile):
        name = folder.name.removeprefix("MT_")
        good = name.casefold() in GOOD_NAMES
        for picture in list_pictures(folder / "Imgs", root):
            if picture.suffix.lower() == ".png":
                continue
            mask = picture.with_suffix(".png")
            label: Literal["yes", "no"] = "no" if good else "yes"
            told = mask if mask.is_file() else None
            yield _sample(picture, label, told, name.lower(), "magnetic tile", benchmark, "test", "magnetic-tile")


# Real-IAD's type codes in the words of `answer.DEFECT_TYPES`. Not checked against the data set, which was not at hand.
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
    return [path for folder in folders for path in sorted(folder.glob("*.json")) if _is_real_iad_index(path)]


def _is_real_iad_index(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"meta", "train", "test"} <= set(content)


def _read_real_iad(root: Path, benchmark: str) -> Iterator[Sample]:
    """Real-IAD: one JSON per category with paths, masks and a two-letter type code; "OK" is normal."""
    for index in _real_iad_indexes(root):
        content = json.loads(index.read_text(encoding="utf-8"))
        normal = content["meta"].get("normal_class", "OK")
        for split in SPLITS:
            for row in content[split]:
                category = row.get("category") or index.stem
                folder = _first_folder(root, content["meta"].get("prefix", ""), category)
                code = row["anomaly_class"]
                mask = folder / row["mask_path"] if row.get("mask_path") else None
                yield _sample(
                    _inside(folder / row["image_path"], root),
                    "no" if code == normal else "yes",
                    _inside(mask, root) if mask else None,
                    REAL_IAD_TYPES.get(code, code),
                    category,
                    benchmark,
                    split,
                    "real-iad",
                )


def _first_folder(root: Path, prefix: str, category: str) -> Path:
    """Where the pictures of a category lie: below the prefix that the index names, or simply below its name."""
    choices = [root / prefix, root / category]
    return next((folder for folder in choices if folder.is_dir()), choices[0])


def _is_mvtec(folder: Path) -> bool:
    return any(list_pictures(kind, folder) for kind in list_folders(folder / "test", folder))


def _is_good_and_bad(folder: Path) -> bool:
    names = {kind.name.casefold() for kind in list_folders(folder, folder)}
    return bool(names & GOOD_NAMES) and bool(names - GOOD_NAMES - MASK_NAMES)


def _read_good_and_bad(root: Path, benchmark: str) -> Iterator[Sample]:
    """Any folder with good/ (or ok/, normal/) beside others, each a kind of defect; masks/<picture's name> if there."""
    kinds = list_folders(root, root)
    masks = {
        path.stem.removesuffix("_mask"): path
        for kind in kinds
        if kind.name.casefold() in MASK_NAMES
        for path in list_pictures(kind, root)
    }
    for kind in kinds:
        if kind.name.casefold() in MASK_NAMES:
            continue
        label: Literal["yes", "no"] = "no" if kind.name.casefold() in GOOD_NAMES else "yes"
        for picture in list_pictures(kind, root):
            mask, category = masks.get(picture.stem), root.absolute().name
            yield _sample(picture, label, mask, _kind(kind.name), category, benchmark, "test", "good-and-bad")


def _has_parts(is_part: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda root: bool(_parts(root, is_part))


_IS_PART = {
    "visa": _is_visa,
    "dagm": _is_dagm,
    "kolektor-sdd": _is_kolektor,
    "magnetic-tile": _is_tile,
    "mvtec": _is_mvtec,
}
LAYOUTS: dict[str, Layout] = {
    "visa": Layout(_has_parts(_is_visa), _read_visa, "<class>/Data/Images/{Normal,Anomaly}"),
    "dagm": Layout(_has_parts(_is_dagm), _read_dagm, "<class>/{Train,Test}/Label"),
    "kolektor-sdd": Layout(_has_parts(_is_kolektor), _read_kolektor, "kosNN/PartN.jpg with PartN_label.bmp"),
    "magnetic-tile": Layout(_has_parts(_is_tile), _read_tiles, "MT_<type>/Imgs"),
    "real-iad": Layout(lambda root: bool(_real_iad_indexes(root)), _read_real_iad, "a JSON index per category"),
    "mvtec": Layout(
        _has_parts(_is_mvtec),
        lambda root, benchmark: load_mvtec(root, benchmark, strict=False),
        "<category>/test/<kind>, as in MVTec-AD, MPDD and DTD-Synthetic",
    ),
    "good-and-bad": Layout(_is_good_and_bad, _read_good_and_bad, "good/ beside folders of defects"),
}


# ---------------------------------------------------------------------------------------------- index files


def _inside(path: Path, root: Path) -> Path:
    """A path that a file names, if it lies below the root; UserError otherwise: nothing outside is read."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{path} lies outside of {root}: correct the index file, or name another root")
    return path


def read_index(path: str | Path) -> dict[str, dict[str, Any]]:
    """A test index in the released format: image path -> entry, each entry as it stands in the file.

    Raises UserError for a file that is no such index, naming the first entry at fault.
    """
    content = _load_json(Path(path))
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no entries: name an index file in the released format")
    for name, entry in content.items():
        try:
            question = entry["conversation"][0]
            fits = _verdict(question["Options"][question["Answer"]]) and "image_path" in entry
        except (KeyError, IndexError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path}: the entry {name} has no question with options Yes and No, or no image_path")
    return content


def write_index(entries: dict[str, dict[str, Any]], path: str | Path) -> Path:
    """Write what `read_index` gave."""
    return write_json(Path(path), entries)


def _verdict(option: str) -> Literal["yes", "no"] | None:
    word = option.strip(" .!").lower()
    return "yes" if word == "yes" else "no" if word == "no" else None


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no JSON file that can be read: check it or name another ({error})") from None


def _read_json(path: Path, root: Path, benchmark: str | None) -> list[Sample]:
    content = _load_json(path)
    entries = content.values() if isinstance(content, dict) else []
    if any(isinstance(entry, dict) and "conversation" in entry for entry in entries):
        return list(_read_entries(read_index(path), root, benchmark))
    return list(_read_meta(content, path, root, benchmark or path.stem))


def _read_entries(entries: dict[str, dict[str, Any]], root: Path, benchmark: str | None) -> Iterator[Sample]:
    """The released index: paths are <benchmark>/<category>/…/<type>/<file>; labels are the index's own.

    A benchmark of one category goes on with its split at once, and then the category has its name.
    """
    for entry in entries.values():
        question = entry["conversation"][0]
        label = _verdict(question["Options"][question["Answer"]])
        assert label is not None  # read_index has seen to it
        image = Path(entry["image_path"])
        name = image.parts[0] if len(image.parts) > 1 else "index"
        category = image.parts[1] if len(image.parts) > 3 and image.parts[1] not in SPLITS else name
        picture = _inside(root / image, root)
        yield _sample(picture, label, None, _kind(image.parent.name), category, benchmark or name, "test", "index")


def _read_meta(content: Any, path: Path, root: Path, benchmark: str) -> Iterator[Sample]:
    """meta.json: category -> rows of img_path, mask_path, cls_name, specie_name, anomaly; by split or all test."""
    by_split = content if isinstance(content, dict) and set(content) <= set(SPLITS) and content else {"test": content}
    for split, categories in by_split.items():
        if not isinstance(categories, dict):
            raise UserError(f"{path} is neither an index nor a meta file: it holds no categories with rows")
        for category, rows in categories.items():
            for number, row in enumerate(rows):
                try:
                    image, defective = root / row["img_path"], bool(int(row["anomaly"]))
                except (KeyError, TypeError, ValueError):
                    raise UserError(f"{path}: row {number} of {category} lacks img_path or anomaly") from None
                mask = root / row["mask_path"] if row.get("mask_path") else None
                yield _sample(
                    _inside(image, root),
                    "yes" if defective else "no",
                    _inside(mask, root) if mask else None,
                    _kind(str(row.get("specie_name") or "bad")),
                    str(row.get("cls_name") or category),
                    benchmark,
                    "train" if split == "train" else "test",
                    "meta",
                )
