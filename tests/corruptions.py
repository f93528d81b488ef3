"""Seven ways to spoil a sound Expert-AD record, to test the rules of `verification` with.

`PYTHONPATH=. python tests/corruptions.py` prints the share of each kind that the rules catch, and of sound records that
they turn away.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from iadr1_lib import world
from iadr1_lib.answer import CELLS, DEFECT_TYPES, SYNONYMS, term_forms
from iadr1_lib.data import load_mvtec
from iadr1_lib.expert_ad import Facts, RuleTeacher, Task, Verifier, facts_of
from iadr1_lib.records import Record

Pairs = list[tuple[Record, Facts | None]]  # records with what was measured of their pictures
TEXTS = Path(__file__).parent / "texts" / "reasoning.json"

DATA = json.loads(TEXTS.read_text(encoding="utf-8"))
PLANTED = DATA["planted"]
GOOD_YES = Record(
    "a.png", "yes", "top left", "scratch", "bolt",
    "I scan the whole image. At the top left I see a small dark line. It is a scratch. The anomaly is clear.",
)  # fmt: skip
GOOD_NO = Record(
    "b.png", "no", None, None, "bolt", "I scan the whole image. Nothing stands out in any region. I find no anomaly."
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


def wrong_size(record: Record, rng: random.Random) -> Record:
    """Another size in the text."""
    sizes = ["small", "medium", "large"]
    old = next(size for size in sizes if re.search(rf"\b{size}\b", record.reasoning))
    return replace(record, reasoning=_swap(record.reasoning, [old], rng.choice([s for s in sizes if s != old])))


def leaked_label(record: Record, rng: random.Random) -> Record:
    """A sentence that says where the label came from."""
    return _put_in(record, rng.choice(PLANTED["leaks"]), rng)


def contradicted(record: Record, rng: random.Random) -> Record:
    """A sentence that argues against the label."""
    return _put_in(record, rng.choice(PLANTED["denials" if record.label == "yes" else "claims"]), rng)


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
    "wrong size": wrong_size,
    "leaked label": leaked_label,
    "contradiction": contradicted,
    "truncation": truncated,
    "duplicate": duplicated,
}
ONLY_DEFECTIVE = ("wrong place", "wrong type", "wrong size")


def free_texts() -> Pairs:
    """Sound reasoning in free English, written by hand; nothing was measured."""
    rows = [row for row in DATA["records"] if not row["fails"]]
    return [
        (Record(f"{i}.png", row["label"], row.get("location"), row.get("type"), "bolt", row["text"]), None)
        for i, row in enumerate(rows)
        if "facts" not in row
    ]


def rule_teacher_texts(folder: Path, short: bool, families: int = 16, pictures: int = 160, seed: int = 4) -> Pairs:
    """The rule teacher's records of a drawn world, with what was measured."""
    world.write_world(folder, world.train_families(families), pictures, seed=seed)
    pairs: Pairs = []
    for sample in load_mvtec(folder):
        facts = facts_of(sample)
        text = next(RuleTeacher(seed, short=short).write([Task(sample, facts)])).reasoning or ""
        pairs.append((Record(sample.image, sample.label, facts.location, sample.type, sample.category, text), facts))
    return pairs


def caught(kind: str, pairs: Pairs, number: int) -> float:
    """Share of `number` spoiled records that are rejected by a verifier that has accepted the sound ones."""
    verifier, rng = Verifier(repeats=True), random.Random(0)
    if kind == "duplicate":
        for record, _ in pairs:
            verifier.accept(record)
    chosen = [pair for pair in pairs if pair[0].label == "yes" or kind not in ONLY_DEFECTIVE]
    spoiled = ((CORRUPTIONS[kind](record, rng), facts) for record, facts in rng.choices(chosen, k=number))
    return sum(bool(verifier.examine(record, facts)) for record, facts in spoiled) / number


def turned_away(pairs: Pairs, repeats: bool = True) -> float:
    """Share of sound records that a verifier rejects."""
    verifier, rejected = Verifier(repeats), 0
    for record, facts in pairs:
        failed = verifier.examine(record, facts)
        rejected += bool(failed)
        if not failed:
            verifier.accept(record)
    return rejected / len(pairs)


def recall_table(seeds: Iterable[int] = (1, 2, 3), families: int = 32, pictures: int = 320) -> pd.DataFrame:
    """Percent caught by kind, and percent of sound records turned away, by style of the text."""
    styles = {"free English": free_texts()}
    with tempfile.TemporaryDirectory() as folder:
        for name, short in (("short", True), ("full", False)):
            worlds = [(Path(folder) / f"{name}_{seed}", seed) for seed in seeds]
            styles[name] = [p for w, seed in worlds for p in rule_teacher_texts(w, short, families, pictures, seed)]
    rows = {}
    for style, pairs in styles.items():
        kinds = [kind for kind in CORRUPTIONS if pairs[0][1] or kind != "wrong size"]
        rows[style] = {kind: 100 * caught(kind, pairs, 1000) for kind in kinds}
        rows[style] |= {"sound, turned away": 100 * turned_away(pairs, repeats=style == "short"), "texts": len(pairs)}
    return pd.DataFrame(rows).round(2)


if __name__ == "__main__":
    print(recall_table())
