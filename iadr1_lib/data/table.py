"""The table of samples that every reader gives, and the problems that it lists instead of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd

from iadr1_lib.answer import Label
from iadr1_lib.data.images import share_depth
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
# As the fields of the released index, similar_templates and random_templates.
REFERENCE_KINDS = ("similar", "random")
# Image -> kind of reference -> pictures that the data set itself names for it, the best first.
Templates = dict[str, dict[str, list[Path]]]

# Every kind of problem, in the order of a report. The first ones are met while a folder or file is read.
KINDS = {
    "outside": "a link or an entry that leads out of the folder; not followed",
    "broken link": "a link to nothing, or in a circle; not followed",
    "folder like a picture": "a folder that is called like a picture; not entered",
    "undecodable name": "a file name that is no text in this system's encoding; not read",
    "passed over": "a folder with pictures where the layout has none; not read",
    "misplaced": "defective pictures among the training pictures; not read",
    "no label": "a picture of which the data set does not say whether it is normal; not read",
    "broken row": "a row of an index or table that does not say what it must; not read",
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
_REFUSED = frozenset({"outside", "misplaced", "no label", "broken row", "unreadable"})


@dataclass(frozen=True)
class Problem:
    """One problem of a data set: its kind (of KINDS), the file or folder, and a sentence for the reader."""

    kind: str
    image: str
    message: str


class Entry(NamedTuple):
    """A picture as a reader of one layout gives it: the mask is not read yet.

    `category` and `benchmark` are None where they are the names of the category's and the data set's folder. `template`
    is a good picture of this very part, where the data set has one.
    """

    image: Path
    label: Label
    mask: Path | None = None
    type: str | None = None
    split: Split = "test"
    category: str | None = None
    benchmark: str | None = None
    template: Path | None = None


class Table(list[Sample]):
    """A reader's rows; in `passed_over`, what it could make no row of; in `templates`, the set's own references."""

    def __init__(self, samples: Iterable[Sample] = (), passed_over: Iterable[Problem] = ()) -> None:
        super().__init__(samples)
        self.passed_over = list(passed_over)
        self.templates: Templates = {}


def table_of(rows: Iterable[Sample | Problem]) -> Table:
    """Rows and problems as a table whose grey pictures of more than 8 bits are scaled alike."""
    rows = list(rows)
    table = Table((row for row in rows if isinstance(row, Sample)), (row for row in rows if isinstance(row, Problem)))
    share_depth(sample.image for sample in table)
    return table


def refuse(problems: Iterable[Problem]) -> None:
    """Raise UserError for the first problem that makes a table wrong; links in a circle and the like do not."""
    for problem in problems:
        if problem.kind in _REFUSED:
            raise UserError(problem.message)


def samples_table(samples: Iterable[Sample]) -> pd.DataFrame:
    """One row per sample, one column per field of :class:`Sample`."""
    return pd.DataFrame(list(samples), columns=[field.name for field in fields(Sample)])


def counts(samples: Iterable[Sample]) -> pd.DataFrame:
    """Pictures per benchmark, category and split (columns good, defective, with mask), in order."""
    table = samples_table(samples)
    flags = {"good": table["label"] == "no", "defective": table["label"] == "yes", "with mask": table["mask"].notna()}
    groups = table.assign(**flags).groupby(["benchmark", "category", "split"], sort=False)
    return groups[list(flags)].sum().reset_index()
