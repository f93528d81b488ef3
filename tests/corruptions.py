"""Six ways to spoil a sound Expert-AD record, to test the rules of `verification` with."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace

from iadr1_lib.answer import CELLS, DEFECT_TYPES, SYNONYMS, term_forms
from iadr1_lib.records import Record

LEAKS = (
    "The mask marks this spot.",
    "The ground truth confirms it.",
    "The annotation shows where it lies.",
    "As given, the answer is clear.",
    "According to the label, this is right.",
    "I was told what to look for.",
    "The provided information agrees with this.",
    "The metadata says the same.",
    "The file name says as much.",
    "The picture comes from the folder of such items.",
    "This fits the given location and type.",
    "As stated in the task, this is what the picture shows.",
    "The labeled region agrees with what I see.",
    "The bounding box lies around it.",
    "This is consistent with the ground-truth annotation.",
    "You mentioned this in the prompt.",
)
DENIALS = (
    "I find no anomaly.",
    "There is no defect.",
    "So the item is normal.",
    "The part is not defective.",
    "The surface is free of anomalies.",
    "I see nothing abnormal.",
    "The item looks normal.",
    "Everything appears to be in order.",
    "I do not see any defects.",
    "Nothing stands out.",
    "There are no visible flaws in the image.",
    "The product is flawless.",
    "The object is defect-free.",
    "The whole surface is intact.",
    "This isn't an anomaly.",
    "All regions look alike.",
)
CLAIMS = (
    "It is a clear anomaly.",
    "There is a scratch.",
    "I notice a dark stain near the edge.",
    "The item is defective.",
    "The part is damaged.",
    "A crack-like defect runs through it.",
    "Therefore this is an anomaly of slight severity.",
    "A foreign object lies on the surface.",
    "The anomaly is clear.",
    "This region looks abnormal.",
    "The surface shows contamination.",
    "One corner is broken.",
    "The image contains a flaw.",
    "It has a severe deformation.",
    "The item must be rejected.",
)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text.strip())


def _put_in(record: Record, sentence: str, rng: random.Random) -> Record:
    """The record with a sentence added anywhere behind its first."""
    sentences = _sentences(record.reasoning)
    sentences.insert(rng.randint(1, len(sentences)), sentence)
    return replace(record, reasoning=" ".join(sentences))


def _swap(text: str, old: list[str], new: str) -> str:
    """`text` with whole words swapped, hyphens or blanks between them."""
    names = "|".join(re.escape(name).replace(r"\ ", "[ -]") for name in sorted(old, key=len, reverse=True))
    return re.sub(rf"\b(?:{names})\b", new, text, flags=re.IGNORECASE)


def _names_of_cell(cell: str) -> list[str]:
    """A cell's own name and its everyday forms: "top left", "upper left"; "center", "middle"."""
    other = cell.replace("top", "upper").replace("bottom", "lower")
    return [cell, other, *(("centre", "middle", "central") if cell == "center" else ())]


def wrong_place(record: Record, rng: random.Random) -> Record:
    """Another place in the text, or in the tag."""
    assert record.location
    other = rng.choice([cell for cell in CELLS if cell != record.location])
    if rng.random() < 0.5:
        return replace(record, location=other)
    return replace(record, reasoning=_swap(record.reasoning, _names_of_cell(record.location), other))


def wrong_type(record: Record, rng: random.Random) -> Record:
    """Another type in the text, or in the tag."""
    assert record.type
    other = rng.choice([kind for kind in DEFECT_TYPES if kind != record.type])
    terms = [record.type, *SYNONYMS.get(record.type, ())]
    text = _swap(record.reasoning, [form for term in terms for form in term_forms(term)], other)
    if text == record.reasoning or rng.random() < 0.5:
        return replace(record, type=other)
    return replace(record, reasoning=text)


def leaked_label(record: Record, rng: random.Random) -> Record:
    """A sentence that says where the label came from."""
    return _put_in(record, rng.choice(LEAKS), rng)


def contradicted(record: Record, rng: random.Random) -> Record:
    """A sentence that argues against the label."""
    return _put_in(record, rng.choice(DENIALS if record.label == "yes" else CLAIMS), rng)


def truncated(record: Record, rng: random.Random) -> Record:
    """The text cut off before a random word, as by a limit of tokens. A full stop is no word."""
    starts = [found.start() for found in re.finditer(r"\S*\w\S*", record.reasoning)]
    return replace(record, reasoning=record.reasoning[: rng.choice(starts[1:])].rstrip())


def duplicated(record: Record, rng: random.Random) -> Record:
    """The record of the same picture a second time."""
    return replace(record)


CORRUPTIONS: dict[str, Callable[[Record, random.Random], Record]] = {
    "wrong place": wrong_place,
    "wrong type": wrong_type,
    "leaked label": leaked_label,
    "contradiction": contradicted,
    "truncation": truncated,
    "duplicate": duplicated,
}
ONLY_DEFECTIVE = ("wrong place", "wrong type")
