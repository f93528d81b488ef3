"""Files of training records: what they may hold, and the errors for those that cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iadr1_lib.answer import QUESTION
from iadr1_lib.data import checked_rows, depth_of, open_image, read_snapshot, released_records, share_depth, take_depths
from iadr1_lib.errors import UserError
from iadr1_lib.expert_ad import build
from iadr1_lib.records import Record, checked_row, pa_sft_row, read_rows, row_notes, sc_grpo_row

NO = "<think>I look .</think><answer>No</answer>"
YES = "<think>I look .</think><location>top left</location><type>scratch</type><answer>Yes</answer>"
Row = dict[str, Any]


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(4):
        Image.new("RGB", (8, 8), (n, n, n)).save(folder / f"{n}.png")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:40])
    return [str(folder / f"{n}.png") for n in range(4)]


@pytest.fixture
def sft(pictures: list[str]) -> list[Row]:
    return [
        {"images": image, "messages": [user(f"<image>\n{QUESTION}"), assistant(YES if n % 2 else NO)]}
        for n, image in enumerate(pictures)
    ]


@pytest.fixture
def grpo(pictures: list[str]) -> list[Row]:
    solutions = ["<answer>No</answer>", YES.split("</think>")[1]]
    return [
        {"id": n, "image": image, "problem": QUESTION, "solution": solutions[n % 2]} for n, image in enumerate(pictures)
    ]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def message(rows: list[Any], stage: Any, folder: Path) -> str:
    """The one line of the error that these rows give."""
    with pytest.raises(UserError) as error:
        checked_rows(rows, stage, folder / "records.json", folder)
    assert "\n" not in str(error.value)
    return str(error.value)


FAULTS: dict[str, Callable[[Row], Row | None]] = {
    "gone.png": lambda row: row | {"images": "gone.png"},
    "cut.png": lambda row: row | {"images": ["pictures/cut.png"]},
    "names no picture": lambda row: row | {"images": []},
    "key images names no picture": lambda row: row | {"images": None},
    "has no images and no messages": lambda row: {"image": row["images"], "conversations": []},
    "marks <image>": lambda row: row | {"messages": [user("<image><image>?"), assistant(NO)]},
    "1 marks <image>": lambda row: row | {"messages": [user("?"), assistant("<image>" + NO)]},
    "assistant is empty": lambda row: row | {"messages": [user("?"), assistant(" ")]},
    "of the user is no text": lambda row: row | {"messages": [user([{"type": "image"}]), assistant(NO)]},
    "answer at the end": lambda row: row | {"messages": [user("?")]},
    r"turns \(none\)": lambda row: row | {"messages": []},
    "(user, user, assistant)": lambda row: row | {"messages": [user("?"), user("?"), assistant(NO)]},
    "no list of turns": lambda row: row | {"messages": "text"},
    "needs a location and a type": lambda row: row | {"messages": [user("?"), assistant("<answer>Yes</answer>")]},
    "no location": lambda row: row | {"messages": [user("?"), assistant(YES.replace("Yes", "No"))]},
    "yes or no": lambda row: row | {"messages": [user("?"), assistant("It is fine.")]},
    "it is no record": lambda row: None,
    "no record": lambda row: {},
    "is no record": lambda row: "text",  # type: ignore[dict-item, return-value]
    "grid is 4.0": lambda row: row | {"grid": 4.0},
    "depth is": lambda row: row | {"depth": "12"},
    "grid is 9": lambda row: row | {"grid": 9},
}


@pytest.mark.parametrize("words", FAULTS)
def test_a_faulty_record_is_named_by_its_number_in_the_file(sft: list[Row], tmp_path: Path, words: str) -> None:
    sft[2] = FAULTS[words](sft[2])  # type: ignore[assignment]
    text = message(sft, "pa_sft", tmp_path)
    assert "records.json, record 3: " in text
    assert all(word in text for word in words.replace("\\", "").replace("yes or no", "'yes' or 'no'").split())


@pytest.mark.parametrize(
    "change",
    [
        *({"solution": text} for text in ("<answer>Yes.</answer>", "<answer>perhaps</answer>", "", 7)),
        {"solution": "<location>top left</location><answer>Yes</answer>"},
        {"problem": None},
        {"problem": "<image><image>?"},
        {"image": ["pictures/0.png", "pictures/gone.png"]},
    ],
)
def test_a_faulty_question_is_reported_too(grpo: list[Row], tmp_path: Path, change: Row) -> None:
    grpo[1] |= change
    assert "record 2: " in message(grpo, "sc_grpo", tmp_path)


def test_several_faulty_records_are_counted(sft: list[Row], tmp_path: Path) -> None:
    for n in (1, 2, 3):
        sft[n]["images"] = "gone.png"
    text = message(sft, "pa_sft", tmp_path)
    assert "record 2: " in text and "2 more" in text and "record 3" in text


def test_turns_are_taken_by_role_and_the_last_answer_is_learnt(sft: list[Row]) -> None:
    system = {"role": "system", "content": "You are an inspector."}
    talk = [system, user(f"<image>\n{QUESTION}"), assistant("Let me look."), user("And?"), assistant(NO)]
    turns = checked_row(sft[0] | {"messages": talk}, "pa_sft")["messages"]
    assert turns == [system, user(QUESTION), *talk[2:]]
    bare = [system, user(QUESTION), assistant(NO)]  # without the picture's mark, as for Qwen
    assert checked_row(sft[0] | {"messages": bare}, "pa_sft")["messages"] == bare
    two = sft[0] | {"images": ["a", "b"], "messages": [user(f"<image>\n<image>\n{QUESTION}"), assistant(NO)]}
    assert checked_row(two, "pa_sft")["messages"] == [user(QUESTION), assistant(NO)]


def test_a_solution_is_what_every_mode_of_the_rewards_reads(grpo: list[Row]) -> None:
    plain = grpo[1]["solution"]
    spread = plain.replace("><", ">\n<").replace("top left", "\n top  left")
    assert checked_row(grpo[1] | {"solution": spread}, "sc_grpo")["solution"] == plain
    assert checked_row(grpo[1] | {"solution": " No "}, "sc_grpo")["solution"] == "<answer>No</answer>"


@pytest.mark.parametrize("form", ["list", "lines", "mark"])
def test_lists_json_lines_and_byte_order_marks_are_read(sft: list[Row], tmp_path: Path, form: str) -> None:
    sft[0]["messages"][0]["content"] += "\u2028"  # a line end to Python, not to JSON
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in sft) if form == "lines" else json.dumps(sft)
    path = tmp_path / "r.json"
    path.write_text(("\ufeff" if form == "mark" else "") + text, encoding="utf-8")
    assert read_rows(path) == sft
    path.write_text(text.replace("}]}", "}", 1), encoding="utf-8")
    with pytest.raises(UserError, match="line [12]"):
        read_rows(path)
    path.write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        read_rows(path)


@pytest.mark.parametrize("named", ["pictures/0.png", "./pictures/0.png", "pictures\\0.png"])
def test_relative_paths_start_from_the_file(
    sft: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir("/")
    (row,) = checked_rows([sft[0] | {"images": named}], "pa_sft", tmp_path / "r.json", tmp_path)
    assert Path(row["images"][0]).samefile(tmp_path / "pictures" / "0.png")


def test_rows_are_written_with_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = Record("a/0.png", "no", None, None, "a", "I look .", "set")
    one_shot = build.one_shot_rows([record, replace(record, image="a/1.png")], 0)
    written = [pa_sft_row(record)["images"], sc_grpo_row(record, 0)["image"], *one_shot[0]["images"]]
    assert written == [str(tmp_path / "a" / name) for name in ("0.png", "0.png", "1.png", "0.png")]


def test_what_one_may_not_expect_is_said(sft: list[Row], grpo: list[Row], tmp_path: Path) -> None:
    def notes(rows: list[Row], stage: Any) -> str:
        return "; ".join(row_notes(checked_rows(rows, stage, tmp_path / "r.json", tmp_path), stage))

    assert notes(sft, "pa_sft") == notes(grpo, "sc_grpo") == ""
    assert "2 of 4 records repeat" in notes([sft[0], sft[0], sft[1], sft[0]], "pa_sft")
    assert "1 picture(s) are both" in notes([sft[0], sft[1], sft[0] | {"messages": sft[1]["messages"]}], "pa_sft")
    assert "all 2 records say no" in notes([grpo[0], grpo[2]], "sc_grpo")
    sft[1]["messages"][-1]["content"] = YES.replace("top left", "somewhere")
    sft[2]["messages"][-1]["content"] = NO + " Done ."
    assert "no cell of their grid, such as record 2" in notes(sft, "pa_sft")
    assert "patterns, such as that of record 3" in notes(sft, "pa_sft")


# ---------------------------------------------------------------------------------------------- grids


def test_the_grid_travels_with_the_records(pictures: list[str], tmp_path: Path) -> None:
    fine = [Record(image, "yes", "upper far right", "scratch", "a", "I look .", "set", 4) for image in pictures[:2]]
    normal = Record(pictures[2], "no", None, None, "a", "I look .", "set", 4)
    built = build.Built(records=[*fine, normal])
    report = build.export(built, [replace(fine[0], image=pictures[3])], tmp_path / "out")
    assert report["grid"] == 4
    for path in (tmp_path / "out").rglob("*.json"):
        if path.name != "report.json":
            rows = json.loads(path.read_text())
            assert all(row["grid"] == 4 for row in rows)
    assert "grid" not in pa_sft_row(replace(fine[0], grid=3))


def test_places_of_a_finer_grid_are_read_in_that_grid(sft: list[Row], tmp_path: Path) -> None:
    place = "upper far right"
    text = YES.replace("top left", place)
    row = sft[1] | {"images": "pictures/1.png", "messages": [user(QUESTION), assistant(text)]}
    (tmp_path / "pa_sft.json").write_text(json.dumps([row | {"grid": 4}, row]))
    fine, coarse = read_snapshot(tmp_path)
    assert fine.location == place and coarse.location == "top right"


def test_the_bit_depth_of_the_data_set_travels_with_the_records(tmp_path: Path) -> None:
    """Of a set whose one bright picture is in SC-GRPO's half, PA-SFT's must not look brighter."""
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for path, top in zip(paths, (900, 900, 5000), strict=True):
        Image.fromarray(np.full((9, 9), top, np.uint16)).save(path)
    share_depth(paths)
    rows = [pa_sft_row(Record(path, "no", None, None, "a", "", depth=depth_of(path))) for path in paths[:2]]
    seen = open_image(paths[0]).tobytes()
    take_depths(dict.fromkeys(paths, 1023.0))  # what a process would find that sees these two alone
    assert open_image(paths[0]).tobytes() != seen
    checked_rows(json.loads(json.dumps(rows)), "pa_sft", tmp_path / "pa_sft.json", tmp_path)
    assert open_image(paths[0]).tobytes() == seen


def test_mixed_grids_are_refused(sft: list[Row], tmp_path: Path) -> None:
    sft[2]["grid"] = 4
    text = message(sft, "pa_sft", tmp_path)
    assert "4 x 4" in text and "record 3" in text and "3 x 3" in text and "record 1" in text


# ---------------------------------------------------------------------------------------------- the hub's


def test_the_hubs_records_are_checked_in_the_same_way(sft: list[Row], grpo: list[Row], tmp_path: Path) -> None:
    for rows, key in ((sft, "images"), (grpo, "image")):
        for n, row in enumerate(rows):
            row[key] = f"pictures/{n}.png"
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "a.json").write_text(json.dumps(sft))
    (tmp_path / "b.json").write_text("\ufeff" + json.dumps(grpo))
    found = released_records(str(tmp_path))
    assert [row["images"] for row in found["pa_sft"]] == [[str(tmp_path / f"pictures/{n}.png")] for n in range(4)]
    assert [row["solution"] for row in found["sc_grpo"]] == [row["solution"] for row in grpo]
    sft[3] = {"caption": "none"}
    (tmp_path / "index" / "a.json").write_text(json.dumps(sft))
    with pytest.raises(UserError, match=r"a\.json, record 4: "):
        released_records(str(tmp_path))
