"""The data sets' own names of defects in the words of the vocabulary, by the table data/type_names.csv.

    category_of(sample)     # "scratch" for MVTec-AD's "scratch_neck", "other" where none of the eight fits
    unmapped(samples)       # names that neither the table nor the vocabulary knows, counted

A row of the table holds for a data set, a category and a name, each of which may be "*" (any). "other" is said of names
that are known and fit none of the eight, and of unknown ones; `unmapped` lists the second.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pandas as pd

from iadr1_lib.answer import CATEGORY_OF_FORM, DEFECT_TYPES
from iadr1_lib.data.folders import says
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample
from iadr1_lib.runs import project_root

OTHER = "other"
COLUMNS = ["benchmark", "category", "name", "type", "note"]
_ANY = "*"
_BY_CATEGORY = ("MVTec-AD", "VisA", "MPDD")  # data sets whose rows name their categories
# Names that folders, files and readers of a data set go by, as letters and digits only.
DATA_SETS = {
    "MVTec-AD": "mvtec mvtecad mvtecanomalydetection dsmvtec",
    "VisA": "visa visapytorch",
    "MPDD": "mpdd",
    "DTD-Synthetic": "dtd dtdsynthetic",
    "DAGM": "dagm dagm2007",
    "KolektorSDD": "sdd ksdd kolektor kolektorsdd",
    "MagneticTile": "magnetictile magnetictiles magnetictiledefect magnetictiledefectdatasets",
    "ELPV": "elpv elpvnotofthepaper",
    "AITEX": "aitex afid",
    "WoodSurface": "woodsurface",
    "DeepPCB": "deeppcb pcbdata",
    "NEU-DET": "neudet neu",
    "SD-saliency-900": "sdsaliency900 sdsaliency",
    "X-SDD": "xsdd",
    "CrackForest": "crackforest cfd",
    "Pill-Defects": "pilldefects",
}
_DATA_SET_OF = {name: data_set for data_set, names in DATA_SETS.items() for name in names.split()}


def category_of(sample: Sample) -> str:
    """One of `answer.DEFECT_TYPES`, or "other" where none fits, the name is unknown or there is none.

    A name is looked up in the table and then in the vocabulary with its synonyms; case, "_" and "-" do not count. A
    list of names ("bubble,discolor") is as its first one that is not "other". ValueError for a normal picture.
    """
    if sample.label == "no":
        raise ValueError(f"{sample.image} is normal: only defects have a type")
    known = (_look_up(sample, name) for name in _names(sample))
    return next((kind for kind in known if kind not in (None, OTHER)), None) or OTHER


def unmapped(samples: Iterable[Sample]) -> Counter[tuple[str, str]]:
    """(benchmark, name) -> defective pictures, for names that neither the table nor the vocabulary knows."""
    return Counter(
        (sample.benchmark, name)
        for sample in samples
        if sample.label == "yes"
        for name in _names(sample)
        if name and _look_up(sample, name) is None
    )


def data_set_named(name: str) -> str | None:
    """The table's name of a data set ("mvtec_ad" -> "MVTec-AD"), or None."""
    return _DATA_SET_OF.get(re.sub(r"[\W_]", "", name).casefold())


def type_table(path: Path | None = None) -> dict[tuple[str, str, str], str]:
    """(benchmark, category, name in plain form) -> type, from the project's file; UserError where it is faulty."""
    return _read_table(path or project_root() / "data" / "type_names.csv")


@cache
def _read_table(path: Path) -> dict[tuple[str, str, str], str]:
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)[COLUMNS]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path} is no table with columns {', '.join(COLUMNS)}: get the project's file again") from None
    keys = rows[["benchmark"]].assign(category=rows["category"].map(_plain), name=rows["name"].map(_plain))
    faulty = ~rows["type"].isin([*DEFECT_TYPES, OTHER]) | (keys == "").any(axis=1) | keys.duplicated()
    if faulty.any():
        where = f"{path}, line {int(faulty.argmax()) + 2}"
        raise UserError(f"{where}: no names, names that stand there twice, or a type that is none of the eight")
    return dict(zip(keys.itertuples(index=False, name=None), rows["type"], strict=True))


def _look_up(sample: Sample, name: str) -> str | None:
    """The type of one name (plain, "" where there is none), or None."""
    table, category = type_table(), _plain(sample.category)
    if data_set := data_set_named(sample.benchmark) or data_set_named(sample.source):
        keys = [(data_set, category, name), (data_set, _ANY, name), (data_set, _ANY, _ANY)]
    else:  # a folder of another name, but category and defect are as in a data set of the table
        keys = [(known, category, name) for known in _BY_CATEGORY]
    known = next((table[key] for key in [*keys, (_ANY, _ANY, name)] if key in table), None)
    return known or CATEGORY_OF_FORM.get(name) or (OTHER if says(name) == "bad" else None)


def _names(sample: Sample) -> list[str]:
    """The sample's type name in plain form, or several where it is a list of names; [""] where it has none."""
    names = [_plain(name) for name in (sample.type or "").split(",")]
    return [name for name in names if name] or [""]


def _plain(name: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", name).casefold().split())
