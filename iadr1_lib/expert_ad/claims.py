"""What a text claims: the places and types it names for a defect, and where it calls the picture fine or faulty.

Texts are free English, read with regular expressions. A word counts only where it is a *claim*: "no scratch or stain"
claims neither, and "the knot at the right belongs to the wood" does not place a defect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from iadr1_lib.answer import CATEGORY_OF_TERM, SYNONYMS, cell_of_words, term_forms


def any_word(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


# Where a new statement begins. A bare comma does not: "in the lower right, the weave is regular" is one statement.
_BREAK = re.compile(
    r"[.;:!?()]+(?=\s|$)|,?\s(?:but|while|whereas|although|though|however|yet|except|because)\b|,\sand\b"
    r"|(?:,|\sand)\s(?=(?:it|this|that|there|i|we|here|is|has|shows|which|so)\b)"
)
# Nouns for the defect itself.
MARK = (
    "(?:lines?|streaks?|patch(?:es)?|spots?|marks?|stains?|scratch(?:es)?|holes?|dents?|cracks?|defects?|anomal(?:y|ies)|"
    "grooves?|traces?|smudges?|blobs?|cuts?|flaws?|chips?|gaps?|openings?|areas?)"
)
FAULT = r"(?:anomal\w+|defect\w*|flaw\w*|fault\w*|abnormal\w*|imperfect\w+|blemish\w*|issues?|problems?)"
# Things that catch the eye and are no defect.
BENIGN = any_word(
    "knots?|seams?|shadows?|print(?:ed|s|ing)?|reflections?|highlights?|logos?|lettering|look alikes|belongs?",
    "by design|part of the (?:item|design|product|pattern|normal)",
)
_DENIES_BEFORE = any_word(
    "no|not|never|neither|nor|none|nothing|without|free|absence|lack(?:s|ing)?|unlike|rather than|instead of|than|any",
    r"resembl\w+|mistak\w+|confus\w+|if|whether|might|could|would|rul\w+ out|too \w+|look\w* (?:\w+ )?for",
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
    return bool(_DENIES_BEFORE.search(before) or _DENIES_AFTER.search(after))


# ---------------------------------------------------------------------------------------------- place

_CENTRE = "(?:center|centre|central|middle)"
_DIRECTION = f"(?:top|upper|bottom|lower|left|right|{_CENTRE})"
_REGION = "(?:side|edge|half|part|portion|area|region|corner|border|third|end|section|zone|quadrant|hand side)s?"
_PLACE = re.compile(rf"\b{_DIRECTION}\b(?:(?: {_REGION})?(?: of| on| at| near)?(?: the)? {_DIRECTION}\b)*")
# The same words where they name no place of the picture: a course, a direction beside something, everyday words.
_NO_PLACE = any_word(
    r"on top|top (?:coat\w*|layer|surface)|all right|right angles?|what is left",
    rf"from (?:the )?(?:\w+ )?{_DIRECTION}\b.{{0,30}}? to (?:the )?(?:\w+ )?{_DIRECTION}(?: {_DIRECTION})*",
    rf"{_DIRECTION} (?:to|and|or|nor) (?:the )?{_DIRECTION}",
    rf"{_DIRECTION} (?:{_REGION} )?of (?:the|this|that|a|its) (?:\w+ ){{0,2}}(?:{MARK}|knot|seam|shadow|print)",
    rf"(?:lean|slop|run|point|bend|slightly|just)\w*(?: \w+){{0,3}} (?:to|towards?) the {_DIRECTION}",
    rf"slightly {_DIRECTION} of the {_DIRECTION}",
)
_AT = re.compile(
    r"(?:^the |\b(?:at|in|on|near|to|towards?|along|by|across|through|from|of) (?:the |an? |its )?"
    r"(?:\w+ly |very |far |exact )?)$"
)
_DIFFERS = any_word(
    r"differs?|different|stands? out|interrupt\w*|disturb\w*|broken|missing|torn|cracked|bent|chipped",
    "damaged|scratched|stained|deformed",
    FAULT,
)
_SEES = any_word("see|find|notice|spot|there (?:is|are)|shows?|appears?|lies|sits", MARK, _DIFFERS.pattern)
_FINE = any_word(
    "normal|intact|regular|uniform|even|evenly|clean|unbroken|consistent|sound|rest|remaining|elsewhere|others?|else",
    "no|not|nothing|none|without|neither|nor|free|unlike|than",
)


def places_in(text: str) -> Iterator[tuple[str, str]]:
    """The cells of the 3x3 grid that a text names, each as "claimed" (a defect), "named" or "clear" (nothing there)."""
    for statement in statements(text):
        statement = _NO_PLACE.sub("_", statement)
        nothing = bool(BENIGN.search(statement) or (_FINE.search(statement) and not _DIFFERS.search(statement)))
        for found in _PLACE.finditer(statement):
            cell = cell_of_words(found.group())  # None if it names opposite directions
            several = " " in found.group()
            region = re.match(rf" {_REGION}\b", statement[found.end() :])
            if cell and (several or region or _AT.search(statement[: found.start()])):
                own_part = re.search(r"\b(?:its|their) $", statement[: found.start()])  # "its left edge is torn"
                claimed = _SEES.search(statement) and not own_part
                yield cell, "clear" if nothing else "claimed" if claimed else "named"


# ---------------------------------------------------------------------------------------------- type

_CATEGORY_OF = {form: category for term, category in CATEGORY_OF_TERM.items() for form in term_forms(term)}
TERM = any_word(*map(re.escape, sorted(_CATEGORY_OF, key=len, reverse=True)))
# Terms that name a type wherever they are claimed. All others are everyday words, too, and count where the defect gets
# its name: "it is a gap", ": wear", "classified as damage".
_PLAIN_NAMES = ("contamination", "stain", "foreign object", "scratch", "missing parts", "deformation", "abrasion")
_CLEAR = {form for term in _PLAIN_NAMES for form in term_forms(term)}
# Other words by which a careful writer names the type: "the rim is bent" is a deformation.
_ALSO_NAMES = {
    "contamination": r"contaminat\w+|stained|dirty|soiled|smear\w*|smudge\w*",
    "presence of foreign objects": r"foreign",
    "scratch": r"scratch\w*",
    "missing parts": r"missing|chipped|notched",
    "deformation": r"deform\w*|distort\w*|warp\w*|bent|twisted",
    "hole": r"pierced|perforat\w*|punctur\w*",
    "damage": r"damag\w*|broken|fractur\w*|ruptur\w*",
    "abrasion": r"abra\w+|worn",
}
_NAMING = re.compile(
    rf"(?:\b(?:it|this|that|which|{MARK}) (?:is|are|was|must be)(?: \w+ly)?(?: an?| the)?(?: \w+)? "
    r"|\b(?:means?|indicat\w+|suggest\w*|as|type (?:is|of)|fits|points? to|speaks? for|take it for|called?"
    r"|call (?:it|this)|conclud\w*|kind of|case of|typical of|makes it|and|or)(?: \w+){0,2} )$"
)
_ALONE = re.compile(r"(?:so )?(?:an? |the )?(?:\w+ )?")


def names_type(text: str, kind: str) -> bool:
    """Whether a text in lower case names a type by its name, a synonym or a word of the same family."""
    if kind in SYNONYMS:
        words = [*(form for form, category in _CATEGORY_OF.items() if category == kind), _ALSO_NAMES[kind]]
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
                yield _CATEGORY_OF[term], term


# ---------------------------------------------------------------------------------------------- fine or faulty

_ITEM = (
    "item|image|picture|part|object|product|sample|piece|component|tile|everything|all|regions|surface|texture|"
    "appearance|structure|shape|form|finish|it|this|that"
)
GOOD = "(?:normal|intact|fine|sound|good|undamaged|flawless|perfect|whole|acceptable|in order|alike)"
_ODD = "(?:abnormal|wrong|unusual|anomalous|defective|stands out|out of place|differs)"
# What a text says that finds nothing.
_SAYS_FINE = [
    any_word(pattern)
    for pattern in (
        rf"(?:no|any|not|never|free of|free from|without|absence of) (?:\w+ ){{0,4}}{FAULT}",
        rf"(?:not (?:\w+ )?anything|nothing) (?:\w+ ){{0,2}}{_ODD}",
        r"an? (?:\w+ )?normal \w+|within the normal|in (?:good|perfect|normal) (?:condition|shape|order)",
        r"no (?:place|region|area|spot|part) (?:\w+ )?(?:differs|stands out|is different)",
        r"(?:defect|flaw|anomaly|fault) free|flawless|faultless|spotless|pass(?:es|ed) (?:\w+ )?inspection",
        rf"(?P<subject>{_ITEM}) (?:\w+ ){{0,3}}(?:is|are|looks?|appears?|seems?)(?: \w+){{0,3}} {GOOD}"
        r"(?=$|,| and\b| with\b| in\b| overall\b| here\b)",
        r"(?:texture|pattern|surface|finish|weave) has no (?:break|interruption)|answer is no",
    )
]
_OF_THE_REST = any_word(
    r"rest|most|else|elsewhere|others?|otherwise|remaining|around|apart|besides?|outside|further|away|neighbou?r\w*",
    "background|aside|beneath|below|underneath|would|should|unlike|than|if|normally|usually",
)
# Where faults are spoken of in general, in the text on a normal picture.
_IN_GENERAL = any_word("where|tend|often|usual(?:ly)?|typical(?:ly)?|common(?:ly)?|such as|for|kinds? of|hard")
_NAMES_FAULT = re.compile(rf"\b(?!flawless\b|faultless\b){FAULT}\b(?! free\b)")
_NOTICES = any_word(
    r"stands? out|differs?|out of place|interrupt(?:s|ed)|damage|(?:be|is) rejected|answer is yes|fails inspection",
    r"(?:is|are|has been|looks?) (?:\w+ly )?(?:broken|damaged|missing|scratched|torn|cracked|bent|stained|not normal)",
    r"(?:is|are|looks?|seems?) (?:\w+ )?(?:wrong|odd|off)",
)


def says_fine(text: str, cell: str | None) -> str | None:
    """Words by which a text denies the defect at `cell`, or None. Other places may be called fine."""
    here = {cell, *(cell or "").split()}
    before = ""
    for statement in statements(text):
        about = f"{before} {statement}" if re.match(r"(?:it|this|that|so|is|are)\b", statement) else statement
        before = statement
        places = {place for place, _ in places_in(statement)}
        of_the_rest = _OF_THE_REST.search(statement.replace("from the rest", ""))  # "no place differs from the rest"
        if of_the_rest or (places and not places & here):
            continue
        for found in filter(None, (pattern.search(statement) for pattern in _SAYS_FINE)):
            subject = found.groupdict().get("subject")
            look_alike = subject in (None, "it", "this", "that") and BENIGN.search(about)
            if not (look_alike or (subject and _DENIES_BEFORE.search(found.group()))):
                return found.group()
    return None


def says_faulty(text: str) -> str | None:
    """Words by which the text on a normal picture claims a defect, or None."""
    for statement in statements(text):
        names = () if _IN_GENERAL.search(statement) else _NAMES_FAULT.finditer(statement)
        notices = () if BENIGN.search(statement) else _NOTICES.finditer(statement)
        for found in (*names, *notices):
            if not denied(statement, found):
                return found.group()
    return next((term for _, term in types_claimed(text)), None)
