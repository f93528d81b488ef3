"""The four rewards, what the trainer gets of them, and how outputs are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial, update_wrapper
from typing import Any, NamedTuple

from iadr1_lib.answer import GRID, first_pairs, flat_pairs, matches_format
from iadr1_lib.expert_ad import supports
from iadr1_lib.rewards.comparing import embedding, location_score, type_score
from iadr1_lib.rewards.modes import Mode, mode_named

RewardFunction = Callable[..., list[float]]


# ------------------------------------------------------------------------------------------------ the rewards


def consistency_reward(
    completions: Sequence[Any],
    solution: Sequence[str],
    *,
    mode: str = "strict",
    grid: int = GRID,
    taught_sentences: bool = False,
    **kwargs: Any,
) -> list[float]:
    """R_con: 1 if the output has the form that belongs to the true label, else 0.

    In ``grounded`` also if, and only if, its reasoning supports its own tags, right or wrong (`expert_ad.supports`,
    which explains ``taught_sentences``).
    """
    rows, rules = _read_rows(completions, solution, mode), mode_named(mode)
    if not rules.whole_output:
        return [float(_tags_in_order(output.text, truth.answer)) for output, truth in rows]
    return [
        float(output.form == truth.answer and (not rules.grounded or supports(output.text, grid, taught_sentences)))
        for output, truth in rows
    ]


def accuracy_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_acc: 1 if the answer is right, else 0; ``released`` adds (R_type + R_loc) / 2 on defective images.

    In training the share of answers Yes is logged beside it, where a drift to one answer shows first.
    """
    rows = _read_rows(completions, solution, mode)
    if "log_metric" in kwargs and rows:  # TRL's trainer hands it to every reward
        kwargs["log_metric"]("share_yes", sum(output.answer == "yes" for output, _ in rows) / len(rows))
    rewards = [float(output.answer == truth.answer) for output, truth in rows]
    for number, (output, truth) in enumerate(rows):
        if mode_named(mode).summed and truth.answer == "yes":
            rewards[number] += sum(_tag_score(tag, output, truth, mode, grid) for tag in ("type", "location")) / 2
    return rewards


def location_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", grid: int = GRID, **kwargs: Any
) -> list[float]:
    """R_loc: on a defective image the location score; conditions and what a right No earns are the mode's."""
    return [_tag_reward("location", *row, mode, grid) for row in _read_rows(completions, solution, mode)]


def type_reward(
    completions: Sequence[Any], solution: Sequence[str], *, mode: str = "strict", **kwargs: Any
) -> list[float]:
    """R_type: on a defective image the type score; conditions and what a right No earns are the mode's."""
    return [_tag_reward("type", *row, mode) for row in _read_rows(completions, solution, mode)]


def _tag_reward(tag: str, output: _Parsed, truth: _Parsed, mode: str, grid: int = GRID) -> float:
    """What one of the two tags pays under the mode's conditions."""
    rules = mode_named(mode)
    if rules.needs_right_answer and output.answer != truth.answer:
        return 0.0
    if truth.answer == "no":
        return rules.for_right_no if output.form == "no" else 0.0
    return _tag_score(tag, output, truth, mode, grid)


def _tag_score(tag: str, output: _Parsed, truth: _Parsed, mode: str, grid: int = GRID) -> float:
    """How alike the two contents of a tag are, 0 where one lacks it."""
    contents = getattr(output, tag), getattr(truth, tag)
    if None in contents:
        return 0.0
    return type_score(*contents, mode=mode) if tag == "type" else location_score(*contents, mode=mode, grid=grid)


def total_reward(completion: Any, solution: str, mode: str = "strict", taught_sentences: bool = False) -> float:
    """The weighted sum that the trainer sees for one completion."""
    functions, weights = reward_functions(mode, taught_sentences=taught_sentences), reward_weights(mode)
    return sum(w * reward([completion], [solution])[0] for w, reward in zip(weights, functions, strict=True))


# ------------------------------------------------------------------------------------------------ for the trainer

_REWARDS: dict[str, RewardFunction] = {
    "consistency": consistency_reward,
    "accuracy": accuracy_reward,
    "location": location_reward,
    "type": type_reward,
}


def reward_functions(
    mode: str = "strict", parts: Sequence[str] = (), grid: int = GRID, taught_sentences: bool = False
) -> list[RewardFunction]:
    """What the trainer gets: consistency and accuracy in ``released``, all four otherwise. They pickle.

    ``parts`` keeps some of them only, by name, for ablations; ValueError for one that the mode does not have.
    """
    chosen = [_REWARDS[part] for part in _parts(mode, parts)]
    how = {"mode": mode, "grid": grid, "taught_sentences": taught_sentences}
    return [update_wrapper(partial(reward, **how), reward) for reward in chosen]


def reward_weights(mode: str = "strict", parts: Sequence[str] = ()) -> list[float]:
    """The weight of each of ``reward_functions(mode, parts)`` in the total."""
    return [mode_named(mode).weights[part] for part in _parts(mode, parts)]


def _parts(mode: str, wanted: Sequence[str]) -> list[str]:
    weights = mode_named(mode).weights
    if unknown := [part for part in wanted if part not in weights]:
        raise ValueError(f"mode {mode} has no reward {unknown[0]!r}; choose from {', '.join(weights)}")
    return [part for part in weights if not wanted or part in wanted]


def check_solutions(solutions: Sequence[str], *, mode: str = "strict") -> None:
    """Whether training can start: ValueError with the row (from 0) of the first solution that names neither yes nor no.

    UserError where the mode needs a package that is not installed.
    """
    rules = mode_named(mode)
    if rules.by_meaning:
        embedding("scratch")
    for row, solution in enumerate(solutions):
        if not isinstance(solution, str) or _parse_solution(solution, rules).answer is None:
            shown = str(solution)[:80]
            raise ValueError(f"solution in row {row} names neither yes nor no: {shown!r}; correct it before training")


# ------------------------------------------------------------------------------------------------ reading outputs


class _Parsed(NamedTuple):
    """An output or a solution and its tags, lower case and stripped; None where absent or worthless."""

    text: str
    answer: str | None
    location: str | None
    type: str | None
    form: str | None = None  # which of the two patterns the whole output is


def _read_rows(completions: Sequence[Any], solution: Sequence[str], mode: str) -> list[tuple[_Parsed, _Parsed]]:
    """(output, solution) of each row."""
    if len(completions) != len(solution):
        raise ValueError(f"{len(completions)} completions cannot be judged by {len(solution)} solutions")
    check_solutions(solution, mode=mode)
    rules = mode_named(mode)
    outputs = [_parse_output(_text(completion), rules) for completion in completions]
    return list(zip(outputs, [_parse_solution(truth, rules) for truth in solution], strict=True))


def _text(completion: Any) -> str:
    """The text of a completion, plain or conversational; anything else counts as an empty text."""
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], dict):
        completion = completion[-1].get("content")
        if isinstance(completion, list):
            parts = [part.get("text") for part in completion if isinstance(part, dict)]
            return "".join(part for part in parts if isinstance(part, str))
    return completion if isinstance(completion, str) else ""


# Caches are keyed by a mode's rules and not by its name: a mode may be changed while a notebook tries it.


@lru_cache(maxsize=16384)
def _parse_output(text: str, rules: Mode) -> _Parsed:
    tags = flat_pairs(text) if rules.flat_tags else first_pairs(text, rules.tags_cross_lines)
    tags = {name: content.lower() for name, content in tags.items()}
    return _Parsed(text, tags.get("answer"), tags.get("location"), tags.get("type"), matches_format(text))


@lru_cache(maxsize=16384)
def _parse_solution(text: str, rules: Mode) -> _Parsed:
    """The first pair counts, solutions being ours; one without an answer pair is the label itself."""
    solution = _parse_output(text, replace(rules, flat_tags=False))
    label = solution.answer or text.strip().lower()
    return solution._replace(answer=label if label in ("yes", "no") else None)


def _tags_in_order(text: str, label: str | None) -> bool:
    """The released consistency: pairs that follow each other at once, anywhere; what they hold is free.

    Since contents are free, the first place for each piece is as good as any: no search back is needed.
    """
    if label == "yes":
        pieces = ["<think>", "</think><location>", "</location><type>", "</type><answer>", "</answer>"]
    elif "<location>" in text or "<type>" in text:
        return False
    else:
        pieces = ["<think>", "</think><answer>", "</answer>"]
    for piece in pieces:
        _, present, text = text.partition(piece)
        if not present:
            return False
    return True
