"""Expert-AD: from samples with masks to chain-of-thought records, checked and exported in the released formats.

The paper (section "Expert-AD") lets the reasoning go through three layers: *perception* (scan, locate), *knowledge*
(appearance, surface, structure, hence a type) and *decision* (anomaly or not, how severe). It does not say who wrote
the text. Here a *rule teacher* writes it from facts measured on the picture and its mask, and from nothing else.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from iadr1_lib.answer import (
    CELLS,
    DEFECT_TYPES,
    QUESTION,
    Label,
    build_answer,
    build_solution,
    cell_of_mask,
    matches_format,
)
from iadr1_lib.benchmarks import Sample, open_image, read_mask
from iadr1_lib.runs import UserError


@dataclass(frozen=True)
class Facts:
    """What can be measured: the only things the rule teacher may speak of.

    `area` is the mask's share of the picture; `contrast` the mean absolute difference in grey level (0 to 1) between
    the mask and a ring around it; `tone` the sign of that difference; `elongation` the ratio of the mask's axes.
    """

    label: Label
    location: str | None = None
    defect_type: str | None = None
    area: float = 0.0
    contrast: float = 0.0
    tone: str = ""
    elongation: float = 1.0
    look_alike: str | None = None
    look_alike_cell: str | None = None


@dataclass(frozen=True)
class Record:
    """One Expert-AD record: a sample's picture, labels and the reasoning written for it."""

    image: str
    label: Label
    location: str | None
    type: str | None
    category: str
    reasoning: str

    @property
    def answer(self) -> str:
        return build_answer(self.reasoning, self.label, self.location, self.type)

    @property
    def solution(self) -> str:
        return build_solution(self.label, self.location, self.type)


# ---------------------------------------------------------------------------------------------- facts


def measure(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Area, contrast, tone and elongation of a mask on an RGB picture (height, width, 3)."""
    grey = image.mean(-1) / 255
    reach = max(2, round(0.04 * max(mask.shape)))
    ring = ndimage.binary_dilation(mask, iterations=reach) & ~ndimage.binary_dilation(mask, iterations=1)
    around = grey[ring].mean() if ring.any() else grey.mean()
    difference = float(grey[mask].mean() - around)
    rows, columns = np.nonzero(mask)
    axes = np.linalg.eigvalsh(np.cov(np.stack([columns, rows]))) if len(rows) > 2 else np.ones(2)
    return {
        "area": float(mask.mean()),
        "contrast": float(np.abs(grey[mask] - around).mean()),
        "tone": "dark" if difference < -0.03 else "bright" if difference > 0.03 else "faint",
        "elongation": float(np.sqrt(max(axes[1], 1e-6) / max(axes[0], 1e-6))),
    }


def _notes(category_folder: Path) -> dict[str, dict[str, Any]]:
    path = category_folder / "notes.json"
    return _read_notes(path, path.stat().st_mtime_ns) if path.exists() else {}


@lru_cache(maxsize=256)
def _read_notes(path: Path, written: int) -> dict[str, dict[str, Any]]:
    """The notes as of the time `written`: a world drawn again brings new ones."""
    return json.loads(path.read_text())


def facts_of(sample: Sample) -> Facts:
    """Measure a sample. Drawn pictures bring notes on look-alikes; real ones have none, and nothing is assumed."""
    folder = Path(sample.image).parents[2]
    note = _notes(folder).get(Path(sample.image).relative_to(folder).as_posix(), {})
    seen: dict[str, Any] = {k: note.get(k) for k in ("look_alike", "look_alike_cell")}
    if sample.label == "no":
        return Facts(label="no", **seen)
    if sample.mask is None:
        raise UserError(f"{sample.image} is defective but has no mask: the rule teacher needs one; leave the image out")
    image = np.asarray(open_image(sample.image))
    mask = read_mask(sample.mask)
    if not mask.any():
        raise UserError(f"The mask {sample.mask} marks nothing: mend it or leave the image out")
    return Facts(label="yes", location=cell_of_mask(mask), defect_type=sample.type, **measure(image, mask), **seen)


# ---------------------------------------------------------------------------------------------- rule teacher

_SCAN = (
    "I scan the image .",
    "I go over the surface .",
    "Looking from edge to edge .",
    "I compare all regions .",
)
_LOCATE = (
    "At the {place} I see a {size} {tone} {form} .",
    "There is a {size} {tone} {form} at the {place} .",
    "A {size} {tone} {form} stands out at the {place} .",
    "The {place} differs : a {size} {tone} {form} .",
)
_NOTHING = (
    "The texture has no break .",
    "Nothing stands out .",
    "All regions look alike .",
    "No place differs from the rest .",
)
_LOOK_ALIKE = (
    "The {what} at the {place} belongs to the item .",
    "At the {place} there is only a {what} .",
    "The {what} at the {place} is normal .",
)
_KNOWLEDGE = {
    "contamination": ("The color is foreign : {type} .", "A soft stain means {type} ."),
    "presence of foreign objects": ("A body lies on top : {type} .", "It does not belong here : {type} ."),
    "scratch": ("The trace is straight : a {type} .", "A fine line means {type} ."),
    "missing parts": ("Material is lacking : {type} .", "The form is not complete : {type} ."),
    "deformation": ("The shape is bent : {type} .", "The pattern is pushed aside : {type} ."),
    "hole": ("It is round and deep : a {type} .", "The material is pierced : a {type} ."),
    "damage": ("Cracks run out from it : {type} .", "The structure is broken : {type} ."),
    "abrasion": ("The finish is rubbed : {type} .", "Wear marks mean {type} ."),
}
_OTHER_KNOWLEDGE = ("It breaks the finish : {type} .", "It does not belong to the item : {type} .")
_INTACT = (
    "Appearance and structure are intact .",
    "Surface and shape are fine .",
    "The finish and form are whole .",
)
_SEVERE = ("It is a {severity} anomaly .", "The anomaly is {severity} .")
_FINE = ("So the item is normal .", "I find no anomaly .")


def _size(area: float) -> str:
    return "small" if area < 0.008 else "large" if area > 0.03 else "medium"


def _form(elongation: float) -> str:
    return "line" if elongation > 3.5 else "streak" if elongation > 1.8 else "patch"


def rule_teacher(facts: Facts, rng: random.Random) -> str:
    """Three-layer reasoning in one of many wordings, drawn by `rng`, stating measured facts only."""
    scan = rng.choice(_SCAN)
    look_alike = ""
    if facts.look_alike and facts.look_alike_cell:
        look_alike = rng.choice(_LOOK_ALIKE).format(what=facts.look_alike, place=facts.look_alike_cell)
    if facts.label == "no":
        return " ".join([scan, look_alike or rng.choice(_NOTHING), rng.choice(_INTACT), rng.choice(_FINE)])
    seen = rng.choice(_LOCATE).format(
        place=facts.location, size=_size(facts.area), tone=facts.tone, form=_form(facts.elongation)
    )
    known = rng.choice(_KNOWLEDGE.get(facts.defect_type or "", _OTHER_KNOWLEDGE)).format(type=facts.defect_type)
    severity = "clear" if facts.contrast > 0.12 else "slight"
    return " ".join([scan, seen, known, rng.choice(_SEVERE).format(severity=severity)])


def teacher_vocabulary() -> list[str]:
    """Every sentence the rule teacher can write, slots filled: the tokenizer is trained on these words too."""
    frames: list[str] = [*_SCAN, *_NOTHING, *_INTACT, *_FINE]
    frames += [s.format(severity=v) for s in _SEVERE for v in ("clear", "slight")]
    frames += [s.format(what="printed mark seam shadow knot", place=c) for s in _LOOK_ALIKE for c in CELLS]
    frames += [
        s.format(place=c, size="small medium large", tone="dark bright faint", form="line streak patch")
        for s in _LOCATE
        for c in CELLS
    ]
    frames += [s.format(type=t) for t in DEFECT_TYPES for s in (*_KNOWLEDGE[t], *_OTHER_KNOWLEDGE)]
    return frames


# ---------------------------------------------------------------------------------------------- verification


def _places_named(text: str) -> set[str]:
    """Cells named in a text, the longest name first, so that "top left" is not also "top"."""
    found = set()
    text = re.sub(r"\bon top\b", " ", text)  # says how, not where
    for cell in sorted(CELLS, key=len, reverse=True):
        if re.search(rf"\b{cell}\b", text):
            found.add(cell)
            text = re.sub(rf"\b{cell}\b", " ", text)
    return found


def _types_named(text: str) -> set[str]:
    return {t for t in DEFECT_TYPES if re.search(rf"\b{t}\b", text)}


def _format(record: Record) -> bool:
    try:
        return matches_format(record.answer) == record.label
    except ValueError:  # tags that the label's pattern lacks, or has not
        return False


def _place(record: Record) -> bool:
    return record.label == "no" or record.location in _places_named(record.reasoning.lower())


def _type(record: Record) -> bool:
    text = record.reasoning.lower()
    if record.type and record.type not in DEFECT_TYPES:
        text = text.replace(record.type.lower(), " ")  # a data set's own name may hold another's: "scratch head"
    named = _types_named(text)
    known = record.type in DEFECT_TYPES
    return named <= {record.type} and (not known or record.label == "no" or record.type in named)


def _no_leak(record: Record) -> bool:
    return not re.search(r"\b(mask|ground truth|annotat\w+|label\w*|as given)\b", record.reasoning.lower())


def _no_contradiction(record: Record) -> bool:
    says_fine = bool(re.search(r"\bno (anomaly|defects?)\b|\bis normal \.$", record.reasoning.lower().strip()))
    return says_fine if record.label == "no" else not says_fine


def _length(record: Record) -> bool:
    """Three layers take three whole sentences, so a text that was cut off is too short; and none is endless."""
    text = record.reasoning.strip()
    sentences = re.findall(r"[.!?](?=\s|$)", text)
    return len(sentences) >= 3 and text.endswith((".", "!", "?")) and 8 <= len(text.split()) <= 120


CHECKS: dict[str, Callable[[Record], bool]] = {
    "format": _format,
    "place agrees": _place,
    "type agrees": _type,
    "no leak of the label's origin": _no_leak,
    "no contradiction": _no_contradiction,
    "length": _length,
}


def failed_checks(record: Record) -> list[str]:
    """Names of the checks that a record does not pass."""
    return [name for name, check in CHECKS.items() if not check(record)]


# ---------------------------------------------------------------------------------------------- the set


def build_records(samples: Iterable[Sample], seed: int, tries: int = 3) -> tuple[list[Record], list[dict[str, Any]]]:
    """Records for `samples`, and the list of rejected ones (record, checks failed), never dropped in silence."""
    accepted, rejected = [], []
    for sample in samples:
        facts = facts_of(sample)
        rng = random.Random(zlib.crc32(f"{seed}/{Path(sample.image).name}/{sample.category}".encode()))
        for _ in range(tries):
            record = Record(
                sample.image,
                sample.label,
                facts.location,
                sample.type,
                sample.category,
                rule_teacher(facts, rng),
            )
            failed = failed_checks(record)
            if not failed:
                accepted.append(record)
                break
        else:
            rejected.append({**asdict(record), "failed": failed})
    return accepted, rejected


def answer_only(record: Record) -> Record:
    """The same record without reasoning: the answer-only data of the paper's Table 2."""
    return replace(record, reasoning="")


def pa_sft_row(record: Record) -> dict[str, Any]:
    """A row of pa_sft.json, in the released format."""
    return {
        "images": record.image,
        "messages": [
            {"role": "user", "content": f"<image>\n{QUESTION}"},
            {"role": "assistant", "content": record.answer},
        ],
    }


def sc_grpo_row(record: Sample | Record, number: int) -> dict[str, Any]:
    """A row of sc_grpo.json, in the released format: picture, question and tags, no reasoning."""
    solution = build_solution(record.label, record.location, record.type)
    return {"id": number, "image": record.image, "problem": QUESTION, "solution": solution}


def report_of(records: list[Record], rejected: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by label, type, place, category and failed check."""
    return {
        "records": len(records),
        "rejected": len(rejected),
        "failed checks": dict(Counter(name for r in rejected for name in r["failed"])),
        "label": dict(Counter(r.label for r in records)),
        "type": dict(Counter(r.type for r in records if r.type)),
        "location": dict(Counter(r.location for r in records if r.location)),
        "category": dict(Counter(r.category for r in records)),
        "words of reasoning, mean": round(float(np.mean([len(r.reasoning.split()) for r in records])), 1),
    }


def export(records: list[Record], rl_samples: list[Sample], rejected: list[dict[str, Any]], folder: Path) -> None:
    """Write pa_sft.json, sc_grpo.json, rejected.jsonl and report.json.

    Raises:
        UserError: a picture is in both sets.
    """
    both = {r.image for r in records} & {s.image for s in rl_samples}
    if both:
        raise UserError(
            f"{len(both)} images are in both the PA-SFT and the SC-GRPO set, such as {min(both)}: split again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "pa_sft.json", [pa_sft_row(r) for r in records])
    _write_json(folder / "sc_grpo.json", [sc_grpo_row(s, i) for i, s in enumerate(rl_samples)])
    (folder / "rejected.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rejected))
    _write_json(folder / "report.json", report_of(records, rejected))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


def read_rows(path: Path, made_by: str = "03_expert_ad") -> list[dict[str, Any]]:
    """Rows of pa_sft.json or sc_grpo.json; UserError if the file is missing or not a list of records."""
    if not Path(path).exists():
        raise UserError(f"{path} is missing: run notebook {made_by} first")
    try:
        rows = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON (line {error.lineno}): build it again with notebook {made_by}"
        ) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no records: build it again with notebook {made_by}")
    return rows
