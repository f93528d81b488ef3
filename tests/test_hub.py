"""Hub data sets: drawn copies of their shape, and a download that only copies one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pandas as pd
import pytest
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from pictures import draw, index_entry, one_sentence, released_tests
from test_cli import complaint, iadr1

from iadr1_lib.answer import QUESTION, build_answer, build_solution
from iadr1_lib.data import SIX, Table, check_health, health_table, load_hub, paper_benchmarks, read_snapshot
from iadr1_lib.evaluation import MEAN
from iadr1_lib.reporting import beside_table_one
from iadr1_lib.reporting.claims import PAPER_SETS, paper_table
from iadr1_lib.runs import base_model_dir

NAME = "yanhui01/Expert-AD"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pa_sft(images: str | list[str], answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": answer}]
    return {"images": images, "messages": turns}


def sc_grpo(number: int, image: str, solution: str) -> dict[str, Any]:
    return {"id": number, "image": image, "problem": QUESTION, "solution": solution}


@pytest.fixture
def expert_ad(tmp_path: Path) -> Path:
    """Five records on four pictures."""
    root = tmp_path / "Expert-AD"
    for name in ("bolt/good/0", "bolt/bad/1", "images/nut/2", "images/nut/3"):
        draw(root / f"{name}.png")
    defect = build_answer("It is bent.", "yes", "upper-left corner", "Deformation")
    records = [
        pa_sft("bolt/good/0.png", build_answer("All is well.", "no")),
        pa_sft("bolt/bad/1.png", defect),
        pa_sft(["bolt/good/0.png", "images/nut/2.png"], defect),
    ]
    write(root / "pa_sft.json", records)
    solutions = [build_solution("no"), build_solution("yes", "center", "stain")]
    write(root / "sc_grpo.json", [sc_grpo(n, "images/nut/3.png", text) for n, text in enumerate(solutions)])
    return root


@pytest.fixture
def hub(expert_ad: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that holds the data set at two commits; returns the list of what was downloaded."""
    fetched: list[str] = []

    def info(_: object, name: str, revision: str) -> SimpleNamespace:
        response = httpx.Response(404, request=httpx.Request("GET", "http://h"))
        if name.startswith("gated/"):
            raise GatedRepoError("403", response=response)
        if name != NAME:
            raise RepositoryNotFoundError("404", response=response)
        return SimpleNamespace(sha=COMMITS.get(revision, revision))

    def download(name: str, *, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (name, repo_type) == (NAME, "dataset") and len(revision) == 40
        fetched.append(revision)
        shutil.copytree(expert_ad, local_dir, dirs_exist_ok=True)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return fetched


def go_offline(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


def test_records_of_both_formats(expert_ad: Path) -> None:
    table = read_snapshot(expert_ad)
    facts = [(s.label, s.type, s.location, s.category, s.source) for s in table]
    assert facts == [
        ("no", None, None, "bolt", "pa-sft"),
        ("yes", "deformation", "top left", "bolt", "pa-sft"),
        ("yes", "deformation", "top left", "nut", "pa-sft"),
        ("no", None, None, "nut", "sc-grpo"),
        ("yes", "stain", "center", "nut", "sc-grpo"),
    ]
    assert {(s.benchmark, s.split, s.mask) for s in table} == {("Expert-AD", "train", None)}
    assert table[2].image == str(expert_ad / "images/nut/2.png")  # reference, query
    assert table.passed_over == [] and all(Path(s.image).is_file() for s in table)


def test_missing_pictures_and_broken_records_are_listed(expert_ad: Path) -> None:
    good = build_answer("All is well.", "no")
    draw(expert_ad.parent / "secret.png")
    (expert_ad / "link.png").symlink_to(expert_ad.parent / "secret.png")
    odd = [
        *(pa_sft(path, good) for path in ("bolt/gone.png", "../secret.png", "link.png", "/etc/hostname")),
        pa_sft("bolt/good/0.png", "<answer>maybe</answer>"),
        pa_sft([], good),
        pa_sft("bolt/good/0.png", good) | {"messages": []},
        {"images": "a.png"},
        "text",
        None,
        sc_grpo(0, "bolt/good/0.png", build_solution("no")) | {"solution": 7},
        sc_grpo(0, "bolt/good/0.png", build_solution("no")) | {"image": ["a", "b"]},
    ]
    write(expert_ad / "odd.json", odd)
    write(expert_ad / "dataset_info.json", {"splits": 1})
    table = read_snapshot(expert_ad)
    assert len(table) == 6  # the five, and the one whose picture is gone
    counted = health_table(check_health(table)).set_index("kind")["count"].to_dict()
    assert (counted["outside"], counted["broken row"], counted["unreadable"]) == (3, 9, 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
        ([1, 2], "none of the released formats"),
        ([{"image": "a.png", "caption": "x"}], "none of the released formats"),
        ({"train": []}, "none of the released formats"),
        ({"a.png": {"image_path": "a.png", "conversation": []}}, "entry a.png"),
        ([pa_sft("a.png", "Fine.")], "record 1"),
    ],
)
def test_another_shape_is_told_in_one_sentence(tmp_path: Path, content: Any, complaint: str) -> None:
    write(tmp_path / "records.json", content)
    one_sentence(lambda: read_snapshot(tmp_path), str(tmp_path), complaint)


def test_folders_without_records(tmp_path: Path) -> None:
    one_sentence(lambda: read_snapshot(tmp_path / "nowhere"), "no folder")
    one_sentence(lambda: read_snapshot(tmp_path), "copy is whole")


@pytest.mark.parametrize(
    ("index", "folder"), [("test_X.json", ""), ("index/test_X.json", ""), ("data/test_X.json", "data")]
)
def test_industrial_test_holds_index_files(tmp_path: Path, index: str, folder: str) -> None:
    """Paths start from the data set's folder or from the index's; two indexes are read as one table."""
    for data_set in ("DAGM", "SDD"):
        names = {f"{data_set}/Class1/good/0.png": "B", f"{data_set}/Class1/defect/1.png": "A"}
        for name in names:
            draw(tmp_path / folder / name)
        content = {name: index_entry(name, answer) for name, answer in names.items()}
        write(tmp_path / index.replace("X", data_set), content)
    table = read_snapshot(tmp_path)
    assert [(s.benchmark, s.category, s.label, s.split) for s in table] == [
        (name, "Class1", label, "test") for name in ("DAGM", "SDD") for label in ("no", "yes")
    ]
    assert {problem.kind for problem in check_health(table)} == {"defect without mask"}


def test_the_commit_is_recorded_and_used_offline(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_hub(NAME, cache=tmp_path / "hub")
    note = tmp_path / "hub" / "yanhui01--Expert-AD" / "revision.json"
    main = COMMITS["main"]
    assert json.loads(note.read_text()) == {"dataset": NAME, "revision": main, "asked": {"main": main}}
    assert len(first) == 5 and isinstance(first, Table) and COMMITS["main"] in first[0].image
    assert {sample.benchmark for sample in first} == {"Expert-AD"}
    monkeypatch.setitem(COMMITS, "main", "c" * 40)  # the data set moves on
    assert load_hub(NAME, cache=tmp_path / "hub") == first and hub == ["a" * 40]
    other = load_hub(NAME, "v1", cache=tmp_path / "hub")
    assert hub == ["a" * 40, "b" * 40] and "b" * 40 in other[0].image
    go_offline(monkeypatch, OfflineModeIsEnabled("offline"))
    assert load_hub(NAME, cache=tmp_path / "hub") == first
    for revision in ("v1", "b" * 40):
        assert load_hub(NAME, revision, cache=tmp_path / "hub") == other
    one_sentence(lambda: load_hub(NAME, "v2", cache=tmp_path / "hub"), "check the network")


def test_a_first_download_of_another_revision_is_the_recorded_one(hub: list[str], tmp_path: Path) -> None:
    chosen = load_hub(NAME, "v1", cache=tmp_path)
    assert load_hub(NAME, cache=tmp_path) == chosen and hub == ["b" * 40]
    shutil.rmtree(tmp_path / "yanhui01--Expert-AD" / ("b" * 40))
    assert load_hub(NAME, cache=tmp_path) == chosen and hub == ["b" * 40] * 2  # lost files come again, the same ones


def test_a_download_that_broke_off_is_not_taken_for_whole(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(*_: object, local_dir: Path, **__: object) -> None:
        (local_dir / "bolt").mkdir(parents=True)
        raise httpx.ReadTimeout("the read timed out")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", half)
        one_sentence(lambda: load_hub(NAME, cache=tmp_path), "timed out", "call again")
    assert len(load_hub(NAME, cache=tmp_path)) == 5 and hub == ["a" * 40]


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("[Errno -2] Name or service not known"),
        OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled.\nTo disable it, unset HF_HUB_OFFLINE."),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    go_offline(monkeypatch, error)
    one_sentence(lambda: load_hub(NAME, cache=tmp_path), NAME, "check the network", "read_snapshot")
    assert not list(tmp_path.rglob("*"))


def test_unknown_names_full_disks_and_broken_notes(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_sentence(lambda: load_hub("nobody/nothing", cache=tmp_path), "no data set nobody/nothing")
    page = "https://huggingface.co/datasets/gated/set"
    one_sentence(lambda: load_hub("gated/set", cache=tmp_path), "ask for access", page, "iadr1 expert-ad")
    write(tmp_path / "yanhui01--Expert-AD" / "revision.json", [1])
    one_sentence(lambda: load_hub(NAME, cache=tmp_path), "revision.json", "delete it")
    go_offline(monkeypatch, OSError(28, "No space left on device"))
    one_sentence(lambda: load_hub(NAME, cache=tmp_path / "new"), "full")


# ---------------------------------------------------------------------------------------------- the six test sets

NAMES = ("DS-MVTec", "VisA", "MPDD", "DAGM", "DTD", "SDD")  # of the released index files


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return released_tests(tmp_path / "Industrial_test", [*NAMES, "BTAD"])


def test_a_copy_has_the_six_by_the_paper_s_names(copy: Path) -> None:
    table = paper_benchmarks(copy)
    assert {sample.benchmark for sample in table} == set(SIX) and len(table) == 24
    of_set = {sample.benchmark: Path(sample.image).relative_to(copy).parts[0] for sample in table}
    assert [of_set[name] for name in SIX] == list(NAMES)
    for name in ("DAGM", "SDD"):
        (copy / f"test_{name}_format.json").unlink()
    one_sentence(lambda: paper_benchmarks(copy), copy, "lacks DAGM, KolektorSDD")


def test_evaluate_asks_all_six_and_prints_table_1(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    words = ("evaluate", "--model", base_model_dir(), "--benchmarks", "all", "--out", out)
    result = iadr1(*words, "--data", copy, "--prompt", "yes-no", "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.with_suffix(".predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and {row["benchmark"] for row in rows} == set(SIX)
    names = {row["name"] for row in json.loads(out.read_text())["rows"]}
    for name in (*SIX, MEAN):
        assert f"Industrial_test/balanced_accuracy/{name}" in names
    assert "24 pictures" in result.stdout
    lines = [line for line in result.stdout.partition("Table 1")[2].splitlines() if "│" in line]
    (own,) = [line for line in lines if "ours" in line]
    assert base_model_dir().name in own and sum("iad-r1" in line for line in lines) == 4
    (copy / "test_VisA_format.json").unlink()
    before = out.read_bytes()
    assert "lacks VisA" in complaint(iadr1(*words, "--data", copy)) and out.read_bytes() == before


def test_without_a_copy_the_hub_is_asked_and_without_either_it_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("iadr1_lib.data.hub.project_root", lambda: tmp_path)
    go_offline(monkeypatch, ConnectionResetError(104, "Connection reset by peer"))
    words = ("evaluate", "--model", base_model_dir())
    assert "yanhui01/Industrial_test" in complaint(iadr1(*words, "--benchmarks", "all"))
    told = complaint(iadr1(*words), 2)
    assert "--data" in told and "--benchmarks" in told
    assert iadr1(*words, "--benchmarks", "some").exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("average", [20.0, 70.04, 99.0])
def test_a_row_stands_in_table_1_by_its_average(average: float) -> None:
    values = {name: average + number for number, name in enumerate(SIX)} | {MEAN: average}
    rows = [{"benchmark": name, "metric": "balanced_accuracy", "value": value} for name, value in values.items()]
    rows += [{"benchmark": name, "metric": "location", "value": 1.0} for name in SIX]
    table, paper = beside_table_one(pd.DataFrame(rows), "runs/x/model"), paper_table(1)
    assert len(table) == len(paper) + 1
    assert table["average"].is_monotonic_decreasing
    place = table.index[table["model"] == "runs/x/model"].item()
    assert place == (paper["average"] > average).sum()
    assert not table.duplicated(["group", "model", "parameters"]).any()
    assert table.loc[place, PAPER_SETS].tolist() == [round(values[name], 1) for name in SIX]
