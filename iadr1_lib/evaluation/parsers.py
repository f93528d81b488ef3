"""Parsers: how a model's text becomes "yes", "no" or None. A new parser is a function here and an entry in PARSERS."""

from __future__ import annotations

import re
from collections.abc import Callable

from iadr1_lib.answer import Label, matches_format, parse_answer


def _released_tagged(text: str) -> Label | None:
    tag = re.search(r"<answer>(.*?)</answer>", text)
    return _first_option(tag.group(1).strip().lower()) if tag else None


def _released_free_text(text: str) -> Label | None:
    word = text.strip(".!").lower()
    return _first_option(word if word in ("yes", "no") else text)


def _first_option(text: str) -> Label | None:
    """The option that the text equals, else the first, yes before no, where one contains the other."""
    options: tuple[Label, Label] = ("no", "yes") if text == "no" else ("yes", "no")
    return next((option for option in options if option in text or text in option), None)


PARSERS: dict[str, Callable[[str], Label | None]] = {
    "strict": matches_format,
    "fair": lambda text: parse_answer(text).answer,
    "released-tagged": _released_tagged,
    "released-free-text": _released_free_text,
    "released-free-text-ci": lambda text: _released_free_text(text.lower().strip()),
}


def read_answer(text: str, parser: str = "strict") -> Label | None:
    """What `text` answers: "yes", "no" or None.

    - `strict`: the whole output is one of the two patterns.
    - `fair`: as `answer.parse_answer` reads, the answer tag first and never the reasoning.
    - `released-tagged`, `released-free-text`, `released-free-text-ci` (case-insensitive): what the paper's released
      test code reads, its errors included ("snout" contains "no"; an empty tag is a yes).

    Raises:
        ValueError: there is no such parser.
    """
    if parser not in PARSERS:
        raise ValueError(f"no parser is called {parser!r}; choose from {', '.join(PARSERS)}")
    return PARSERS[parser](text)
