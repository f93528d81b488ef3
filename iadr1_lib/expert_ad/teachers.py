"""Teachers: who writes the reasoning of an Expert-AD record.

All have one interface, `Teacher`: tasks in, drafts out, in the same order.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from iadr1_lib.answer import CELLS, DEFECT_TYPES, GRID, Label, build_answer, cell_names
from iadr1_lib.expert_ad.claims import TERM
from iadr1_lib.expert_ad.facts import Facts, facts_of
from iadr1_lib.records import Sample
from iadr1_lib.world.marks import LOOK_ALIKES


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


@dataclass(frozen=True)
class Budget:
    """How long an answer may be for the model that is to learn it.

    Attributes:
        count: text of an answer -> its tokens, by the model's tokenizer.
        tokens: most tokens, the one that ends the answer included: `max_completion_length` of SC-GRPO.
    """

    count: Callable[[str], int]
    tokens: int

    @classmethod
    def of(cls, tokenizer: Any, tokens: int) -> Budget:
        """The budget of a model by its tokenizer."""
        return cls(lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), tokens)

    def excess(self, answer: str) -> str | None:
        """A sentence for the teacher where the answer is too long, else None."""
        needed = self.count(answer) + 1
        return f"The answer takes {needed} tokens, and {self.tokens} are allowed." if needed > self.tokens else None


_PHRASES = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))
_SHORT, _FULL = _PHRASES["short"], _PHRASES["full"]


def short_reasoning(facts: Facts, rng: random.Random) -> str:
    """Three-layer reasoning in one of many wordings, chosen by `rng`, stating measured facts only."""

    def write(key: str, **words: str | None) -> str:
        return rng.choice(_SHORT[key]).format(**words)

    sentences = [write("scan")]
    # A defective picture's look-alike is not spoken of, but its wording is chosen: the records of a seed rest on that.
    place = facts.look_alike_cell if facts.look_alike else None
    look_alike = write("look_alike", what=facts.look_alike, place=place) if place else ""
    if facts.label == "no":
        sentences += [look_alike or write("nothing"), write("intact"), write("fine")]
    else:
        sentences.append(write("locate", place=facts.location, size=facts.size, tone=facts.tone, form=facts.form))
        known = _SHORT["knowledge"].get(facts.defect_type or "", _SHORT["other_knowledge"])
        sentences.append(rng.choice(known).format(type=facts.defect_type))
        sentences.append(write("severe", severity=facts.strength))
    return " ".join(sentences)


_LOOKS = {  # what the slots of the short style's sentences can hold, besides places and types
    "size": ("small", "medium", "large"),
    "tone": ("dark", "bright", "faint"),
    "form": ("line", "streak", "patch"),
    "severity": ("clear", "slight"),
    "what": LOOK_ALIKES,
}


def teacher_vocabulary() -> list[str]:
    """Every sentence the rule teacher can write, slots filled: the tokenizer is trained on these words too."""
    looks = {slot: " ".join(_LOOKS[slot]) for slot in ("size", "tone", "form")}
    frames: list[str] = [*_SHORT["scan"], *_SHORT["nothing"], *_SHORT["intact"], *_SHORT["fine"]]
    frames += [s.format(severity=v) for s in _SHORT["severe"] for v in _LOOKS["severity"]]
    frames += [s.format(what=" ".join(LOOK_ALIKES), place=c) for s in _SHORT["look_alike"] for c in CELLS]
    frames += [s.format(place=c, **looks) for s in _SHORT["locate"] for c in CELLS]
    return frames + [
        s.format(type=t) for t in DEFECT_TYPES for s in (*_SHORT["knowledge"][t], *_SHORT["other_knowledge"])
    ]


class ShortClaims(NamedTuple):
    """What a reasoning in the short style claims; of a normal picture neither place nor type."""

    label: Label
    place: str | None
    type: str | None


_ORDER: dict[Label, tuple[str, ...]] = {
    "yes": ("scan", "locate", "knowledge", "severe"),
    "no": ("scan", "nothing", "intact", "fine"),
}


def read_short(reasoning: str, grid: int = GRID) -> ShortClaims | None:
    """The claims of a text that `short_reasoning` can write, word for word; None for any other text.

    So a text that is read consists of whole sentences, in the order of the three layers, and all claim one thing.
    """
    sentences = [f"{sentence} ." for sentence in reasoning.strip().removesuffix(" .").split(" . ")]
    if not reasoning.strip().endswith(" ."):
        return None
    for label, parts in _ORDER.items():
        found = [
            next((read for wording in _short_wordings(grid)[part] if (read := wording.fullmatch(sentence))), None)
            for part, sentence in zip(parts, sentences, strict=False)
        ]
        if len(sentences) == len(parts) and all(found):
            slots = {slot: word for read in found if read for slot, word in read.groupdict().items()}
            return (
                ShortClaims(label, slots["place"], slots["type"]) if label == "yes" else ShortClaims("no", None, None)
            )
    return None


@lru_cache(maxsize=8)
def _short_wordings(grid: int) -> dict[str, list[re.Pattern[str]]]:
    """Of each part of the short style its wordings, as patterns with the slots as groups."""
    slots = {slot: "|".join(words) for slot, words in {**_LOOKS, "place": cell_names(grid)}.items()}
    own_type = rf"(?!(?:{'|'.join(DEFECT_TYPES)}) \.)[\w' -]+"  # a data set's own, of which the table knows nothing

    def patterns(wordings: Sequence[str], kind: str = own_type) -> list[re.Pattern[str]]:
        words = slots | {"type": kind}
        escaped = (re.escape(wording) for wording in wordings)
        return [re.compile(re.sub(r"\\{(\w+)\\}", lambda s: f"(?P<{s[1]}>{words[s[1]]})", text)) for text in escaped]

    read = {part: patterns(wordings) for part, wordings in _SHORT.items() if part != "knowledge"}
    read["knowledge"] = [p for kind, wordings in _SHORT["knowledge"].items() for p in patterns(wordings, kind)]
    read["knowledge"] += read["other_knowledge"]
    read["nothing"] += read["look_alike"]
    return read


# Names of folders that are no words for a thing, or that would be read as a claim: "train 007", "mask set", "left arm".
_NO_THING = re.compile(
    r"[^a-z ]|\b(?:(?:data|mask|label|image|picture|photo|test|train|good|bad|normal|set|defect|anomal)\w*|ok|ng|"
    r"ground|truth|other|top|upper|bottom|lower|left|right|center|centre|middle)\b"
)


def item_named(category: str) -> str:
    """What a text calls the thing in the picture: the category's name, or "item" where that is no word for it."""
    name = category.replace("_", " ").lower().strip()
    return "item" if not name or _NO_THING.search(name) or TERM.search(name) else name


def full_reasoning(facts: Facts, item: str, rng: random.Random) -> str:
    """Reasoning in whole English sentences, in one of many wordings chosen by `rng`, stating measured facts only.

    Perception: what the picture is like, where something differs, how large, in what contrast. Knowledge: which kind of
    defect that is. Decision: whether there is a defect, how severe. `item` is what the picture shows.
    """

    def write(key: str, **words: str) -> str:
        return rng.choice(_FULL[key]).format(**words)

    surface = facts.surface
    sentences = [write("look", item=item)]
    if surface is not None:
        sentences.append(write("overall", brightness=surface.brightness_word, texture=surface.texture_word))
    if facts.label == "yes":
        tone = rng.choice(_FULL["tone"][facts.tone])
        sentences.append(write("spot", place=_at(facts, facts.location), size=facts.size, form=facts.shape, tone=tone))
        contrast = facts.step if facts.step == "hardly any" else f"a {facts.step}"
        share = "less than one percent" if facts.area < 0.008 else f"about {100 * facts.area:.0f} percent"
        sentences.append(write("extent", share=share, contrast=contrast))
        if facts.direction and facts.shape != "patch":
            sentences.append(write("course", direction=facts.direction))
        if facts.patches > 1:
            number = ("two", "three", "four", "five", "six")[facts.patches - 2] if facts.patches <= 6 else "many"
            lie, largest = ("the other lies", "larger") if facts.patches == 2 else ("more lie", "largest")
            cells = " and ".join(", ".join(_at(facts, cell) for cell in facts.other_cells).rsplit(", ", 1))
            key = "elsewhere" if cells else "more"
            sentences.append(write(key, patches=number, largest=largest, others=f"{lie} at the {cells}"))
        sentences.append(write("judge"))
        kind = facts.defect_type or ""
        meaning = rng.choice(_FULL["meaning"].get(kind, [""]))
        sentences.append(write("fits" if meaning else "no_kind", type=kind, meaning=meaning))
        return " ".join([*sentences, write("verdict", severity=facts.severity)])
    if surface is not None:
        percent = "only a few" if surface.difference < 0.03 else f"about {100 * surface.difference:.0f}"
        extremes = {"brightest": _at(facts, surface.brightest), "darkest": _at(facts, surface.darkest)}
        sentences.append(write("range", apart=f"{percent} percent of the range from black to white", **extremes))
        lively = "lively" if surface.unrest > 1.5 else "steady"
        sentences.append(write(lively, liveliest=_at(facts, surface.liveliest)))
    if facts.look_alike and facts.look_alike_cell:
        sentences.append(write("belongs", what=facts.look_alike, place=facts.look_alike_cell))
    return " ".join([*sentences, write("whole"), write("normal")])


def _at(facts: Facts, cell: str | None) -> str:
    """A cell after "at the": in finer grids "upper" and "far left" need a noun."""
    return f"{cell} part" if facts.grid > 3 else str(cell)


class RuleTeacher:
    """Writes from measured facts only, in one of many wordings chosen by the seed and the picture's name.

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
            item = item_named(sample.category)
            for _ in range(task.attempt + 1):  # another wording each time
                text = short_reasoning(task.facts, rng) if self.short else full_reasoning(task.facts, item, rng)
            yield Draft(text)


PROBED = 64  # samples whose answers decide on the style
SLACK = 0.9  # of the budget: other samples' answers may be somewhat longer


def teacher_within(samples: Sequence[Sample], seed: int, budget: Budget) -> RuleTeacher:
    """The rule teacher in whole sentences if those fit the budget, else in the short style.

    Decided on samples of both labels. A single answer that is too long all the same is written again, then rejected.
    """
    teacher = RuleTeacher(seed)
    probed = [s for label in ("yes", "no") for s in [s for s in samples if s.label == label][: PROBED // 2]]
    facts = [facts_of(sample) for sample in probed]
    drafts = teacher.write([Task(sample, known) for sample, known in zip(probed, facts, strict=True)])
    longest = max(
        (
            budget.count(build_answer(str(draft.reasoning), sample.label, known.location, known.defect_type))
            for sample, known, draft in zip(probed, facts, drafts, strict=True)
        ),
        default=0,
    )
    return teacher if longest <= SLACK * budget.tokens else RuleTeacher(seed, short=True)
