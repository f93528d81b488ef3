"""Verification: what a record must hold to be learned from, as named rules with an example each.

The rules read free text, so none of them is a parser of English. All share one idea: a word counts only where it is a
*claim*. "No scratch, hole or stain" claims nothing, and "the knot at the right belongs to the wood" does not say where
the defect is. What must be there (place, type, decision) is looked for leniently; what must not be there is looked for
where it is said outright. Both keep careful writers from being rejected.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from iadr1_lib.answer import SYNONYMS, TAGS, cell_names, cell_of_words, matches_format, term_forms
from iadr1_lib.expert_ad.facts import Facts
from iadr1_lib.records import Record

# ---------------------------------------------------------------------------------------------- text

_ASIDE = re.compile(r"\b(?:there is no doubt|no doubt|without (?:any )?doubt|no question|not only|nothing but)\b")
# Where a new statement begins. A bare comma does not: "in the lower right, the weave is regular" is one statement.
_BREAK = re.compile(
    r"[.;:!?()]+(?=\s|$)|,?\s(?:but|while|whereas|although|though|however|yet|except|because)\b|,\s(?:and|so|which)\b"
)
_NAMES = re.compile(r"\b(top|upper|bottom|lower|left|right)(?:most| ?hand)\b")


def _plain(text: str) -> str:
    """Lower case, single blanks, no hyphens inside words, "not" written out, dashes as semicolons."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not").replace("cannot", "can not")
    text = re.sub(r"\b(?:does|do) not (?:belong|fit|match)\b", "differs", text)  # not a denial
    text = re.sub(r"\s*[\u2013\u2014]\s*|\s-+\s", " ; ", text)
    text = _NAMES.sub(r"\1", re.sub(r"(?<=\w)-(?=\w)", " ", text))
    return re.sub(r"\s+(?=[.,;:!?])", "", " ".join(_ASIDE.sub(" ", text).split()))


@lru_cache(maxsize=256)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(s for s in re.split(r"(?<=[.!?])\s+", _plain(text)) if re.search(r"[^\W_]", s))


@lru_cache(maxsize=256)
def _statements(text: str) -> tuple[tuple[str, ...], ...]:
    """Per sentence its statements, without the marks between them. Questions state nothing."""
    said = (s for s in _sentences(text) if not s.endswith("?"))
    return tuple(tuple(part.strip(" ,") for part in _BREAK.split(s) if part.strip(" ,")) for s in said)


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(alternatives)})\b")


# Things that catch the eye and are no defect.
_BENIGN = _words(
    "knots?|seams?|shadows?|print(?:ed|s|ing)?|reflections?|highlights?|glare|logos?|lettering|look alikes?|belongs?",
    "by design|part of the (?:item|design|product|pattern|normal)",
)
# Nouns that stand for the defect itself.
_MARK = (
    "lines?|streaks?|patch(?:es)?|spots?|marks?|stains?|scratch(?:es)?|holes?|dents?|cracks?|defects?|anomal(?:y|ies)|"
    "blemish(?:es)?|grooves?|traces?|smudges?|blobs?|cuts?|flaws?|notch(?:es)?|chips?|gaps?|abrasions?|scuffs?|"
    "openings?|bodies|body|objects?|particles?|specks?|smears?|tears?"
)
_RULED_OUT_BEFORE = re.compile(
    r"\b(?:no|not|never|neither|nor|none|nothing|nowhere|without|free|absence|lacks?|lacking|unlike|rather than|"
    r"instead of|than|resembl\w+|mistak\w+|confus\w+|taken for|if|whether|might|could|would|rul\w+ out|exclud\w+|any|"
    r"too \w+|(?:search|look|check|scan|hunt|watch)\w* (?:\w+ ){0,3}for)\b"
    r"(?!.*(?:,| and) (?:it|this|that|there|i|we|here|is|are|has|shows)\b)"
)
_RULED_OUT_AFTER = re.compile(
    r"^(?: like\b|[^,]*\b(?:ruled out|excluded|absent|unlikely|would|could|"
    r"not (?:be )?(?:visible|present|seen|found|there))\b)"
)


def _ruled_out(statement: str, found: re.Match[str]) -> bool:
    """Whether a statement denies, compares or supposes what it names: "no stain", "rather than a hole"."""
    before, after = statement[: found.start()], statement[found.end() :]
    return bool(_RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.search(after))


# ---------------------------------------------------------------------------------------------- format


def _format(record: Record, facts: Facts | None) -> str | None:
    try:
        sound = matches_format(record.answer) == record.label
    except ValueError:  # tags that the label's pattern lacks, or has not
        sound = False
    return None if sound else "Write plain reasoning without any tags; the tags are added afterwards."


# ---------------------------------------------------------------------------------------------- place

_DIRECTION = "top|upper|bottom|lower|left|right"
_CENTRE = "center|centre|central|middle"
_WORD = f"(?:{_DIRECTION}|{_CENTRE})"
_REGION = (
    "(?:side|edge|half|part|portion|area|region|corner|border|third|end|margin|section|zone|quadrant|quarter|rim)s?"
)
_PLACE = re.compile(rf"\b{_WORD}\b(?:(?: {_REGION})?(?: of| on| at| near)?(?: the)? {_WORD}\b)*")
# The same words where they name no place of the picture.
_NO_PLACE = _words(
    "on top",
    rf"from (?:the )?(?:\w+ )?{_WORD}\b.{{0,30}}? (?:to|towards?) (?:the )?(?:\w+ )?{_WORD}(?: {_WORD})*",
    rf"{_WORD} (?:to|and|or|nor) (?:the )?(?:{_DIRECTION})(?! {_WORD})",
    "all right",
    "right (?:angles?|angled|handed|size|shape|colou?r|way|place|position|amount|number|kind|order|orientation|tone)",
    "(?:lower|upper) (?:contrast|brightness|gloss|density|reflectivity|intensity|saturation|than|limit|bound)",
    "top (?:layer|coat|coating|surface|face|view|quality|down|notch)",
    "bottom line",
    # on or beside the mark, not in the picture: "the center of the stain", "to the right of the seam"
    rf"(?:{_WORD} )+(?:{_REGION} )?of (?:the|this|that|a|its) (?:\w+ ){{0,2}}(?:{_MARK}|knot|seam|shadow|print)",
)
# One bare direction is also an everyday word ("what is left", "the right thread"): it needs a sign that it places.
_PLACED_BEFORE = re.compile(
    r"(?:^the |\b(?:at|in|on|near|to|towards?|along|around|within|by|across|through|into|inside|over|from|of) "
    r"(?:the |an? |its |their )?)(?:(?:very|far|extreme|outer|exact|image's|item's|part's|\w+ly) )*$"
)
_PLACED_AFTER = re.compile(rf"^ {_REGION}\b")
_DIFFERS = _words(
    r"differs?|different|stands? out|interrupt\w*|disturb\w*|breaks?|broken|anomal\w+|defect\w*|flaw\w*",
    r"missing|lack\w*|torn|cracked|split|snapped|bent|dented|worn|chipped|empty|pierced|damaged|scratched|stained|deformed",
)
_FINE = _words(
    "normal|intact|regular|uniform|even|evenly|clean|unchanged|undisturbed|undamaged|unbroken|consistent|sound",
    "unaffected|as expected|rest|remaining|remainder|elsewhere|others?|else|otherwise|same|compared?|comparison|than",
)
_DENIED = _words("no|nothing|none|without|neither|nor|free of|free from|unlike")
_NOT = re.compile(r"\bnot\b")
_SEES = _words("see|find|notice|spot|there (?:is|are)|shows?|appears?|lies|sits", _MARK, _DIFFERS.pattern)
# "leans to the left", "slightly to the left": a course or a shift, not the place.
_COURSE = re.compile(
    r"\b(?:extend|run|taper|fade|continu|curv|slop|lean|point|widen|narrow|stretch|lead|spread|drift|tilt|slant|ris|fall|"
    r"trail|turn|bend|bent|push)\w*(?: \w+){0,3} (?:to|towards?|from)(?: the)?(?: \w+)? $"
    r"|\b(?:slightly|just|a little|a bit|somewhat|marginally)(?: (?:to|towards?|off|from|below|above))?(?: the)? $"
)


@dataclass(frozen=True)
class _Mention:
    """A place named in a text: the cells it may mean, and how it is said.

    `firm`: outright, of something found there. `denied`: where nothing is, or where a look-alike is.
    """

    cells: frozenset[str]
    firm: bool
    denied: bool


def _mentions(statement: str) -> Iterator[_Mention]:
    text = _NO_PLACE.sub("_", statement)
    fine = _FINE.search(text) and not _DIFFERS.search(text)
    nothing_there = bool(fine or _BENIGN.search(text) or _DENIED.search(text))
    for found in _PLACE.finditer(text):
        words = found.group()
        before, after = text[: found.start()], text[found.end() :]
        several = len(re.findall(_WORD, words)) > 1
        region, course = _PLACED_AFTER.search(after), _COURSE.search(before)
        cell = cell_of_words(words)  # None if it names opposite directions
        placed = _PLACED_BEFORE.search(before) and not course and words not in ("upper", "lower", "central")
        if cell is None or not (several or region or placed):
            continue
        # "left of the center" may be either cell
        either = re.search(rf"^(?:{_DIRECTION}) of(?: the)? (?:{_CENTRE})$", words)
        own_part = not several and re.search(r"\b(?:its|their|whose) (?:\w+ )?$", before)  # "its left edge is torn"
        denied = nothing_there or bool(_NOT.search(before))
        firm = bool(_SEES.search(text)) and not (denied or own_part or course)
        yield _Mention(frozenset({cell, "center"} if either else {cell}), firm, denied)


def _names_cell(text: str, cell: str) -> bool:
    """Whether a sentence names the cell, at once or in two steps: "in the upper half, near the left edge".

    A denial names it too ("at the left, no thread is whole"), unless it is another place that is spoken of otherwise.
    """
    sentences = [[m for statement in sentence for m in _mentions(statement)] for sentence in _statements(text)]
    steps = set(cell.split())
    elsewhere = any(not m.denied and not m.cells & {cell, *steps} for mentions in sentences for m in mentions)
    for mentions in sentences:
        named = {c for m in mentions if not (m.denied and elsewhere) for c in m.cells}
        if cell in named or (len(steps) == 2 and steps <= named):
            return True
    return False


def _claimed_cells(text: str, cell: str) -> Iterator[frozenset[str]]:
    """What a text says outright of the place. "At the top, in the middle" is the top: no claim of the center."""
    for sentence in _statements(text):
        for statement in sentence:
            firm = [m.cells for m in _mentions(statement) if m.firm]
            yield from (cells for cells in firm if not (cells == {"center"} and {cell} in firm))


def _place_in_other_grid(record: Record, facts: Facts | None) -> str | None:
    """Names of other grids ("upper far left") are read as a whole, and no other may be named."""
    cell = str(record.location)
    names = sorted(cell_names(record.grid), key=len, reverse=True)
    named = set(re.findall(rf"\b(?:{'|'.join(names)})\b", _plain(record.reasoning)))
    others = named - {cell, *(facts.other_cells if facts else ())}
    if cell not in named:
        return f'The defect lies at the {cell}: say "{cell}" where you describe it.'
    return f"The defect lies at the {cell}: do not place it at the {min(others)}." if others else None


def _place(record: Record, facts: Facts | None) -> str | None:
    cell = record.location
    if record.label == "no" or not cell:
        return None
    if record.grid != 3:
        return _place_in_other_grid(record, facts)
    # A coarser name of the same place is no contradiction: "top left" may later be "the left".
    allowed = {cell, *cell.split()}
    if facts is not None:
        allowed |= {facts.look_alike_cell or cell, *facts.other_cells}
    other = next((min(cells) for cells in _claimed_cells(record.reasoning, cell) if not cells & allowed), None)
    if other:
        return f"The defect lies at the {cell}: do not place it at the {other}."
    if not _names_cell(record.reasoning, cell):
        return f'The defect lies at the {cell}: say "{cell}" where you describe it.'
    return None


# ---------------------------------------------------------------------------------------------- type

_CATEGORY_OF = {
    form: category for category, terms in SYNONYMS.items() for term in (category, *terms) for form in term_forms(term)
}
_TERM = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(_CATEGORY_OF, key=len, reverse=True)))})\b")
# Terms that are also everyday words, parts of items ("the gap between the teeth") or words for any defect ("surface
# damage"). They are claims only where the defect is named by them: "it is a gap", ": wear .", "classified as damage".
_EVERYDAY_TERMS = (
    "hole|damage|structural damage|material damage|surface damage|deterioration|missing part|gap|chip|notch|"
    "surface notch|surface discontinuity|opening|cavity|void|aperture|wear|wear mark|surface wear|dirt|irregularity|"
    "bending|twisting|fracture|linear anomaly|color anomaly"
)
_EVERYDAY = frozenset(form for term in _EVERYDAY_TERMS.split("|") for form in term_forms(term))
# Names that say no more than that there is a defect.
_NAMELESS = frozenset({"other", "defect", "defects", "defective", "anomaly", "anomalous", "bad", "ng"})
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
_IS = re.compile(
    rf"\b(?:it|this|that|which|fault|{_MARK}) (?:is|are|was|must be|can only be)(?: \w+ly)?(?: most likely)?"
    r"(?: an?| the)?(?: \w+){0,2} $"
)
_NAMED_END = re.compile(r"^(?:$|,| (?:defect|anomaly|fault|flaw)\b| (?:at|in|on|near|and|or) )")
_NAMING = re.compile(
    r"\b(?:means?|indicat\w+|suggest\w*|(?:classif|identif|categori|recogni|judg|interpret|regard)\w* (?:\w+ )?as|"
    r"counts? as|as with|type (?:is|of)|typical of|characteristic of|look of|consistent with|points? to|speaks? for|"
    r"called|call (?:it|this)|conclud\w*|kind of|case of)(?: \w+){0,3} $"
)
_ALONE = re.compile(r"^(?:(?:so|thus|hence|therefore),? )?(?:an? |the )?(?:\w+ )?$")
_BUILT_IN = re.compile(r"\b(?:screw|mounting|drill|drilled|bolt|rivet|fixing|vent|pin|threaded|alignment|button) $")


def _names_the_defect(statement: str, found: re.Match[str]) -> bool:
    """Whether a term stands where the defect gets its name."""
    before, after = statement[: found.start()], statement[found.end() :]
    if _BUILT_IN.search(before):
        return False
    beside = re.search(r"(?:\bor|\band|,)(?: an?)? $", before)
    return bool(
        re.search(r"(?<!such )\bas (?:an? )?$", before)
        or (_ALONE.search(before) and not after)
        or (_IS.search(before) and not before.startswith("there ") and _NAMED_END.search(after))
        or _NAMING.search(before)
        or (beside and _TERM.search(before[: beside.start()]))
        or (found.group() in SYNONYMS and re.search(r"\ba (?:\w+,? ){0,3}$", before))
    )


def _types_claimed(text: str, own_word: bool = False) -> list[tuple[str, str]]:
    """Categories that a text claims, each with the term that does.

    With `own_word` the type is a data set's word outside the eight categories. It may well be explained by one of them
    ("bent tip": a deformation of its shape), so every term is taken for an everyday word.
    """
    return [
        (_CATEGORY_OF[found.group()], found.group())
        for sentence in _statements(text)
        for statement in sentence
        for found in _TERM.finditer(statement)
        if not _ruled_out(statement, found)
        and (_names_the_defect(statement, found) or not (own_word or found.group() in _EVERYDAY))
    ]


def _names_type(text: str, kind: str) -> bool:
    """Whether the type is named, by its name, a synonym or a word of the same family, and not only denied."""
    if kind in SYNONYMS:
        forms = [re.escape(form) for form, category in _CATEGORY_OF.items() if category == kind]
        names = re.compile(rf"\b(?:{'|'.join(forms)}|{_ALSO_NAMES[kind]})\b")
    else:  # any word of the data set's own name, in any ending: "crack", "cracked"
        words = [re.escape(w) for w in _plain(kind.replace("_", " ")).split()]
        names = re.compile(rf"\b(?:{'|'.join(words)})")
    said = " . ".join(_sentences(text))
    return any(
        not re.search(r"\b(?:no|not|neither|nor|without|unlike)(?: an?| the)? $", said[: m.start()])
        for m in names.finditer(said)
    )


def _type(record: Record, facts: Facts | None) -> str | None:
    kind = record.type
    if record.label == "no" or not kind:
        return None
    text, known = record.reasoning, kind in SYNONYMS
    own = _plain(kind.replace("_", " "))
    if own not in _NAMELESS and not _names_type(text, kind):
        return f'The defect is of type "{own}": name it so.'
    if not known:  # a data set's own name may hold a category's: "scratch head"
        text = re.sub(rf"\b{re.escape(own)}\b", "_", _plain(text))
    for category, term in _types_claimed(text, own_word=not known):
        rubbed = kind == "abrasion" and term == "scratches"  # a rubbed field is made of fine scratches
        if category != kind and not rubbed:
            return f'The defect is of type "{own}": do not call it "{term}".'
    return None


# ---------------------------------------------------------------------------------------------- tone and size

_TONES = {
    **dict.fromkeys(("dark", "darker", "darkened", "black", "blackish"), "dark"),
    **dict.fromkeys(("bright", "brighter", "white", "whitish", "pale", "lighter"), "bright"),
}
_SIZES = {
    **dict.fromkeys(("small", "tiny"), "small"),
    **dict.fromkeys(("medium", "medium sized"), "medium"),
    **dict.fromkeys(("large", "big", "huge", "extensive"), "large"),
}


def _said_of_the_mark(text: str, words: dict[str, str]) -> Iterator[tuple[str, set[str]]]:
    """For each word said of the defect, the word and all that its statement says: "a small, dark line"."""
    terms = "|".join(sorted(words, key=len, reverse=True))
    between = r"(?:,? (?!(?:with|on|in|of|at|against|from|than|beside|near|inside|next|over|an?|the)\b)\w+){0,3}?,? "
    said = re.compile(
        rf"(?<!slightly )(?<!little )\b({terms})\b(?={between}(?:{_MARK})\b)"
        rf"|\b(?:it|this|that|which|{_MARK}) (?:is|looks|appears) (?:\w+ly )?({terms})\b"
    )
    for sentence in _statements(text):
        for statement in sentence:
            if not _BENIGN.search(statement):
                found = [
                    words[m.group(1) or m.group(2)] for m in said.finditer(statement) if not _ruled_out(statement, m)
                ]
                yield from ((word, set(found)) for word in found)


def _tone(record: Record, facts: Facts | None) -> str | None:
    if facts is None or record.label == "no" or not facts.tone:
        return None
    for word, said in _said_of_the_mark(record.reasoning, _TONES):
        if facts.tone not in said:  # a dark line may have a bright rim
            return f"Against its surroundings the defect is {facts.tone}: do not call it {word}."
    return None


def _size(record: Record, facts: Facts | None) -> str | None:
    if facts is None or record.label == "no" or not facts.area:
        return None
    size = facts.size
    for word, said in _said_of_the_mark(record.reasoning, _SIZES):
        if size not in said:
            return f"The defect is {size}: do not call it {word}."
    return None


# ---------------------------------------------------------------------------------------------- leak

_TOLD = "(?:told|informed|given|provided|supplied|asked|instructed)"
_SOURCE = (
    "(?:information|data|facts?|hints?|location|place|type|position|description|details?|values?|measurements?|answer)"
)
_LEAKS = [
    re.compile(rf"\b(?:{pattern})")
    for pattern in (
        r"masks?\b|ground truth\b|annotat\w+|metadata\b|according to\b",
        # A label can be a part of the item: "the printed label", "the label on the bottle".
        r"(?<!printed )(?<!paper )(?<!product )(?<!adhesive )(?<!bottle )(?<!brand )(?<!torn )label(?:s|led|ed|ling)?\b"
        r"(?! (?:on|of) the (?!image|picture|data))(?! (?:is|looks|sits) (?:\w+ )?(?:straight|legible|clean|smooth))",
        rf"as (?:was )?(?:{_TOLD}|stated|specified|indicated|noted|described|mentioned|marked|tagged)\b",
        rf"(?:given|provided|supplied|known|stated|specified|expected) (?:\w+ )?{_SOURCE}\b",
        rf"{_SOURCE} (?:i was|was|were|is|are) {_TOLD}\b|{_TOLD} (?:to me|to us|in advance|beforehand|that)\b",
        rf"{_SOURCE} (?:given|provided|supplied)\b",
        rf"(?:i|we)(?: am| are| was| were| have been| had been|'ve been) {_TOLD}\b",
        r"(?:you|the (?:user|task|reference|question|text)) "
        r"(?:sa(?:ys?|id)|gave|(?:tell|told|stat|mention|suggest|call|ask)\w*)\b",
        r"(?:the|your|these|this) (?:\w+ )?(?:facts|hints?|prompt|instructions?)\b",
        r"i (?:already )?know\b|known (?:to be|beforehand|defect|anomaly|fault|class)\b",
        r"file ?names?\b|(?:file|image) path\b|folders?\b|directory\b|data ?sets?\b",
        r"(?:correct|right|reference|expected|true) (?:answer|solution|class)\b",
        r"bounding box\w*|segmentation\b|heat ?maps?\b|polygons?\b|overlay\b",
        r"(?:marked|highlighted) (?:region|area|defect|pixels?|patch|place|zone)\b",
        r"measured (?:facts?|area|contrast|values?|size|tone|place)\b|measurements? (?:say|show|give|state|tell)\w*\b",
    )
]


def _leak(record: Record, facts: Facts | None) -> str | None:
    text = " ".join(_sentences(record.reasoning))
    for leak in _LEAKS:
        found = leak.search(text)
        if found:
            return f'Write only what can be seen in the picture: leave out "{found.group().strip()}".'
    return None


# ---------------------------------------------------------------------------------------------- contradiction

_FAULT = r"(?:anomal\w+|defect\w*|flaw\w*|fault\w*|abnormal\w*|imperfect\w+|blemish\w*|issues?|problems?)"
_ITEM = (
    "item|image|picture|part|object|product|sample|piece|component|tile|everything|all|regions|areas|surface|texture|"
    "appearance|structure|shape|form|finish|it|this|that"
)
_GOOD = (
    "normal|intact|fine|sound|ok|okay|good|undamaged|unblemished|flawless|perfect|whole|acceptable|in order|alike|"
    "the same"
)
_ODD = "abnormal|wrong|unusual|anomalous|defective|suspicious|stands out|out of place|amiss|differs"
# What a text says that finds nothing.
_SAYS_FINE = [
    re.compile(rf"\b(?:{pattern})")
    for pattern in (
        rf"(?:no|zero|any) (?:\w+ ){{0,3}}{_FAULT}\b",
        rf"(?:not|never|hardly|free of|free from|without|absence of) (?:\w+ ){{0,3}}{_FAULT}\b",
        rf"not (?:\w+ )?anything (?:{_ODD})\b",
        rf"no (?:\w+ )?(?:signs?|traces?) of (?:\w+ ){{0,4}}{_FAULT}\b",
        r"an? (?:\w+ )?normal (?:item|product|part|object|sample|piece|image)\b|within the normal\b",
        r"in (?:good|perfect|normal) (?:condition|shape|order)\b",
        rf"nothing (?:\w+ ){{0,2}}(?:{_ODD})\b",
        r"no (?:place|region|area|spot|part) (?:\w+ )?(?:differs|stands out|is different)\b",
        r"(?:defect|flaw|anomaly|fault|blemish) free\b|flawless\b|faultless\b|spotless\b",
        r"pass(?:es|ed) (?:\w+ )?inspection\b",
        rf"(?P<subject>{_ITEM}) (?:\w+ ){{0,3}}(?:is|are|looks?|appears?|seems?|remains?)"
        rf"(?: \w+){{0,3}} (?:{_GOOD})(?=$|,| and\b| with\b| in\b| overall\b| here\b)",
        r"(?:texture|pattern|surface|finish|weave) has no (?:break|interruption|disturbance)\b|answer is no\b",
    )
]
_OF_THE_REST = _words(
    r"rest|most|else|elsewhere|others?|otherwise|remaining|remainder|surrounding\w*|around|apart|besides?|outside|beyond",
    r"further|additional|away|neighbou?r\w*|adjacent|background|aside|opposite|beneath|below|underneath",
    "would|should|unlike|than|if|normally|usually",
)
# Where faults are spoken of in general, in the text on a normal picture.
_IN_GENERAL = _words(
    "where|tend|often|usual(?:ly)?|typical(?:ly)?|common(?:ly)?|such as|for|kinds? of|similar|hard|difficult",
)
_NOTICES = re.compile(
    r"\b(?:stands? out|differs?|out of place|(?:does|do) not (?:belong|fit|match)|interrupt(?:s|ed)|"
    r"(?:is|are|has been|looks?) (?:clearly |visibly |badly |slightly )?"
    r"(?:broken|damaged|missing|scratched|torn|cracked|bent|stained|not normal|not intact|deformed|worn)|"
    r"(?:is|are|looks?|seems?) (?:\w+ )?(?:wrong|odd|off)|damage|(?:be|is) rejected|answer is yes|fails inspection)\b"
)


def _says_fine(text: str, cell: str | None) -> str | None:
    """Words by which a text denies the defect at `cell`, or None. Other places may be called fine."""
    here = {cell, *(cell or "").split()}
    before = ""
    for sentence in _statements(text):
        for statement in sentence:
            # "no place differs from the rest" is not about the rest
            about = re.sub(r"\b(?:differs|different|stands out) from the rest\b", "", statement)
            places = [m.cells for m in _mentions(statement)]
            if not (_OF_THE_REST.search(about) or (places and not any(cells & here for cells in places))):
                for found in filter(None, (pattern.search(statement) for pattern in _SAYS_FINE)):
                    if not _spared(statement, before, found):
                        return found.group()
            before = statement
    return None


def _spared(statement: str, before: str, found: re.Match[str]) -> bool:
    """Whether "fine" is denied ("is not intact") or said of a look-alike ("There is a knot; it is normal")."""
    subject = found.groupdict().get("subject")
    if subject:
        if re.search(r"\b(?:not|no longer|never|hardly|far from|neither|nor)\b", found.group()):
            return True
        return subject in ("it", "this", "that") and bool(_BENIGN.search(before) or _BENIGN.search(statement))
    of_before = re.match(r"(?:it|this|that|and|so|is|are)\b", statement) and _BENIGN.search(before)
    return bool(_BENIGN.search(statement) or of_before)


def _says_faulty(text: str) -> str | None:
    """Words by which the text on a normal picture claims a defect, or None."""
    for sentence in _statements(text):
        benign = any(_BENIGN.search(statement) for statement in sentence)
        for statement in sentence:
            for found in re.finditer(rf"\b{_FAULT}\b", statement):
                general = _IN_GENERAL.search(statement) or re.match(r" free\b", statement[found.end() :])
                if not (general or found.group() in ("faultless", "flawless") or _ruled_out(statement, found)):
                    return found.group()
            notices = _NOTICES.search(statement)
            if notices and not benign and not _ruled_out(statement, notices):
                return notices.group()
    return next((term for _, term in _types_claimed(text)), None)


def _contradiction(record: Record, facts: Facts | None) -> str | None:
    if record.label == "yes":
        words = _says_fine(record.reasoning, record.location)
        return words and f'The picture shows a defect: do not write "{words}".'
    words = _says_faulty(record.reasoning)
    return words and f'The picture is normal: do not write "{words}" as if it were there.'


# ---------------------------------------------------------------------------------------------- length and language

FEWEST_SENTENCES, FEWEST_WORDS, MOST_WORDS = 3, 8, 200
MOST_CHARACTERS = 4000  # no 200 words of English are longer
_DANGLES = re.compile(r"(?:\.\.|\u2026|\b(?:the|an?|of|and|or|its))\W*$")


def _length(record: Record, facts: Facts | None) -> str | None:
    """Three layers take three whole and different sentences, so a text that was cut off is too short."""
    text = record.reasoning.strip()
    words = len(re.findall(r"[^\W_][\w'-]*", text))
    if words > MOST_WORDS or len(text) > MOST_CHARACTERS:
        return f"The text is too long: write at most {MOST_WORDS} words."
    if not text.endswith((".", "!", "?")) or _DANGLES.search(text.lower()):
        return "The text is cut off: end with a whole sentence and a full stop."
    if len(set(_sentences(text))) < FEWEST_SENTENCES or words < FEWEST_WORDS:
        return f"The text is too short: write at least {FEWEST_SENTENCES} different, whole sentences."
    return None


_FUNCTION_WORDS = _words(
    "a|an|the|i|it|its|is|are|was|be|has|have|of|in|on|at|to|from|with|and|or|but|so|no|not|nothing|that|this|there|here",
    "which|where|as|by|for|than|all|any|each|into|over",
)
_MARKUP = re.compile(
    r"```|`|\*\*|__|^\s*(?:[#>*\u2022-]|\d+[.)])\s|</?\w+[^>]*>|\]\(|https?:|[{}|\\]|^\s*\w+\s*=\s", re.MULTILINE
)
_CHAT = re.compile(
    r"\bas an? (?:\w+ )?(?:ai|assistant|model)\b|\blanguage model\b|\bi(?:'m| am) (?:sorry|unable)\b"
    r"|\bi can(?:not| not|'t) (?:help|assist|view|see images|provide)\b|^(?:sure|certainly|of course)\b"
    r"|\bhere is (?:the|my|your) (?:reasoning|answer|analysis)\b|\bhope this helps\b|\blet me know\b",
    re.IGNORECASE,
)


def _language(record: Record, facts: Facts | None) -> str | None:
    text = record.reasoning
    for tag in TAGS:  # those are the format's
        text = text.replace(tag, " ")
    if _MARKUP.search(text):
        return "Write running text without lists, markup or code."
    if _CHAT.search(text.strip().replace("\u2019", "'")):
        return "Write only the reasoning about the picture: do not speak of yourself or to a reader."
    letters = [c for c in text if c.isalpha()]
    words = re.findall(r"[^\W\d_]+", text.lower())
    ascii_share = sum(c.isascii() for c in letters) / max(len(letters), 1)
    english = len(_FUNCTION_WORDS.findall(text.lower())) / max(len(words), 1)
    return None if ascii_share > 0.95 and english > 0.15 else "Write in English."


# ---------------------------------------------------------------------------------------------- layers

_LOOKED_AT = _words(
    "surfaces?|textures?|edges?|regions?|corners?|borders?|finish|forms?|shapes?|structures?|appearance|brightness",
    "contrast|colou?rs?|tones?|patterns?|weave|threads?|grain|outlines?|contours?|rims?|gloss|sheen|seams?|prints?|printed",
    "shadows?|knots?|background|fib(?:er|re)s?|lines|joints?|teeth|walls?|coating|material|body",
    _DIRECTION,
    _CENTRE,
)
_SOUND = "(?:sound|intact|fine|good|okay|undamaged|whole)"
_VERDICT = re.compile(
    rf"\b(?:{_FAULT}(?! type)|normal|reject\w*|accept\w*|pass(?:es|ed)?|fails?|in order|in \w+ condition)\b"
    rf"|\b(?:item|part|object|product|piece|sample|this \w+) (?:\w+ ){{0,3}}{_SOUND}\b"
    rf"|^(?:(?:so|thus|hence|therefore|overall),? )?it (?:is|looks) (?:\w+ )?{_SOUND}$"
)
_SUPPOSES = _words("if|were|where|look|scan|search|typical of")


def _looked_at(record: Record, facts: Facts | None) -> str | None:
    if record.label == "yes" or _LOOKED_AT.search(_plain(record.reasoning)):
        return None
    return "Say what you looked at and how it looks, such as the texture, an edge, the brightness."


def _decision(record: Record, facts: Facts | None) -> str | None:
    """The last layer; which decision it is, is the business of "no contradiction"."""
    end = [statement for sentence in _statements(record.reasoning)[-2:] for statement in sentence]
    if any(
        _VERDICT.search(statement)
        for statement in end
        if not (_BENIGN.search(statement) or _SUPPOSES.search(statement))
    ):
        return None
    verdict = "an anomaly, and how severe it is" if record.label == "yes" else "normal"
    return f"End with the decision: say that it is {verdict}."


# ---------------------------------------------------------------------------------------------- the rules


@dataclass(frozen=True)
class Rule:
    """A rule that looks at one record.

    Attributes:
        name: as it stands in reports.
        why: what goes wrong in training without it.
        check: None if the record passes, else one sentence for the teacher's next try.
        example: a record that this rule, and no other, rejects, given `example_facts`.
    """

    name: str
    why: str
    check: Callable[[Record, Facts | None], str | None]
    example: Record
    example_facts: Facts | None = None


def _yes(reasoning: str) -> Record:
    return Record("bolt/test/scratch/0.png", "yes", "top left", "scratch", "bolt", reasoning)


def _no(reasoning: str) -> Record:
    return Record("bolt/test/good/0.png", "no", None, None, "bolt", reasoning)


_SCAN = "I scan the surface from edge to edge."
_LINE = "At the top left I see a small dark line."
_KNOWN = "It is straight and thin, so it is a scratch."
_CLEAR = "The anomaly is clear."
_SMALL_AND_DARK = Facts("yes", "top left", "scratch", area=0.004, contrast=0.2, tone="dark", elongation=5.0)

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "format",
            "The model would learn answers that no parser reads, and earn no reward for the format.",
            _format,
            _yes(f"<answer>Yes</answer> {_SCAN} {_LINE} {_KNOWN} {_CLEAR}"),
        ),
        Rule(
            "place agrees",
            "Reasoning and location tag would differ, so the model would learn that the reasoning decides nothing.",
            _place,
            _yes(f"{_SCAN} At the bottom right I see a small dark line. {_KNOWN} {_CLEAR}"),
        ),
        Rule(
            "type agrees",
            "Reasoning and type tag would differ, and what sets one type apart from another would be blurred.",
            _type,
            _yes(f"{_SCAN} {_LINE} It is round and deep, so it is a hole. {_CLEAR}"),
        ),
        Rule(
            "tone agrees",
            "The model would learn to describe what is not in the picture.",
            _tone,
            _yes(f"{_SCAN} At the top left I see a small bright line. {_KNOWN} {_CLEAR}"),
            _SMALL_AND_DARK,
        ),
        Rule(
            "size agrees",
            "The model would learn sizes that have nothing to do with the picture.",
            _size,
            _yes(f"{_SCAN} At the top left I see a large dark line. {_KNOWN} {_CLEAR}"),
            _SMALL_AND_DARK,
        ),
        Rule(
            "no leak of the label's origin",
            "The model would learn to lean on a mask or a label, which a new picture does not bring.",
            _leak,
            _yes(f"{_SCAN} At the top left the mask shows a small dark line. {_KNOWN} {_CLEAR}"),
        ),
        Rule(
            "no contradiction",
            "The reasoning would argue against its own answer, and the model would learn to follow neither.",
            _contradiction,
            _yes(f"{_SCAN} {_LINE} {_KNOWN} So the item is normal."),
        ),
        Rule(
            "length",
            "A text that was cut off teaches to stop anywhere, and an endless one never to stop.",
            _length,
            _yes(f"{_SCAN} {_LINE} {_KNOWN} {_CLEAR} It will be rejected because of the"),
        ),
        Rule(
            "language",
            "The model would learn lists, markup or another language in place of plain reasoning.",
            _language,
            _yes(f"**Perception** {_SCAN} {_LINE} {_KNOWN} {_CLEAR}"),
        ),
        Rule(
            "looked at",
            "The model would learn to say that a picture is normal without looking at it.",
            _looked_at,
            _no("I scan the whole image. I see nothing unusual in it. I find no anomaly."),
        ),
        Rule(
            "decision stated",
            "The answer tag would come out of nothing, since the reasoning ends before it decides.",
            _decision,
            _yes(f"{_SCAN} {_LINE} {_KNOWN}"),
        ),
    )
}


def failures(record: Record, facts: Facts | None = None) -> dict[str, str]:
    """The rules that a record fails, each with the sentence that tells the teacher what to mend.

    An endless text is only called too long: reading it would take minutes.
    """
    endless = len(record.reasoning.strip()) > MOST_CHARACTERS
    told = {name: rule.check(record, facts) for name, rule in RULES.items() if name == "length" or not endless}
    return {name: sentence for name, sentence in told.items() if sentence}


# ---------------------------------------------------------------------------------------------- the set

NEAR_DUPLICATE = "near-duplicate"
SHINGLE_WORDS, ALIKE = 5, 0.9


def _shingles(text: str) -> frozenset[int]:
    """All runs of five words, as numbers; a shorter text is one run."""
    words = re.findall(r"[^\W_]+", text.lower())
    starts = range(max(len(words) - SHINGLE_WORDS, 0) + 1)
    return frozenset(hash(" ".join(words[i : i + SHINGLE_WORDS])) for i in starts)


class _Texts:
    """Texts seen, and whether a new one shares nine tenths of its shingles with one of them (Jaccard).

    Two such sets, each sorted, share one of their first tenth (and one more), so only those are looked up: the work is
    small even where every text has sentences in common with many.
    """

    def __init__(self) -> None:
        self._seen: set[frozenset[int]] = set()
        self._holders: defaultdict[int, list[frozenset[int]]] = defaultdict(list)

    @staticmethod
    def _first(shingles: frozenset[int]) -> list[int]:
        return sorted(shingles)[: len(shingles) - int(-(-ALIKE * len(shingles) // 1)) + 1]

    def has_one_like(self, text: str) -> bool:
        new = _shingles(text)
        return new in self._seen or any(_alike(new, old) for s in self._first(new) for old in self._holders.get(s, ()))

    def add(self, text: str) -> None:
        new = _shingles(text)
        if new not in self._seen:
            self._seen.add(new)
            for shingle in self._first(new):
                self._holders[shingle].append(new)


def _alike(a: frozenset[int], b: frozenset[int]) -> bool:
    if min(len(a), len(b)) < ALIKE * max(len(a), len(b)):
        return False
    shared = len(a & b)
    return shared >= ALIKE * (len(a) + len(b) - shared)


class Verifier:
    """RULES and the memory of a set: finds near-duplicates too, and counts what each rule rejects.

    Args:
        repeats: wordings may come again, as in the short style, which has only a few dozen; a picture still may not.
    """

    def __init__(self, repeats: bool = False) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys([*RULES, NEAR_DUPLICATE], 0))
        self._repeats = repeats
        self._images: set[str] = set()
        self._texts = _Texts()

    def examine(self, record: Record, facts: Facts | None = None) -> dict[str, str]:
        """The rules that a record fails, with their sentences; they are counted, and the record is not remembered."""
        failed = failures(record, facts)
        if record.image in self._images:
            failed[NEAR_DUPLICATE] = "This picture has a record already: leave it out."
        elif not self._repeats and self._texts.has_one_like(record.reasoning):
            failed[NEAR_DUPLICATE] = "The text is almost the same as an earlier one: say it in other words."
        self.counts.update(failed.keys())
        return failed

    def accept(self, record: Record) -> None:
        """Remember a record as part of the set."""
        self._images.add(record.image)
        if not self._repeats:
            self._texts.add(record.reasoning)
