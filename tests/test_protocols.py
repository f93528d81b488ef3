"""Protocols: the facts of the released scripts, one fair way for all, messages as chat templates take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iadr1_lib.answer import QUESTION
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import PARSERS, prompt_messages, protocol
from iadr1_lib.evaluation.protocols import FAMILIES, family_of

TEST = QUESTION.replace("query", "test")
TAGGED, WORDS, LOWERED = "released-tagged", "released-free-text", "released-free-text-ci"

# reference/paper.md, "At test time": picture's name, yes or no asked for, temperature, top_p, new tokens, parser
RELEASED = {
    ("qwen", "tuned"): ("test image", False, 0, 0.8, 512, TAGGED),
    ("qwen", "base"): ("test image", True, 0.7, 0.8, 512, WORDS),
    ("llava-onevision", "tuned"): ("query image", False, 0, 1, 512, TAGGED),
    ("llava-onevision", "base"): ("query image", False, 0, 1, 512, TAGGED),
    ("llava-1.6", "tuned"): ("query image", False, 0, 1, 512, TAGGED),
    ("llava-1.6", "base"): ("query image", False, 0, 1, 512, TAGGED),
    ("llava-1.5", "tuned"): ("test image", False, 0, 1, 512, TAGGED),
    ("llava-1.5", "base"): ("test image", True, 0, 1, 512, LOWERED),
    ("internvl", "base"): ("query image", True, 0, 1, 128, LOWERED),
    ("mini", "tuned"): ("query image", False, 0, 1, 96, TAGGED),
    ("mini", "base"): ("query image", False, 0, 1, 96, TAGGED),
}


@pytest.mark.parametrize("pair", RELEASED)
def test_released_says_what_the_scripts_do(pair: tuple[str, str]) -> None:
    p = protocol("released", *pair)
    word = "test image" if "test image" in p.text else "query image"
    asks_for_word = "yes or no" in f"{p.system} {p.text}"
    facts = (word, asks_for_word, p.temperature, p.top_p, p.max_new_tokens, p.parser)
    assert facts == RELEASED[pair] and p.name == "released" and (p.family, p.kind) == pair
    assert p.parser in PARSERS and p.max_side is None


def test_where_the_words_stand() -> None:
    asked = {pair: protocol("released", *pair) for pair in RELEASED}
    bare = {pair for pair, p in asked.items() if not p.system and p.text in (QUESTION, TEST)}
    assert bare == {(family, "tuned") for family in FAMILIES if family != "internvl"}
    assert [pair for pair, p in asked.items() if p.system] == [("qwen", "base")]
    assert [pair for pair, p in asked.items() if p.before_image] == [("llava-1.5", "tuned")]
    assert all(QUESTION in p.text.replace("test image", "query image") for p in asked.values())


def test_fair_is_the_same_for_every_model() -> None:
    asked = [protocol("fair", *pair) for pair in RELEASED]
    same = {(p.prompt, p.temperature, p.top_p, p.max_side, p.parser) for p in asked}
    assert len(same) == 1 and asked[0].text == QUESTION and asked[0].parser == "fair" and asked[0].temperature == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("kind qwen base", "released, fair"),
        ("fair gpt base", "qwen"),
        ("fair qwen old", "base and tuned"),
        ("fair internvl tuned", "tunes no internvl"),
    ],
)
def test_what_is_not_there_is_a_user_error(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        protocol(*words.split())


@pytest.mark.parametrize(
    ("names", "images", "parts"),
    [
        ("released qwen base", 1, [("system", ["text"]), ("user", ["image", "text"])]),
        ("released llava-1.5 tuned", 1, [("user", ["text", "image", "text"])]),
        ("fair mini base", 1, [("user", ["image", "text"])]),
        ("fair mini base", 2, [("user", ["text", "image", "image", "text"])]),
    ],
)
def test_messages_hold_system_lead_in_image_and_question_in_this_order(names: str, images: int, parts: list) -> None:
    p = protocol(*names.split())
    messages = prompt_messages(p, images)
    assert [(m["role"], [part["type"] for part in m["content"]]) for m in messages] == parts
    assert p.prompt.index(p.system) <= p.prompt.index("<image>") < p.prompt.index(p.text)


def test_family_is_read_from_the_models_config(root: Path) -> None:
    assert family_of(json.loads((root / "data" / "mini_base" / "config.json").read_text())) == "mini"
    assert family_of({"model_type": "llava", "text_config": {"model_type": "llama"}}) == "llava-1.5"
    assert family_of({"model_type": "qwen2_5_vl"}) == "qwen"
    with pytest.raises(UserError, match="bert"):
        family_of({"model_type": "bert"})
