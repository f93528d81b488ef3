"""Readers of JSON files that name pictures: the released test index, meta.json, and Real-IAD's indexes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from iadr1_lib.answer import Label
from iadr1_lib.data.folders import is_inside, list_folders
from iadr1_lib.data.pairing import type_of
from iadr1_lib.data.table import REFERENCE_KINDS, SPLITS, Entry, Problem, Split, Templates
from iadr1_lib.errors import UserError
from iadr1_lib.files import read_text

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
        return "index", [_index_entry(row, root) for row in index.values()], _templates(index, path, root)
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
            _index_entry(entry, Path())
        except (LookupError, TypeError, AttributeError):
            raise UserError(f"{path}: the entry {name} has no question with options Yes and No, or no paths") from None
    return content


def _label(entry: dict[str, Any]) -> Label:
    """The answer to an entry's first question with options Yes and No; other questions may stand before it."""
    labels: dict[str, Label] = {"yes": "yes", "no": "no"}
    for question in entry["conversation"]:
        options = {key: str(option).strip(" .!").lower() for key, option in (question.get("Options") or {}).items()}
        if set(labels) <= set(options.values()):
            return labels[options[question["Answer"]]]
    raise LookupError("no question with options Yes and No")


def _index_entry(entry: dict[str, Any], root: Path) -> Entry:
    """The released index: paths are <benchmark>/<category>/…/<type>/<file>; labels are the index's own.

    A benchmark of one category goes on with its split at once, and then the category has its name.
    """
    image = Path(slashes(entry["image_path"]))
    benchmark = image.parts[0] if len(image.parts) > 1 else "index"
    category = image.parts[1] if len(image.parts) > 3 and image.parts[1] not in SPLITS else benchmark
    return Entry(
        root / image, _label(entry), _mask(entry, root), type_of(image.parent.name), "test", category, benchmark
    )


def _templates(entries: dict[str, dict[str, Any]], path: Path, root: Path) -> Templates:
    """The reference pictures by picture and kind; UserError for one that lies outside the root or is no path."""
    templates: Templates = {}
    for entry in entries.values():
        image = entry["image_path"]
        for kind in REFERENCE_KINDS:
            names = entry.get(f"{kind}_templates") or []
            pictures = [root / slashes(str(name)) for name in (names if isinstance(names, list) else [".."])]
            if not all(is_inside(picture, root) for picture in pictures):
                raise UserError(f"{path}: {kind}_templates of {image} are no paths below {root}: correct the index")
            templates.setdefault(str(root / slashes(image)), {})[kind] = pictures
    return templates


def _read_rows(rows: Any, read: Callable[[Any], Entry], path: Path, where: str) -> Iterator[Entry | Problem]:
    """An entry for each row, or a problem for a row that lacks something."""
    for number, row in enumerate(rows if isinstance(rows, list) else [None]):
        try:
            yield read(row)
        except (KeyError, TypeError, AttributeError, ValueError):
            message = f"{path}: row {number} of {where} lacks its picture's path or anomaly: correct it."
            yield Problem("broken row", str(path), message)


def _read_meta(content: Any, path: Path, root: Path) -> Iterator[Entry | Problem]:
    """meta.json: category -> rows of img_path, mask_path, cls_name, specie_name, anomaly; by split or all test."""
    by_split = content if isinstance(content, dict) and set(content) <= set(SPLITS) and content else {"test": content}
    for name, categories in by_split.items():
        split: Split = "train" if name == "train" else "test"
        if not isinstance(categories, dict) or not all(isinstance(rows, list) for rows in categories.values()):
            raise UserError(f"{path} is neither an index nor a meta file: it holds no categories with rows")
        for category, rows in categories.items():
            yield from _read_rows(rows, partial(_meta_entry, root, split, category), path, category)


def _meta_entry(root: Path, split: Split, category: str, row: dict[str, Any]) -> Entry:
    label: Label = "yes" if int(row["anomaly"]) else "no"
    kind, name = type_of(str(row.get("specie_name") or "bad")), str(row.get("cls_name") or category)
    return Entry(root / slashes(row["img_path"]), label, _mask(row, root), kind, split, name)


def _mask(row: dict[str, Any], root: Path) -> Path | None:
    return root / slashes(row["mask_path"]) if row.get("mask_path") else None


def real_iad_indexes(root: Path) -> dict[Path, dict[str, Any]]:
    """Real-IAD's JSON files with their content, in a folder or in a folder of it that says "json"."""
    indexes = {}
    for folder in (root, *(f for f in list_folders(root, root) if "json" in f.name.casefold())):
        for path in sorted(folder.glob("*.json")):
            try:
                content = load_json(path) if is_inside(path, root) else None
            except UserError:
                continue
            if isinstance(content, dict) and {"meta", *SPLITS} <= set(content):
                indexes[path] = content
    return indexes


def read_real_iad(folder: Path, root: Path) -> Iterator[Entry | Problem]:
    """Real-IAD: one JSON per category with paths, masks and a two-letter type code; "OK" is normal."""
    for path, index in real_iad_indexes(folder).items():
        for split in SPLITS:
            yield from _read_rows(index[split], partial(_real_iad_entry, root, split, path.stem, index), path, split)


def _real_iad_entry(root: Path, split: Split, name: str, index: dict[str, Any], row: dict[str, Any]) -> Entry:
    meta, category, code = index["meta"], row.get("category") or name, row["anomaly_class"]
    # The pictures of a category lie below the prefix that the index names, or simply below its name.
    bases = [root / slashes(prefix) for prefix in (meta.get("prefix"), category) if prefix]
    base = next((folder for folder in bases if os.path.isdir(folder)), bases[0])
    label: Label = "no" if code == meta.get("normal_class", "OK") else "yes"
    kind = REAL_IAD_TYPES.get(code, code)
    return Entry(base / slashes(row["image_path"]), label, _mask(row, base), kind, split, category)
