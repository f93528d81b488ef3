"""Teachers behind an API, against a local server, and recorded ones."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from api_server import ApiServer, anthropic_reply, error
from PIL import Image

from iadr1_lib.answer import CELLS, DEFECT_TYPES
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import Draft, Facts, RuleTeacher, Task
from iadr1_lib.records import Sample
from iadr1_lib.remote import ApiTeacher, Endpoint, RecordingTeacher, Remote, ReplayTeacher

DEFECT = Facts("yes", "top left", "scratch", area=0.004, contrast=0.2, tone="dark", elongation=6.0, difference=-0.2)
NORMAL = Facts("no", look_alike="knot", look_alike_cell="right")


@pytest.fixture
def remote(server: ApiServer, tmp_path: Path) -> Remote:
    return server.connect(Endpoint("anthropic", "claude-test"), tmp_path / "replies", retries=1)


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Task]:
    """Make a task about a small picture; its mask holds a value that the picture has nowhere."""

    def make(
        facts: Facts = DEFECT, number: int = 0, attempt: int = 0, reasons: tuple[str, ...] = (), folder: str = "w"
    ) -> Task:
        image, mask = (tmp_path / folder / kind / f"{number}.png" for kind in ("image", "mask"))
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 200, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image)
        Image.new("L", (16, 12), 255).save(mask)
        location, kind = facts.location, facts.defect_type
        sample = Sample(str(image), facts.label, str(mask), kind, location, "wood_plank", "mini", "train", "mvtec")
        return Task(sample, facts, attempt, reasons)

    return make


def test_the_prompt_tells_the_truth_and_the_rules(remote: Remote, task: Callable[..., Task]) -> None:
    request = ApiTeacher(remote).request(task())
    for fact in ("wood plank", "a defect", "place: top left", "scratch", "small, dark line", "clear contrast"):
        assert fact in request.text
    assert ", ".join(CELLS) in request.system and not re.search(r"[{}]", request.system + request.text)
    others = re.search("out of: (.*)\\.", request.text)
    assert others and set(others.group(1).split(", ")) == set(DEFECT_TYPES) - {"scratch"}
    normal = ApiTeacher(remote).request(task(NORMAL)).text
    assert "the item is fine" in normal and "A knot at the right belongs to the item" in normal
    assert "place:" not in normal and "None" not in normal
    plain = ApiTeacher(remote).request(task(Facts("no"))).text
    assert "belongs to the item" not in plain and "\n\n" not in plain
    teacher = ApiTeacher(remote)
    teacher._prompts["again"] = "a {reason}"
    with pytest.raises(UserError, match="'reason'.*use cells, .*reasons"):
        teacher.request(task(attempt=1))


def test_a_retry_names_the_reasons_and_is_a_new_request(
    server: ApiServer, remote: Remote, task: Callable[..., Task]
) -> None:
    teacher = ApiTeacher(remote)
    first, again = task(), task(attempt=1, reasons=("Say where it is.", "Write no tags."))
    for one in (first, again, first, again, task(attempt=2, reasons=again.reasons)):
        list(teacher.write([one]))
    assert len(server.seen) == 3, "the cache knows the first two, the third attempt is asked anew"
    assert "turned down" not in server.seen[0].text
    assert "- Say where it is.\n- Write no tags." in server.seen[1].text


def test_the_picture_is_sent_nothing_of_the_mask_and_the_draft_is_one_paragraph(
    server: ApiServer, remote: Remote, task: Callable[..., Task]
) -> None:
    sample = task().sample
    server.script(anthropic_reply("I look.\n\n It is fine . "))
    assert list(ApiTeacher(remote).write([task()])) == [Draft("I look. It is fine .")]
    (seen,) = server.seen
    assert np.array_equal(np.asarray(seen.picture), np.asarray(Image.open(sample.image))) and sample.mask
    mask = base64.b64encode(Path(sample.mask).read_bytes()).decode()
    assert not any(secret in json.dumps(seen.body) for secret in (sample.image, sample.mask, mask))


def test_what_did_not_work_is_a_draft_without_reasoning(
    server: ApiServer, remote: Remote, task: Callable[..., Task]
) -> None:
    for step, sentence in (
        (anthropic_reply("", "refusal"), "refused: I would rather not."),
        (error(500, "down"), "failed: .* gave no reply: status 500"),
    ):
        server.answer = lambda number, seen, step=step: step
        (draft,) = ApiTeacher(remote).write([task(attempt=len(server.seen))])
        assert draft.reasoning is None and draft.failure and re.match(sentence, draft.failure)


# --------------------------------------------------------------------------------------------- recordings


def test_a_recording_plays_back_without_a_server(
    server: ApiServer, remote: Remote, task: Callable[..., Task], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "recorded.jsonl"
    server.answer = lambda number, seen: (
        anthropic_reply("", "refusal") if "the item is fine" in seen.text else server.echo(seen)
    )
    recorder = RecordingTeacher(path, ApiTeacher(remote))
    drafts = recorder.write([task(number=0), task(number=2)])
    first = [next(drafts)]
    assert len(path.read_text().splitlines()) == 1, "written as soon as it is there"
    first += recorder.write([task(NORMAL, number=1), task(number=0, attempt=1)])
    server.close()
    replay = ReplayTeacher(path)
    moved = [task(number=0, folder="elsewhere"), task(NORMAL, number=1), task(number=0, attempt=1)]
    assert list(replay.write(moved)) == first
    assert first[1].failure == "refused: I would rather not."
    assert replay.name == "replay of anthropic/claude-test" and recorder.name == "anthropic/claude-test"
    assert str(tmp_path) not in path.read_text()


def test_of_two_records_the_later_counts_and_what_is_missing_has_no_draft(
    task: Callable[..., Task], tmp_path: Path
) -> None:
    path = tmp_path / "r.jsonl"
    for seed in (0, 1):
        (draft,) = RecordingTeacher(path, RuleTeacher(seed)).write([task()])
    known, later, other = ReplayTeacher(path).write([task(), task(attempt=1), task(number=5)])
    assert known == draft and not later.reasoning and not other.reasoning
    assert later.failure == "attempt 1 at 0.png is not recorded in r.jsonl"


def test_a_broken_recording_names_its_line(task: Callable[..., Task], tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(UserError, match="There are no recorded drafts"):
        ReplayTeacher(path)
    list(RecordingTeacher(path, RuleTeacher()).write([task()]))
    for broken in ('{"pixels": "a", "atte', '{"pixels": "a"}', "[]"):
        path.write_text(path.read_text().splitlines()[0] + "\n" + broken)
        with pytest.raises(UserError, match=r"r.jsonl.* line 2"):
            ReplayTeacher(path)
