"""Records that fit the model that learns them: the rule teacher's style, what is rejected, what is not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import read_json
from test_cli import complaint, iadr1

from iadr1_lib import world
from iadr1_lib.course import steps
from iadr1_lib.data import load_mvtec
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import Budget, Draft, RuleTeacher, Task, build, teacher_within
from iadr1_lib.expert_ad.teachers import SLACK, teacher_vocabulary
from iadr1_lib.models import load_processor
from iadr1_lib.records import Sample, pa_sft_row, read_rows
from iadr1_lib.runs import Run, base_model_dir

SHORT_WORDS = {word for line in teacher_vocabulary() for word in line.split()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("world") / "w"
    world.write_world(root, world.train_families(4), 24, seed=4)
    return list(load_mvtec(root))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_processor(base_model_dir()).tokenizer


def words(tokens: int) -> Budget:
    """A budget that counts words."""
    return Budget(lambda text: len(text.split()), tokens)


def test_a_budget_counts_the_token_that_ends_an_answer(tokenizer: Any) -> None:
    assert words(4).excess("three little words") is None
    assert "4 tokens, and 3" in str(words(3).excess("three little words"))
    text = "<think>I scan the whole image .</think><answer>No</answer>"
    assert Budget.of(tokenizer, 0).count(text) == len(tokenizer.tokenize(text)) > 5


def test_the_style_is_the_one_that_fits_the_model(drawn: list[Sample], tokenizer: Any) -> None:
    assert not teacher_within(drawn, 0, words(512)).short
    assert teacher_within(drawn, 0, Budget.of(tokenizer, 56)).short
    longest = max(words(0).count(r.answer) for r in build.build_records(drawn, RuleTeacher(0), repeats=True).records)
    assert not teacher_within(drawn, 0, words(int(longest / SLACK) + 1)).short
    assert teacher_within(drawn, 0, words(longest)).short
    assert teacher_within(drawn[:1], 7, words(1)).seed == 7 and not teacher_within([], 0, words(56)).short


class Talker(RuleTeacher):
    """Talks at length at the first try, and remembers why it was asked again."""

    def write(self, tasks: Sequence[Task]) -> Iterator[Draft]:
        for task, draft in zip(tasks, super().write(tasks), strict=True):
            self.told = task.reasons
            more = "" if task.attempt else " The whole image is as it should be elsewhere ." * 9
            yield Draft(f"{draft.reasoning}{more}")


def test_a_record_that_is_too_long_is_written_again_then_rejected(drawn: list[Sample], tmp_path: Path) -> None:
    teacher = Talker(short=True)
    built = build.build_records(drawn[:4], teacher, repeats=True, budget=words(60))
    assert len(built.records) == 4 and set(built.tries) == {2} and built.counts[build.TOO_LONG] == 4
    assert any("60 are allowed" in reason for reason in teacher.told)
    short = RuleTeacher(0, short=True)
    built = build.build_records(drawn, short, repeats=True, budget=words(8), journal=tmp_path / "journal.jsonl")
    assert not built.records and len(built.rejected) == len(drawn)
    assert all("8 are allowed" in row["failed"][build.TOO_LONG] for row in built.rejected)
    with pytest.raises(UserError, match="other settings"):  # decisions for another length
        build.build_records(drawn, short, repeats=True, budget=words(9), journal=tmp_path / "journal.jsonl")
    free = build.build_records(drawn, short, repeats=True)
    assert build.build_records(drawn, short, repeats=True, budget=words(100)).records == free.records


def test_a_record_that_sc_grpo_would_cut_is_refused_with_its_number(drawn: list[Sample], tmp_path: Path) -> None:
    run = Run("smoke", 0, tmp_path)
    built = steps.write_records(run, drawn)
    assert {word for record in built.records for word in record.reasoning.split()} <= SHORT_WORDS
    assert len(built.records) == len(drawn)
    rows = [pa_sft_row(record) for record in built.records]
    path = tmp_path / "expert_ad" / "pa_sft.json"
    path.parent.mkdir()
    path.write_text(json.dumps(rows))
    steps._require_fitting(run, path)
    content = rows[2]["messages"][-1]["content"]
    rows[2]["messages"][-1]["content"] = content.replace("<think>", "<think>" + "I scan the whole image . " * 9)
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError) as caught:
        steps.train_stage(run, "pa_sft")
    told = str(caught.value)
    assert f"{path}, record 3" in told and "max_completion_length" in told and "\n" not in told
    roomy = replace(run.choices, settings={"sc_grpo.max_completion_length": 400})
    steps._require_fitting(Run("smoke", 0, tmp_path, roomy), path)


def test_expert_ad_for_a_student_is_as_long_as_it_can_write(parts: Path, tmp_path: Path, tokenizer: Any) -> None:
    common = ("expert-ad", "--data", parts, "--workers", 1, "--no-parquet", "--seed", 3)

    def reasonings(*more: object) -> list[str]:
        out = tmp_path / "-".join(map(str, ("set", *more)))
        result = iadr1(*common, "--out", out, *more)
        assert result.exit_code == 0, result.output
        assert read_json(out / "report.json")["rejected"] == 0
        return [row["messages"][-1]["content"] for row in read_rows(out / "pa_sft.json")]

    short, full = reasonings("--student", "mini"), reasonings()
    assert all(len(tokenizer.tokenize(text)) < 56 for text in short)
    assert max(map(len, short)) < min(map(len, full))
    assert reasonings("--student", "mini", "--max-tokens", 4000) == full
    tight = iadr1(*common, "--out", tmp_path / "tight", "--student", "mini", "--max-tokens", 16)
    assert "no record passed" in complaint(tight) and build.TOO_LONG in tight.stdout
    complaint(iadr1(*common, "--out", tmp_path / "o", "--max-tokens", 99), 2)
    assert "nobody" in complaint(iadr1(*common, "--out", tmp_path / "o", "--student", tmp_path / "nobody"))
    assert not (tmp_path / "o").exists()
