"""What a text claims: the places and types it names for a defect, and where it calls the picture fine or faulty.

Texts are free English, read with regular expressions; lexicon.yaml lists their words. A word counts only where it is a
*claim*: "no scratch or stain" claims neither, and "the knot at the right belongs to the wood" does not place a defect.
`compared_with_tags` says of each sentence whether its claims agree with the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import yaml

from iadr1_lib.answer import CATEGORY_OF_TERM, SYNONYMS, Answer, category_of_words, cell_of_words, term_forms


def any_word(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


def _lexicon() -> dict[str, list[str]]:
    """The lists of lexicon.yaml; a {name} in them is filled with that list."""
    filled: dict[str, list[str]] = {}
    for name, words in yaml.safe_load(Path(__file__).with_name("lexicon.yaml").read_text(encoding="utf-8")).items():
        for other, forms in filled.items():
            words = [word.replace(f"{{{other}}}", f"(?:{'|'.join(forms)})") for word in words]
        filled[name] = words
    return filled


_LEXICON = _lexicon()
WORDS = {name: any_word(*words) for name, words in _LEXICON.items()}
BENIGN, FAULT, MARK, _DIRECTION, _REGION = (WORDS[name] for name in ("benign", "fault", "mark", "direction", "region"))
# Where a new statement begins. A bare comma does not: "in the lower right, the weave is regular" is one statement.
_BREAK = re.compile(
    r"[.;:!?()]+(?=\s|$)|,?\s(?:but|while|whereas|although|though|however|yet|except|because)\b|,\sand\b"
    r"|(?:,|\sand)\s(?=(?:it|this|that|there|i|we|here|is|has|shows|which|so)\b)"
)
_DENIES_AFTER = re.compile(r"^(?: like\b|[^,]*\b(?:ruled out|excluded|absent|unlikely|would|could|not (?:be )?\w+n\b))")


def plain(text: str) -> str:
    """Lower case, single blanks, no hyphens inside words, "not" written out, dashes as semicolons."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not").replace("cannot", "can not")
    text = re.sub(r"\b(?:does|do) not (?:belong|fit|match)\b", "differs", text)  # not a denial
    text = re.sub(r"\b(?:(?:there is )?no doubt|without (?:any )?doubt|not only)\b", " ", text)
    text = re.sub(r"\s*[\u2013\u2014]\s*|\s-+\s", " ; ", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " ", text)
    return re.sub(r"\s+(?=[.,;:!?])", "", " ".join(text.split()))


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+", plain(text)) if re.search(r"[^\W_]", s)]


@lru_cache(maxsize=256)
def statements(text: str) -> tuple[str, ...]:
    """What the sentences of a text state, one clause each. Questions state nothing."""
    parts = (part.strip(" ,") for s in sentences(text) if not s.endswith("?") for part in _BREAK.split(s))
    return tuple(part for part in parts if part)


def denied(statement: str, found: re.Match[str]) -> bool:
    """Whether a statement denies, compares or supposes what it names: "no stain", "rather than a hole"."""
    before, after = statement[: found.start()], statement[found.end() :]
    return bool(WORDS["denies"].search(before) or _DENIES_AFTER.search(after))


# ---------------------------------------------------------------------------------------------- place

_PLACE = re.compile(
    rf"{_DIRECTION.pattern}(?:(?: {_REGION.pattern})?(?: of| on| at| near)?(?: the)? {_DIRECTION.pattern})*"
)
_AT = re.compile(
    r"(?:^the |\b(?:at|in|on|near|to|towards?|along|by|across|through|from|of) (?:the |an? |its )?"
    r"(?:\w+ly |very |far |exact )?)$"
)


def places_in(text: str) -> Iterator[tuple[str, str]]:
    """The cells of the 3x3 grid that a text names, each as "claimed" (a defect), "named" or "clear" (nothing there)."""
    for statement in statements(text):
        statement = WORDS["no_place"].sub("_", statement)
        nothing = bool(
            BENIGN.search(statement) or (WORDS["fine"].search(statement) and not WORDS["differs"].search(statement))
        )
        for found in _PLACE.finditer(statement):
            cell = cell_of_words(found.group())  # None if it names opposite directions
            several = " " in found.group()
            region = re.match(rf" {_REGION.pattern}", statement[found.end() :])
            if cell and (several or region or _AT.search(statement[: found.start()])):
                own_part = re.search(r"\b(?:its|their) $", statement[: found.start()])  # "its left edge is torn"
                claimed = WORDS["sees"].search(statement) and not own_part
                yield cell, "clear" if nothing else "claimed" if claimed else "named"


# ---------------------------------------------------------------------------------------------- type

CATEGORY_OF = {form: category for term, category in CATEGORY_OF_TERM.items() for form in term_forms(term)}
TERM = any_word(*map(re.escape, sorted(CATEGORY_OF, key=len, reverse=True)))
# Terms that name a type wherever they are claimed. All others are everyday words, too, and count where the defect gets
# its name: "it is a gap", ": wear", "classified as damage".
_PLAIN_NAMES = ("contamination", "stain", "foreign object", "scratch", "missing parts", "deformation", "abrasion")
_CLEAR = {form for term in _PLAIN_NAMES for form in term_forms(term)}
_NAMING = re.compile(
    rf"(?:\b(?:it|this|that|which|{MARK.pattern}) (?:is|are|was|must be)(?: \w+ly)?(?: an?| the)?(?: \w+)? "
    r"|\b(?:means?|indicat\w+|suggest\w*|as|type (?:is|of)|fits|points? to|speaks? for|take it for|called?"
    r"|call (?:it|this)|conclud\w*|kind of|case of|typical of|makes it|and|or)(?: \w+){0,2} )$"
)
_ALONE = re.compile(r"(?:so )?(?:an? |the )?(?:\w+ )?")


def names_type(text: str, kind: str) -> bool:
    """Whether a text in lower case names a type by its name, a synonym or a word of the same family."""
    if kind in SYNONYMS:
        words = [*(form for form, category in CATEGORY_OF.items() if category == kind), *_LEXICON[kind]]
        name = rf"(?:{'|'.join(words)})\b"
    else:  # any word of the data set's own name, in any ending: "crack", "cracked"
        name = rf"(?:{'|'.join(map(re.escape, plain(kind.replace('_', ' ')).split()))})"
    return re.search(rf"(?<!\bno )(?<!\bnot )(?<!\bnot a )(?<!\bnor )\b{name}", text) is not None


def types_claimed(text: str, own_word: bool = False) -> Iterator[tuple[str, str]]:
    """Categories that a text claims, each with the term that does.

    With `own_word` the type is a data set's word outside the eight categories. It may well be explained by one of them
    ("bent tip": a deformation of its shape), so every term is taken for an everyday word.
    """
    for statement in statements(text):
        for found in TERM.finditer(statement):
            term, before, after = found.group(), statement[: found.start()], statement[found.end() :]
            named = (term in _CLEAR and not own_word) or _NAMING.search(before)
            alone = not after and _ALONE.fullmatch(before)
            a_hole = term in SYNONYMS and re.search(r"\ba (?:\w+,? ){0,3}$", before)
            if (named or alone or a_hole) and not denied(statement, found):
                yield CATEGORY_OF[term], term


def other_type_claimed(text: str, kind: str, own_word: bool = False) -> str | None:
    """The term by which a text claims another category than `kind`, or None."""
    for category, term in types_claimed(text, own_word):
        rubbed = kind == "abrasion" and term == "scratches"  # a rubbed field is made of fine scratches
        if category != kind and not rubbed:
            return term
    return None


# ---------------------------------------------------------------------------------------------- fine or faulty

_FINDS_NOTHING = [any_word(pattern) for pattern in _LEXICON["finds_nothing"]]
_NAMES_FAULT = re.compile(rf"(?!\b(?:flawless|faultless)\b){FAULT.pattern}(?! free\b)")


def says_fine(text: str, cell: str | None) -> str | None:
    """Words by which a text denies the defect at `cell`, or None. Other places may be called fine."""
    here = {cell, *(cell or "").split()}
    before = ""
    for statement in statements(text):
        about = f"{before} {statement}" if re.match(r"(?:it|this|that|so|is|are)\b", statement) else statement
        before = statement
        places = {place for place, _ in places_in(statement)}
        of_the_rest = WORDS["of_the_rest"].search(
            statement.replace("from the rest", "")
        )  # "no place differs from the rest"
        if of_the_rest or (places and not places & here):
            continue
        for found in filter(None, (pattern.search(statement) for pattern in _FINDS_NOTHING)):
            subject = found.groupdict().get("subject")
            look_alike = subject in (None, "it", "this", "that") and BENIGN.search(about)
            if not (look_alike or (subject and WORDS["denies"].search(found.group()))):
                return found.group()
    return None


def says_faulty(text: str) -> str | None:
    """Words by which the text on a normal picture claims a defect, or None."""
    for statement in statements(text):
        names = () if WORDS["in_general"].search(statement) else _NAMES_FAULT.finditer(statement)
        notices = () if BENIGN.search(statement) else WORDS["notices"].finditer(statement)
        for found in (*names, *notices):
            if not denied(statement, found):
                return found.group()
    return next((term for _, term in types_claimed(text)), None)


# ---------------------------------------------------------------------------------------------- against the tags


def compared_with_tags(reasoning: str, said: Answer) -> list[tuple[str, bool | None]]:
    """Each sentence of a reasoning, and whether what it claims agrees with the tags of its answer.

    None where it claims nothing, or where there is no verdict to compare with. Of the tags, a place counts in the 3x3
    grid, a type by its category.
    """
    parts = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+(?=[.,;:!?])", "", reasoning.strip()))
    return [(part, _agrees(part, said)) for part in parts if re.search(r"\w", part)]


def _agrees(sentence: str, said: Answer) -> bool | None:
    cell = cell_of_words(said.location or "")
    places = {place for place, how in places_in(sentence) if how == "claimed"}
    fine = says_fine(sentence, cell)
    faulty = says_faulty(sentence) or places
    if said.answer is None or not (fine or faulty):
        return None
    if said.answer == "no":
        return not faulty
    kind = category_of_words(said.type or "")
    misplaced = cell and places - {cell, *cell.split()}  # "left" for "top left" is only coarser
    return not (fine or misplaced or (kind and other_type_claimed(sentence, kind)))
