"""Verification: what a record must hold to be learned from, as named rules with an example each.

`claims` reads the text. `python tests/corruptions.py` measures what the rules catch and what they turn away.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from iadr1_lib.answer import SYNONYMS, cell_names, matches_format
from iadr1_lib.expert_ad import claims
from iadr1_lib.expert_ad.claims import BENIGN, MARK, WORDS, any_word, plain, sentences, statements
from iadr1_lib.expert_ad.facts import Facts
from iadr1_lib.records import Record

MOST_CHARACTERS = 4000  # no 200 words of English are longer
FEWEST_SENTENCES, FEWEST_WORDS, MOST_WORDS = 3, 8, 200
_EXAMPLE_FACTS = Facts("yes", "top left", "scratch", area=0.004, contrast=0.2, tone="dark", elongation=5.0)

Check = Callable[[Record, Facts | None], str | None]


@dataclass(frozen=True)
class Rule:
    """A rule that looks at one record.

    Attributes:
        name: as it stands in reports.
        check: None if the record passes, else one sentence for the teacher's next try.
        why: what goes wrong in training without it.
        example: a record that this rule, and no other, rejects, given `example_facts`.
    """

    name: str
    check: Check
    why: str
    example: Record
    example_facts: Facts = _EXAMPLE_FACTS


RULES: dict[str, Rule] = {}


def _rule(
    name: str, line: str = "At the top left I see a small dark line.", end: str = "The anomaly is clear."
) -> Callable[[Check], Check]:
    """Enter a check in RULES; its docstring says what goes wrong without it, `line` and `end` spoil the example."""
    text = f"I scan the surface from edge to edge. {line} It is straight and thin, so it is a scratch. {end}".strip()

    def enter(check: Check) -> Check:
        example = Record("bolt/test/scratch/0.png", "yes", "top left", "scratch", "bolt", text)
        RULES[name] = Rule(name, check, check.__doc__ or "", example)
        return check

    return enter


def failures(record: Record, facts: Facts | None = None) -> dict[str, str]:
    """The rules that a record fails, each with the sentence that tells the teacher what to correct.

    An endless text is only called too long: reading it would take minutes.
    """
    endless = len(record.reasoning.strip()) > MOST_CHARACTERS
    results = {name: rule.check(record, facts) for name, rule in RULES.items() if name == "length" or not endless}
    return {name: sentence for name, sentence in results.items() if sentence}


# ---------------------------------------------------------------------------------------------- the rules

_NO_PROSE = re.compile(  # markup, lists, code, and words to a reader
    r"`|\*\*|__|^\s*(?:[#>*\u2022-]|\d+[.)])\s|<[^>]*>|\]\(|https?:|[{}|\\]|^(?:sure|certainly|of course)\b"
    r"|\blanguage model\b|\bas an ai\b|\bi(?:'m| am) (?:sorry|unable)\b|\bhere is (?:the|my|your) \w+|\blet me know\b",
    re.MULTILINE | re.IGNORECASE,
)


@_rule("format", end="<answer>Yes</answer> The anomaly is clear.")
def _format(record: Record, facts: Facts | None) -> str | None:
    """The model would learn answers that no parser reads, or lists and markup in place of plain reasoning."""
    letters = [c for c in record.reasoning if c.isalpha()]
    english = sum(c.isascii() for c in letters) >= 0.95 * len(letters)
    try:
        tagged = matches_format(record.answer) == record.label
    except ValueError:  # the record lacks a tag of its label, or has one too many
        tagged = False
    if tagged and english and not _NO_PROSE.search(record.reasoning.strip()):
        return None
    return "Write running English text about the picture alone, without tags, lists, markup or words to a reader."


@_rule("place agrees", "At the bottom right I see a small dark line.")
def _place(record: Record, facts: Facts | None) -> str | None:
    """Reasoning and location tag would differ, so the model would learn that the reasoning decides nothing."""
    cell = record.location
    if record.label == "no" or not cell:
        return None
    allowed = {cell, *(facts.other_cells if facts else ())}
    if record.grid == 3:
        places = list(claims.places_in(record.reasoning))
        named = {place for place, how in places if how != "clear"} or {place for place, _ in places}
        # A coarser name of the same place is no contradiction: "top left" may later be "the left".
        allowed |= {*cell.split(), (facts.look_alike_cell if facts else None) or cell}
        wrong = {place for place, how in places if how == "claimed"} - allowed
        there = cell in named or (" " in cell and set(cell.split()) <= named)
    else:  # names of other grids ("upper far left") are read as a whole, and no other may be named
        names = sorted(cell_names(record.grid), key=len, reverse=True)
        named = set(any_word(*names).findall(plain(record.reasoning)))
        wrong, there = named - allowed, cell in named
    if wrong:
        return f"The defect lies at the {cell}: do not place it at the {min(wrong)}."
    return None if there else f'The defect lies at the {cell}: say "{cell}" where you describe it.'


# Names that say no more than that there is a defect.
_NAMELESS = {"other", "defect", "defects", "defective", "anomaly", "anomalous", "bad", "ng"}


@_rule("type agrees", end="The anomaly is a hole.")
def _type(record: Record, facts: Facts | None) -> str | None:
    """Reasoning and type tag would differ, and what sets one type apart from another would be blurred."""
    kind = record.type
    if record.label == "no" or not kind:
        return None
    text, own = plain(record.reasoning), plain(kind.replace("_", " "))
    if own not in _NAMELESS and not claims.names_type(text, kind):
        return f'The defect is of type "{own}": name it so.'
    if kind not in SYNONYMS:  # a data set's own name may hold a category's: "scratch head"
        text = re.sub(rf"\b{re.escape(own)}\b", "_", text)
    term = claims.other_type_claimed(text, kind, own_word=kind not in SYNONYMS)
    return term and f'The defect is of type "{own}": do not call it "{term}".'


_SIZES = {"small": "small|tiny", "medium": "medium", "large": "large|big|huge"}
_TONES = {"dark": "dark|darker|black", "bright": "bright|brighter|white|pale"}
_DESCRIBED = re.compile(
    rf"\b(?:an?|the) (?:\w+,? ){{0,3}}{MARK.pattern}"
    rf"|\b(?:it|this|that|which|{MARK.pattern}) (?:is|looks|appears) (?:\w+ly )?\w+"
)


@_rule("size and tone agree", "At the top left I see a large bright line.")
def _size_and_tone(record: Record, facts: Facts | None) -> str | None:
    """The model would learn to describe what is not in the picture."""
    if facts is None or record.label == "no":
        return None
    for statement in statements(record.reasoning):
        described = " ".join(m.group() for m in _DESCRIBED.finditer(statement) if not claims.denied(statement, m))
        for measured, words in ((facts.size, _SIZES), (facts.tone, _TONES)):
            seen = {look for look, forms in words.items() if any_word(forms).search(described)}
            if seen and measured and measured not in seen and not BENIGN.search(statement):
                return f"By measurement the defect is {measured}: do not call it {min(seen)}."
    return None


@_rule("no leak of the label's origin", "At the top left the mask shows a small dark line.")
def _leak(record: Record, facts: Facts | None) -> str | None:
    """The model would learn to lean on a mask or a label, which a new picture does not bring."""
    leak = WORDS["leak"].search(plain(record.reasoning))
    return leak and f'Write only what can be seen in the picture: leave out "{leak.group().strip()}".'


@_rule("no contradiction", end="So the item is normal.")
def _contradiction(record: Record, facts: Facts | None) -> str | None:
    """The reasoning would argue against its own answer, and the model would learn to follow neither."""
    if record.label == "yes":
        words = claims.says_fine(record.reasoning, record.location)
        return words and f'The picture shows a defect: do not write "{words}".'
    words = claims.says_faulty(record.reasoning)
    return words and f'The picture is normal: do not write "{words}" as if it were there.'


@_rule("length", end="The anomaly is clear. It will be rejected because of the")
def _length(record: Record, facts: Facts | None) -> str | None:
    """A text that was cut off teaches to stop anywhere, and an endless one never to stop."""
    text = record.reasoning.strip()
    words = len(re.findall(r"[^\W_][\w'-]*", text))
    if words > MOST_WORDS or len(text) > MOST_CHARACTERS:
        return f"The text is too long: write at most {MOST_WORDS} words."
    if not re.search(r"(?<![.\u2026])[.!?]$", text):
        return "The text is cut off: end with a whole sentence and a full stop."
    if len(set(sentences(text))) < FEWEST_SENTENCES or words < FEWEST_WORDS:  # one for each layer
        return f"The text is too short: write at least {FEWEST_SENTENCES} different, whole sentences."
    return None


@_rule("decision stated", end="")
def _decision(record: Record, facts: Facts | None) -> str | None:
    """The answer tag would come out of nothing, since the reasoning ends before it decides."""
    end = statements(" ".join(sentences(record.reasoning)[-2:]))
    if any(WORDS["verdict"].search(statement) and not BENIGN.search(statement) for statement in end):
        return None
    verdict = "an anomaly, and how severe it is" if record.label == "yes" else "normal"
    return f"End with the decision: say that it is {verdict}."


# ---------------------------------------------------------------------------------------------- the set

NEAR_DUPLICATE = "near-duplicate"
SHINGLE_WORDS, ALIKE = 5, 0.9  # two texts are alike from this Jaccard similarity of their shingles on


def _shingles(text: str) -> frozenset[int]:
    """All runs of five words, as numbers; a shorter text is one run."""
    words = re.findall(r"[^\W_]+", text.lower())
    starts = range(max(len(words) - SHINGLE_WORDS, 0) + 1)
    return frozenset(hash(" ".join(words[i : i + SHINGLE_WORDS])) for i in starts)


def _lookup_keys(shingles: frozenset[int]) -> list[int]:
    """Two sets that are alike share one of their first tenth (and one more) in sorted order: only those are indexed."""
    return sorted(shingles)[: len(shingles) - ceil(ALIKE * len(shingles)) + 1]


class Verifier:
    """RULES and the memory of a set: finds near-duplicates, too.

    Args:
        repeats: wordings may come again, as in the short style, which has only a few dozen; a picture still may not.
    """

    def __init__(self, repeats: bool = False) -> None:
        self._repeats = repeats
        self._images: set[str] = set()
        self._index: defaultdict[int, list[frozenset[int]]] = defaultdict(list)

    def examine(self, record: Record, facts: Facts | None = None) -> dict[str, str]:
        """The rules that a record fails, with their sentences; the record is not remembered."""
        failed = failures(record, facts)
        if record.image in self._images:
            failed[NEAR_DUPLICATE] = "This picture has a record already: leave it out."
        elif not self._repeats and self._has_one_like(record.reasoning):
            failed[NEAR_DUPLICATE] = "The text is almost the same as an earlier one: say it in other words."
        return failed

    def accept(self, record: Record) -> None:
        """Remember a record as part of the set."""
        self._images.add(record.image)
        if not self._repeats:
            shingles = _shingles(record.reasoning)
            for key in _lookup_keys(shingles):
                self._index[key].append(shingles)

    def _has_one_like(self, text: str) -> bool:
        new = _shingles(text)
        candidates = (old for key in _lookup_keys(new) for old in self._index.get(key, ()))
        return any(len(new & old) >= ALIKE * len(new | old) for old in candidates)
