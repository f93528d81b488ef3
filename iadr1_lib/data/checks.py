"""Checks that a table must pass before it is used: sound pictures, fitting masks, no picture in two sets."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from iadr1_lib.data.boxes import is_boxes
from iadr1_lib.data.folders import GOOD
from iadr1_lib.data.images import content_hash, image_size, is_turned, open_image
from iadr1_lib.data.masks import mask_files, mask_size, read_mask, says_where
from iadr1_lib.data.table import KINDS, Problem, Table
from iadr1_lib.errors import UserError
from iadr1_lib.records import Sample


def check_health(samples: Iterable[Sample]) -> list[Problem]:
    """Decode every picture and mask and list what is wrong, with what the reader of a :class:`Table` passed over.

    KINDS says which kinds there are, :func:`health_table` counts them. Nothing is raised.
    """
    problems = list(samples.passed_over) if isinstance(samples, Table) else []
    samples = list(samples)
    problems += [problem for sample in samples for problem in sample_problems(sample)]
    return problems + _duplicates(samples)


def health_table(problems: Iterable[Problem]) -> pd.DataFrame:
    """Problems counted: one row per kind that occurs, with columns kind, count, meaning and example (a path)."""
    groups: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for problem in problems:
        groups[problem.kind].append(problem.image)
    rows = [(kind, len(images), KINDS[kind], images[0]) for kind, images in groups.items() if images]
    return pd.DataFrame(rows, columns=["kind", "count", "meaning", "example"])


def sample_problems(sample: Sample) -> list[Problem]:
    """What is wrong with one sample's picture, mask and path; both files are decoded."""
    problems = _path_problems(sample)

    def add(kind: str, message: str) -> None:
        problems.append(Problem(kind, sample.image, message))

    size = mask = None
    try:
        size = open_image(sample.image).size
    except UserError as error:
        add("unreadable", str(error))
    if sample.label == "yes" and sample.mask is None:
        add("defect without mask", f"{sample.image} has no mask.")
    elif sample.label == "yes" and sample.mask:
        try:
            mask = read_mask(sample.mask, sample.image)
        except UserError as error:
            add("unreadable", str(error))
    if mask is None:
        return problems
    if size and size != mask.shape[::-1]:
        add("mask size", _size_message(sample, size, (mask.shape[1], mask.shape[0])))
    elif size and size[0] == size[1] and is_turned(sample.image) and not _mask_is_turned(str(sample.mask)):
        add("turned picture", f"{sample.image} is turned by its EXIF mark, its mask not: save the picture upright.")
    if not mask.any():
        add("empty mask", f"The mask {sample.mask} marks nothing.")
    elif not says_where(mask):
        share = f"{mask.mean():.0%} of its picture"
        add("mask marks most", f"The mask {sample.mask} marks {share}: turn it around if it is inverted.")
    return problems


def _mask_is_turned(mask: str) -> bool:
    return not is_boxes(mask) and is_turned(mask_files(mask)[0])


def _size_message(sample: Sample, size: tuple[int, int], other: tuple[int, int]) -> str:
    sizes = f"{other[0]} x {other[1]} pixels and its picture {size[0]} x {size[1]}"
    return f"The mask {sample.mask} has {sizes}: replace the mask by one of the picture's size."


def _path_problems(sample: Sample) -> list[Problem]:
    """The word "good" in the path against the label: the released evaluation takes the label from that word alone."""
    parts = tuple(part.casefold() for part in Path(sample.image).parts)
    for name in (sample.benchmark.casefold(), sample.category.casefold()):
        if name in parts[:-1]:  # what stands above the data set's or the category's folder says nothing of the label
            parts = parts[len(parts) - 1 - parts[::-1].index(name) :]
            break
    says_good, problem = any(GOOD in part for part in parts), None
    if sample.label == "yes" and says_good:
        problem = "good in path", "is defective, but its path says good: the released evaluation counts it as normal"
    elif sample.label == "no" and says_good and GOOD not in parts[:-1]:
        problem = "good by accident", "is filed as normal and says good only inside a longer word: check its label"
    elif sample.label == "no" and not says_good and sample.source == "index":
        problem = "no good in path", "is normal, but its path lacks good: the released evaluation counts a defect"
    return [Problem(problem[0], sample.image, f"{sample.image} {problem[1]}.")] if problem else []


def leakage(first: Iterable[Sample], second: Iterable[Sample]) -> dict[str, tuple[list[str], list[str]]]:
    """Pictures that stand in both tables (training and test, say): content hash -> their paths in each.

    An empty result means that no file of one is, byte for byte, a file of the other.
    """
    left, right = (
        {digest: [sample.image for sample in group] for digest, group in _by_content(samples).items()}
        for samples in (first, second)
    )
    return {digest: (paths, right[digest]) for digest, paths in left.items() if digest in right}


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


def require_present(samples: Iterable[Sample]) -> None:
    """Raise one UserError that counts the pictures which are not on disk and names the first."""
    images = [sample.image for sample in samples]
    missing = [image for image in images if not os.path.isfile(image)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(images)} pictures cannot be reached on disk, the first is {missing[0]}: "
            "put them there, or name the folder that their paths start from."
        )


def require_sound(samples: list[Sample]) -> None:
    """Raise for pictures that are missing, and for the first that cannot be read or whose mask has another size."""
    require_present(samples)
    for sample in samples:
        size = image_size(sample.image)
        if sample.mask and sample.location is None:  # the reader found no cell
            read_mask(sample.mask, sample.image)  # raises for a damaged mask; an empty one is no fault
        if sample.mask and size != (other := mask_size(sample.mask, sample.image)):
            raise UserError(_size_message(sample, size, other))


def missing_label(samples: Iterable[Sample], where: str | Path) -> str | None:
    """A sentence that says what cannot be measured where one of the two labels is missing; None where both are there.

    Raises:
        UserError: ``samples`` is empty; ``where`` is named in the sentence.
    """
    labels = {sample.label for sample in samples}
    if not labels:
        raise UserError(f"{where} has no pictures to score: put them into test/good and test/<defect type>.")
    if "no" not in labels:
        return f"{where} has no good pictures (<category>/test/good): only the share of defects found can be measured."
    if "yes" not in labels:
        return f"{where} has no defective pictures (<category>/test/<type>): only the share of good ones accepted."
    return None


def without_place(samples: Iterable[Sample]) -> list[Sample]:
    """Defective pictures without a mask that says where: their location cannot be scored. No file is opened."""
    return [sample for sample in samples if sample.label == "yes" and sample.location is None]
