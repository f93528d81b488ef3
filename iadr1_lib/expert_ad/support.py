"""Whether an answer's reasoning supports its tags: what the reward mode `grounded` pays for.

Nothing is compared with the truth here: an answer may support a wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from iadr1_lib.answer import GRID, category_of_words, cell_of_words, parse_answer, term_forms, tidy
from iadr1_lib.expert_ad.claims import (
    CATEGORY_OF,
    MARK,
    TERM,
    WORDS,
    any_word,
    denied,
    places_in,
    plain,
    sentences,
    statements,
)
from iadr1_lib.expert_ad.teachers import ShortClaims, read_short
from iadr1_lib.expert_ad.verification import failures
from iadr1_lib.records import Record


@lru_cache(maxsize=16384)  # answers come again in every group
def supports(answer: str, grid: int = GRID, taught_sentences: bool = False) -> bool:
    """Whether the reasoning of a tagged answer names the place and the type of its tags and contradicts nothing.

    For No: whether it finds nothing. Free English is read by the rules of `verification` and by `_hedges`, which do not
    judge grammar. With `taught_sentences` the reasoning must be one that the rule teacher writes in its short style,
    word for word: for a model whose whole language that is, as the mini VLM's.
    """
    read = parse_answer(answer)
    if read.answer is None or not read.reasoning:
        return False
    cell, kind = cell_of_words(read.location or "", grid), tidy(read.type or "")
    if read.answer == "yes" and not (cell and kind):
        return False
    names = {kind, category_of_words(kind) or kind}  # "stain" may be called a contamination
    defects = [ShortClaims("yes", cell, name) for name in names]
    claims = defects if read.answer == "yes" else [ShortClaims("no", None, None)]
    if taught_sentences:
        return read_short(read.reasoning, grid) in claims
    records = [Record("", claim.label, claim.place, claim.type, "", read.reasoning, grid=grid) for claim in claims]
    return not all(map(failures, records)) and not (read.answer == "yes" and _hedges(read.reasoning, str(cell), names))


_BARE = any_word(
    "an?|the|at|in|on|of|to|and|or|with|location|place|type|answer|yes|small|medium|large|dark|bright|faint",
    *(WORDS[name].pattern for name in ("mark", "direction", "region")),
    TERM.pattern,
)
_LISTED = re.compile(rf"({TERM.pattern})(?:,? (?:and|or) |, ?)(?:an? |the )?({TERM.pattern})")
_NO = r"\b(?:no|not|never|neither|nor|without) (?:\w+ ){0,2}"
_NO_MARK = re.compile(_NO + MARK.pattern)
_MOST_OTHER_PLACES = 1  # "The bottle is seen from the top ..."


def _hedges(reasoning: str, cell: str, names: Iterable[str]) -> bool:
    """What the rules let pass, since no teacher writes so, and a policy may learn to write for pay.

    Words of the tags heaped up in place of a sentence; many places; several types in a row; a denial of its own claim.
    """
    own = any_word(*(re.escape(form) for name in names for form in term_forms(plain(name))))
    if any(not re.search(r"\w", _BARE.sub("", own.sub("", sentence))) for sentence in sentences(reasoning)):
        return True
    here = {cell, *cell.split()}
    if len({place for place, how in places_in(reasoning) if how != "clear"} - here) > _MOST_OTHER_PLACES:
        return True
    for statement in statements(reasoning):
        for listed in _LISTED.finditer(statement):
            if len({CATEGORY_OF[term] for term in listed.groups()}) > 1 and not denied(statement, listed):
                return True
        if re.search(_NO + own.pattern, statement):
            return True
        if _NO_MARK.search(statement) and here & {place for place, _ in places_in(statement)}:
            return True
    return False
