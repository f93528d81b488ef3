"""Teachers: who writes the reasoning of an Expert-AD record.

All have one interface, `Teacher`: tasks in, drafts out, in the same order.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from iadr1_lib.answer import CELLS, DEFECT_TYPES, SYNONYMS, term_forms
from iadr1_lib.expert_ad.facts import Facts
from iadr1_lib.records import Sample


@dataclass(frozen=True)
class Task:
    """A record to be written: the sample, what was measured, and why the last draft (if any) was rejected.

    `attempt` is 0 for the first try; `reasons` are sentences for the teacher, one per rule that rejected the draft.
    """

    sample: Sample
    facts: Facts
    attempt: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Draft:
    """What a teacher wrote: the reasoning, or None with the sentence that says why there is none."""

    reasoning: str | None
    failure: str | None = None


class Teacher(Protocol):
    """Writes the reasoning of records."""

    @property
    def name(self) -> str:
        """As it stands in reports, such as "rule" or "anthropic/claude-sonnet-4"."""

    @property
    def key(self) -> str:
        """Differs where drafts would: what a stopped run must find unchanged to go on."""

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        """One draft per task, in the tasks' order, each given out as soon as it and those before it are there."""


# ---------------------------------------------------------------------------------------------- short phrases

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


def short_reasoning(facts: Facts, rng: random.Random) -> str:
    """Three-layer reasoning in one of many wordings, drawn by `rng`, stating measured facts only."""
    scan = rng.choice(_SCAN)
    look_alike = ""
    if facts.look_alike and facts.look_alike_cell:
        look_alike = rng.choice(_LOOK_ALIKE).format(what=facts.look_alike, place=facts.look_alike_cell)
    if facts.label == "no":
        return " ".join([scan, look_alike or rng.choice(_NOTHING), rng.choice(_INTACT), rng.choice(_FINE)])
    seen = rng.choice(_LOCATE).format(place=facts.location, size=facts.size, tone=facts.tone, form=facts.form)
    known = rng.choice(_KNOWLEDGE.get(facts.defect_type or "", _OTHER_KNOWLEDGE)).format(type=facts.defect_type)
    severity = facts.strength
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


# ---------------------------------------------------------------------------------------------- full sentences

_LOOK = (
    "I look over the whole {item} from edge to edge.",
    "I go over the {item} region by region.",
    "I inspect the {item} as a whole first, then each part of the picture.",
    "First I scan the {item} from one side of the picture to the other.",
    "I begin with an overview of the {item} and compare all of its regions.",
)
_OVERALL = (
    "Overall the picture is {brightness} and {texture}.",
    "The picture as a whole is {brightness} and {texture}.",
    "Seen as a whole the picture is {brightness} and {texture}.",
    "By and large the picture is {texture} and {brightness}.",
)
_SPOT = (
    "At the {place} there is a {size} {form} that is {tone}.",
    "At the {place} I see a {size} {form}; it is {tone}.",
    "A {size} {form} lies at the {place}, and it is {tone}.",
    "What stands out is a {size} {form} at the {place}, which is {tone}.",
    "The {place} differs from the rest: a {size} {form} there is {tone}.",
)
_TONE = {
    "dark": ("darker than its surroundings", "darker than what lies around it"),
    "bright": ("brighter than its surroundings", "brighter than what lies around it"),
    "faint": ("on average about as bright as its surroundings", "on average hardly different in brightness"),
}
_EXTENT = (
    "It takes up {share} of the picture, with {contrast} contrast in brightness.",
    "There is {contrast} contrast to its surroundings, and it covers {share} of the picture.",
    "It covers {share} of the picture and has {contrast} contrast to its surroundings.",
)
_COURSE = ("It runs {direction}.", "Its longer axis lies {direction}.", "It stretches {direction}.")
_MORE = (
    "There are {patches} such spots in all; this is the {largest}.",
    "It is the {largest} of {patches} separate spots.",
)
_ELSEWHERE = (
    "There are {patches} such spots in all, this one the {largest}; {others}.",
    "It is the {largest} of {patches} separate spots, and {others}.",
)
_JUDGE = (
    "Appearance, surface and structure are judged in turn.",
    "I weigh appearance, surface quality and structure.",
    "The next question is whether appearance, surface and structure are as they should be.",
)
_FITS = (
    "What is seen fits {type}: {meaning}.",
    "This speaks for {type}, that is, {meaning}.",
    "I take it for {type}, which means {meaning}.",
)
_MEANING = {
    "contamination": ("a substance or colour that is foreign to the material", "matter that soils the item"),
    "presence of foreign objects": ("a thing that is no part of the item", "something that does not belong there"),
    "scratch": ("a trace that something hard has drawn over the item", "a mark left by something sharp"),
    "missing parts": ("material or a part that should be there and is not", "the item is not complete"),
    "deformation": ("the shape departs from what it should be", "the item has lost its proper shape"),
    "hole": ("the material is pierced or pitted", "a place where material is pierced or hollow"),
    "damage": ("the material is broken or cracked", "the structure has given way"),
    "abrasion": ("the surface is worn or rubbed", "the finish has been worn off"),
}
_NO_KIND = (
    "The surface is not as it should be there; what kind of defect it is stays open, so I call it other.",
    "It disturbs the surface, but its kind cannot be told for certain, so it counts as other.",
    "Something is wrong with the surface there; I leave its kind open and call it other.",
)
_VERDICT = (
    "So the item is defective, and the defect is {severity}.",
    "So this is an anomaly; by its size and contrast it is {severity}.",
    "I conclude that the item has a defect, and that it is {severity}.",
    "My decision is that there is a defect, a {severity} one.",
)
_RANGE = (
    "The {brightest} is the brightest region and the {darkest} the darkest; they are {apart} apart.",
    "The {darkest} is the darkest region, the {brightest} the brightest; from one to the other it is {apart}.",
    "Between the brightest region, the {brightest}, and the darkest, the {darkest}, the difference is {apart}.",
)
_STEADY = (
    "The texture is much the same in all regions.",
    "No region has much more texture than the others.",
    "All regions have a similar texture.",
)
_LIVELY = (
    "The {liveliest} shows the most detail, and it is part of the item or its setting.",
    "Most detail lies at the {liveliest}; it belongs to the item or its setting.",
)
_BELONGS = (
    "The {what} at the {place} belongs to the item.",
    "At the {place} there is a {what}, which is part of the item.",
)
_WHOLE = (
    "Appearance, surface and structure are all within what is normal for the item.",
    "Neither surface nor structure is broken, and no part is missing.",
    "Brightness and texture vary within the normal range of the surface.",
    "The surface is sound, the structure complete, and the appearance as it should be.",
)
_NORMAL = (
    "So the item is normal, and I find no defect.",
    "So there is no defect: the item is normal.",
    "I conclude that the item has no defects.",
    "My decision is that the item is normal.",
)


# Names of folders that are no words for a thing, or that would be read as a claim: "train 007", "mask set", "left arm".
_CLAIMS = "|".join(
    re.escape(form) for kind in SYNONYMS for term in (kind, *SYNONYMS[kind]) for form in term_forms(term)
)
_NO_THING = re.compile(
    r"[^a-z ]|\b(?:(?:data|mask|label|image|picture|photo|test|train|good|bad|normal|set|defect|anomal)\w*|ok|ng|"
    r"ground|truth|other|top|upper|bottom|lower|left|right|center|centre|middle|"
    rf"{_CLAIMS})\b"
)


def item_named(category: str) -> str:
    """What a text calls the thing in the picture: the category's name, or "item" where that is no word for it."""
    name = category.replace("_", " ").lower().strip()
    return "item" if not name or _NO_THING.search(name) else name


def full_reasoning(facts: Facts, item: str, rng: random.Random) -> str:
    """Reasoning in whole English sentences, in one of many wordings drawn by `rng`, stating measured facts only.

    Perception: what the picture is like, where something differs, how large, in what contrast. Knowledge: which kind of
    defect that is. Decision: whether there is a defect, how severe. `item` is what the picture shows.
    """
    surface = facts.surface
    said = [rng.choice(_LOOK).format(item=item)]
    if surface is not None:
        overall = rng.choice(_OVERALL)
        said.append(overall.format(brightness=surface.brightness_word, texture=surface.texture_word))
    said += _found(facts, rng) if facts.label == "yes" else _found_nothing(facts, rng)
    return " ".join(said)


def _found(facts: Facts, rng: random.Random) -> list[str]:
    tone = rng.choice(_TONE[facts.tone])
    said = [rng.choice(_SPOT).format(place=_at(facts, facts.location), size=facts.size, form=facts.shape, tone=tone)]
    said.append(rng.choice(_EXTENT).format(share=_share(facts.area), contrast=_contrast(facts)))
    if facts.direction and facts.shape != "patch":
        said.append(rng.choice(_COURSE).format(direction=facts.direction))
    if facts.patches > 1:
        more = rng.choice(_ELSEWHERE if facts.other_cells else _MORE)
        largest = "larger" if facts.patches == 2 else "largest"
        said.append(more.format(patches=_number(facts.patches), largest=largest, others=_others(facts)))
    said.append(rng.choice(_JUDGE))
    kind = facts.defect_type or ""
    meaning = rng.choice(_MEANING.get(kind, ("",)))
    said.append(rng.choice(_FITS if meaning else _NO_KIND).format(type=kind, meaning=meaning))
    return [*said, rng.choice(_VERDICT).format(severity=facts.severity)]


def _found_nothing(facts: Facts, rng: random.Random) -> list[str]:
    said, surface = [], facts.surface
    if surface is not None:
        brightest, darkest, liveliest = (
            _at(facts, cell) for cell in (surface.brightest, surface.darkest, surface.liveliest)
        )
        apart = _levels(surface.difference)
        said.append(rng.choice(_RANGE).format(brightest=brightest, darkest=darkest, apart=apart))
        said.append(rng.choice(_LIVELY if surface.unrest > 1.5 else _STEADY).format(liveliest=liveliest))
    if facts.look_alike and facts.look_alike_cell:
        said.append(rng.choice(_BELONGS).format(what=facts.look_alike, place=facts.look_alike_cell))
    return [*said, rng.choice(_WHOLE), rng.choice(_NORMAL)]


def _share(area: float) -> str:
    percent = 100 * area
    return "less than one percent" if percent < 0.8 else f"about {percent:.0f} percent"


def _contrast(facts: Facts) -> str:
    return facts.step if facts.step == "hardly any" else f"a {facts.step}"


def _levels(difference: float) -> str:
    """A difference of grey levels (0 to 1) in words that an eye can follow."""
    percent = 100 * difference
    return (
        "only a few percent of the range from black to white"
        if percent < 3
        else f"about {percent:.0f} percent of the range from black to white"
    )


def _number(count: int) -> str:
    words = ("one", "two", "three", "four", "five", "six")
    return words[count - 1] if count <= len(words) else "many"


def _others(facts: Facts) -> str:
    start = "the other lies" if facts.patches == 2 else "more lie"
    return f"{start} at the {_list([_at(facts, cell) for cell in facts.other_cells])}"


def _at(facts: Facts, cell: str | None) -> str:
    """A cell after "at the": in finer grids "upper" and "far left" need a noun."""
    return f"{cell} part" if facts.grid > 3 else str(cell)


def _list(cells: Sequence[str]) -> str:
    *first, last = cells or ("",)
    return f"{', '.join(first)} and {last}" if first else last


# ---------------------------------------------------------------------------------------------- the teacher


class RuleTeacher:
    """Writes from measured facts only, in one of many wordings drawn by the seed and the picture's name.

    `short` writes the few words that the mini VLM knows, instead of whole sentences.
    """

    name = "rule"

    def __init__(self, seed: int = 0, *, short: bool = False):
        self.seed, self.short = seed, short
        self.key = f"rule, {'short' if short else 'full'}, seed {seed}"

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        for task in tasks:
            sample = task.sample
            rng = random.Random(zlib.crc32(f"{self.seed}/{Path(sample.image).name}/{sample.category}".encode()))
            for _ in range(task.attempt + 1):  # another wording each time
                draft = self._draft(task, rng)
            yield Draft(draft)

    def _draft(self, task: Task, rng: random.Random) -> str:
        name = task.sample.category.replace("_", " ")
        return short_reasoning(task.facts, rng) if self.short else full_reasoning(task.facts, item_named(name), rng)
