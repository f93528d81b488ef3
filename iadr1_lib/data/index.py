"""Readers of JSON files that name pictures: the released test index, meta.json, and Real-IAD's indexes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from iadr1_lib.answer import Label
from iadr1_lib.data.folders import is_inside, list_folders
from iadr1_lib.data.pairing import type_of
from iadr1_lib.data.table import SPLITS, Entry, Problem, Split, Templates
from iadr1_lib.data.type_names import data_set_named
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text

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


# What a row that lacks something raises.
_SAYS_TOO_LITTLE = (KeyError, TypeError, AttributeError, ValueError)


def slashes(path: str) -> str:
    """A path as a file names it; those written on Windows have backslashes."""
    return path.replace("\\", "/")


def load_json(path: Path) -> Any:
    """The content of a JSON file; UserError for one that cannot be read."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON file that can be read: check it or name another ({error})") from None


def read_file(path: Path, root: Path) -> tuple[str, list[Entry | Problem], Templates]:
    """The entries of an index or of a meta file ("index" or "meta"), and the reference pictures that an index names."""
    content = load_json(path)
    entries = content.values() if isinstance(content, dict) else []
    if any(isinstance(entry, dict) and "conversation" in entry for entry in entries):
        index = read_index(path)
        return "index", [*_read_entries(index, root)], _templates(index, path, root)
    return "meta", [*_read_meta(content, path, root)], {}


def read_index(path: str | Path) -> dict[str, dict[str, Any]]:
    """A test index in the released format: image path -> entry, each entry as it stands in the file.

    Raises UserError for a file that is no such index, naming the first entry at fault.
    """
    content = load_json(Path(path))
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


def _label(entry: dict[str, Any]) -> Label | None:
    """The answer to an entry's first question with options Yes and No; other questions may stand before it."""
    for question in entry["conversation"]:
        options = {key: str(option).strip(" .!").lower() for key, option in (question.get("Options") or {}).items()}
        if {"yes", "no"} <= set(options.values()):
            answer = options[question["Answer"]]
            return "yes" if answer == "yes" else "no" if answer == "no" else None
    return None


def _read_entries(entries: dict[str, dict[str, Any]], root: Path) -> Iterator[Entry | Problem]:
    """The released index: paths are <benchmark>/<category>/…/<type>/<file>; labels are the index's own.

    A benchmark of one category goes on with its split at once, and then the category has its name.
    """
    for entry in entries.values():
        label = _label(entry)
        assert label is not None  # read_index has seen to it
        image = Path(slashes(entry["image_path"]))
        mask = root / slashes(entry["mask_path"]) if entry.get("mask_path") else None
        benchmark = image.parts[0] if len(image.parts) > 1 else "index"
        category = image.parts[1] if len(image.parts) > 3 and image.parts[1] not in SPLITS else benchmark
        yield Entry(root / image, label, mask, type_of(image.parent.name), "test", category, benchmark)


def unknown_categories(names: Iterable[tuple[str, str]]) -> Iterator[Problem]:
    """One problem per (benchmark, category) of an index that the data set does not have."""
    for (benchmark, category), count in Counter(names).items():
        known = CATEGORIES.get(data_set_named(benchmark) or "", "").split()
        if known and category not in known:
            message = f"{count} entries are of {benchmark}/{category}, but its categories are {', '.join(known)}"
            message += ": correct the index or name its data set anew."
            yield Problem("unknown category", f"{benchmark}/{category}", message)


def _templates(entries: dict[str, dict[str, Any]], path: Path, root: Path) -> Templates:
    """The reference pictures by picture and kind; UserError for one that lies outside the root or is no path."""
    templates: Templates = {}
    for entry in entries.values():
        image = entry["image_path"]
        pictures = templates.setdefault(str(root / slashes(image)), {})
        for kind in ("similar", "random"):
            names = entry.get(f"{kind}_templates") or []
            fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
            if not fits or not all(is_inside(root / slashes(name), root) for name in names):
                raise UserError(f"{path}: {kind}_templates of {image} are no paths below {root}: correct the index")
            pictures[kind] = [root / slashes(name) for name in names]
    return templates


def _read_meta(content: Any, path: Path, root: Path) -> Iterator[Entry | Problem]:
    """meta.json: category -> rows of img_path, mask_path, cls_name, specie_name, anomaly; by split or all test."""
    by_split = content if isinstance(content, dict) and set(content) <= set(SPLITS) and content else {"test": content}
    for split, categories in by_split.items():
        if not isinstance(categories, dict) or not all(isinstance(rows, list) for rows in categories.values()):
            raise UserError(f"{path} is neither an index nor a meta file: it holds no categories with rows")
        for category, rows in categories.items():
            for number, row in enumerate(rows):
                try:
                    yield _meta_entry(row, category, root, "train" if split == "train" else "test")
                except _SAYS_TOO_LITTLE:
                    message = f"{path}: row {number} of {category} lacks img_path or anomaly: correct it."
                    yield Problem("broken row", str(path), message)


def _meta_entry(row: dict[str, Any], category: str, root: Path, split: Split) -> Entry:
    label: Label = "yes" if int(row["anomaly"]) else "no"
    mask = root / slashes(row["mask_path"]) if row.get("mask_path") else None
    kind, name = type_of(str(row.get("specie_name") or "bad")), str(row.get("cls_name") or category)
    return Entry(root / slashes(row["img_path"]), label, mask, kind, split, name)


def real_iad_indexes(root: Path) -> list[Path]:
    """Real-IAD's JSON files in a folder, or in a folder of it that says "json"."""
    folders = [root, *(f for f in list_folders(root, root) if "json" in f.name.casefold())]
    paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return [path for path in paths if os.path.isfile(path) and is_inside(path, root) and _is_real_iad(path)]


def _is_real_iad(path: Path) -> bool:
    try:
        content = load_json(path)
    except UserError:
        return False
    return isinstance(content, dict) and {"meta", "train", "test"} <= set(content)


def read_real_iad(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """Real-IAD: one JSON per category with paths, masks and a two-letter type code; "OK" is normal."""
    for index in real_iad_indexes(folder):
        content = load_json(index)
        for split in SPLITS:
            for number, row in enumerate(content[split] if isinstance(content[split], list) else [None]):
                try:
                    yield _real_iad_entry(row, content["meta"], index.stem, root, split)
                except _SAYS_TOO_LITTLE:
                    message = f"{index}: row {number} of {split} lacks anomaly_class or image_path: download it again."
                    yield Problem("broken row", str(index), message)


def _real_iad_entry(row: dict[str, Any], meta: dict[str, Any], name: str, root: Path, split: Split) -> Entry:
    category, code = row.get("category") or name, row["anomaly_class"]
    # The pictures of a category lie below the prefix that the index names, or simply below its name.
    bases = [root / slashes(prefix) for prefix in (meta.get("prefix"), category) if prefix]
    base = next((folder for folder in bases if os.path.isdir(folder)), bases[0])
    label: Label = "no" if code == meta.get("normal_class", "OK") else "yes"
    mask = base / slashes(row["mask_path"]) if row.get("mask_path") else None
    return Entry(base / slashes(row["image_path"]), label, mask, REAL_IAD_TYPES.get(code, code), split, category)
