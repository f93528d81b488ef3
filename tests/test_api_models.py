"""Evaluating models behind an API, against a local server that answers like the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_server import ApiServer, Seen, Step, openai_reply
from PIL import Image
from typer.testing import CliRunner

from iadr1_lib.cli.app import app
from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import PREDICTION_KEYS, PROMPTS, agreement, read_predictions, score
from iadr1_lib.records import Sample
from iadr1_lib.remote import Remote, endpoint_named, predict_remote

NAMES = {"anthropic": "claude-sonnet-4", "openai": "gpt-4.1"}
Make = Callable[..., Remote]


@pytest.fixture
def server(server: ApiServer) -> ApiServer:
    server.answer = lambda number, seen: judge(seen)
    return server


def judge(seen: Seen) -> Step:
    """Yes to pictures with a black pixel, No to the others."""
    return seen.reply("Yes." if np.asarray(seen.picture).min() == 0 else "No.")


@pytest.fixture
def make(server: ApiServer, tmp_path: Path) -> Make:
    """Make a Remote for a name of the paper's table that asks the local server; all of one test share the replies."""

    def remote(name: str = "gpt-4.1", cost_cap: float | None = None, **settings: Any) -> Remote:
        endpoint = endpoint_named(name)
        assert endpoint
        return server.connect(endpoint, tmp_path / "replies", cost_cap, **{"retries": 1, "concurrency": 1, **settings})

    return remote


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Twelve pictures, each with pixels of its own, every second one with a dark corner."""
    return [draw(tmp_path / f"{number:02}.png", number) for number in range(12)]


def draw(path: Path, number: int) -> Sample:
    label: Any = "yes" if number % 2 else "no"
    pixels = np.random.default_rng(number).integers(100, 256, (20, 20, 3), dtype=np.uint8)
    pixels[:4, :4] = 0 if label == "yes" else 255
    Image.fromarray(pixels).save(path)
    truth = ("scratch", "top left") if label == "yes" else (None, None)
    return Sample(str(path), label, None, *truth, "bolt", "parts", "test", "drawn")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values_of(path: Path) -> dict[str, float]:
    table = score(read_predictions(path))
    return dict(table.loc[table["benchmark"] == "parts", ["metric", "value"]].to_numpy().tolist())


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "provider", "model", "address", "priced"),
    [
        ("gpt-4.1", "openai", "gpt-4.1", None, True),
        ("gpt-4o", "openai", "gpt-4o", None, True),
        ("gpt-6-sol", "openai", "gpt-6-sol", None, True),
        ("claude-sonnet-4", "anthropic", "claude-sonnet-4-20250514", None, True),
        ("openai:org/m@http://localhost/v1", "openai", "org/m", "http://localhost/v1", False),
        ("anthropic:new-name", "anthropic", "new-name", None, False),
    ],
)
def test_names_of_models(
    tmp_path: Path, name: str, provider: str, model: str, address: str | None, priced: bool
) -> None:
    endpoint = endpoint_named(name)
    assert endpoint and (endpoint.provider, endpoint.model, endpoint.base_url) == (provider, model, address)
    assert bool(Remote(endpoint, tmp_path).spent.price) == priced


def test_other_names_and_those_of_folders_are_no_apis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt-4o").mkdir()
    for name in ("runs/mini-s0/sc_grpo/model", "m", "./gpt-4.1/x", "gpt-4.1/model", "acme:x", ".", "gpt-4o"):
        assert endpoint_named(name) is None


# ------------------------------------------------------------------------------------------------- asking


@pytest.mark.parametrize("provider", NAMES)
def test_rows_are_those_of_a_model_in_a_folder(
    server: ApiServer, make: Make, samples: list[Sample], tmp_path: Path, provider: str
) -> None:
    Image.new("RGB", (1024, 700), "white").save(samples[0].image)
    out = predict_remote(make(NAMES[provider]), samples, tmp_path / "new" / "p.jsonl", seed=3, protocol="strict")
    assert server.seen[0].picture.size == (512, 350), "as the released scripts send pictures"
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [sample.image for sample in samples]
    assert all(tuple(row) == PREDICTION_KEYS for row in rows)
    how = {(row["prompt"], row["protocol"], row["seed"], row["p_yes"]) for row in rows}
    assert how == {("yes-no", "strict", 3, None)}
    assert {row["model"].split("/")[0] for row in rows} == {provider}
    assert values_of(out)["balanced_accuracy"] == 100.0
    assert all((seen.body.get("max_tokens"), "temperature" in seen.body) == (600, False) for seen in server.seen)


def test_an_api_model_is_asked_in_the_words_of_the_prompt_mode(
    server: ApiServer, make: Make, samples: list[Sample], tmp_path: Path
) -> None:
    for prompt in PROMPTS:
        predict_remote(make(), samples[:1], tmp_path / f"{prompt}.jsonl", prompt=prompt)
    assert [(seen.body["messages"][0]["role"], seen.text) for seen in server.seen] == [
        ("user", words) for words in PROMPTS.values()
    ]
    with pytest.raises(UserError, match="bare, yes-no"):
        predict_remote(make(), samples[:1], tmp_path / "q.jsonl", prompt="polite")


# ------------------------------------------------------------------------------------------------- cost


def test_costs_are_printed_before_and_after_and_a_second_evaluation_has_none(
    server: ApiServer, make: Make, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"up to \$0.06.* cap of \$0.05, so nothing was asked: raise the cap"):
        predict_remote(make(cost_cap=0.05), samples, tmp_path / "p.jsonl")
    assert not server.seen
    remote, again = make(cost_cap=1.0), tmp_path / "again.jsonl"
    first = predict_remote(remote, samples, tmp_path / "p.jsonl")
    before, *_, after = capsys.readouterr().out.splitlines()
    assert "at most: 12 requests" in before and "$" in before
    assert f"paid: {remote.spent}" in after and "12000 tokens in" in after
    assert predict_remote(make(cost_cap=0.0), samples, again).read_bytes() == first.read_bytes()
    assert len(server.seen) == 12
    predict_remote(make(), samples, tmp_path / "r.jsonl", seed=1)
    assert len(server.seen) == 24, "another seed is asked anew"


def test_a_run_that_was_stopped_by_the_cap_goes_on_and_pays_nothing_twice(
    server: ApiServer, make: Make, samples: list[Sample], tmp_path: Path
) -> None:
    """A server that counts more tokens than were guessed: 0.014 a reply, so that 0.08 is reached after six or less."""
    server.answer = lambda number, seen: openai_reply("No.", tokens=(7000, 0))
    out = tmp_path / "p.jsonl"
    with pytest.raises(UserError, match=r"of 12 pictures have no answer yet .*cap of \$0.08.*same command goes on"):
        predict_remote(make(cost_cap=0.08), samples, out)
    sent = len(server.seen)
    assert 4 <= sent <= 6 and len(rows_of(out)) == sent
    with out.open("a") as file:
        file.write('{"image": "half a li')  # as a killed run leaves it
    for path in (out, tmp_path / "q.jsonl"):
        predict_remote(make(cost_cap=1.0), samples, path)
        assert [row["image"] for row in rows_of(path)] == [sample.image for sample in samples]
    assert len(server.seen) == 12


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_refusals_cut_and_empty_replies_count_as_they_are(
    server: ApiServer, make: Make, samples: list[Sample], tmp_path: Path
) -> None:
    refusals = [openai_reply(None, refusal="No, I cannot help."), openai_reply("No, this", "content_filter")]
    steps = [*refusals, openai_reply("I look at", "length"), openai_reply("Yes, at", "length"), openai_reply("")]
    server.answer = lambda number, seen: steps[number] if number < len(steps) else judge(seen)
    out = predict_remote(make(), samples, tmp_path / "p.jsonl")
    rows = rows_of(out)[:6]
    assert [row["raw"] for row in rows] == ["No, I cannot help.", "No, this", "I look at", "Yes, at", "", "Yes."]
    assert [row.get("cut") for row in rows] == [None, None, True, True, None, None]
    assert [row.get("refused") for row in rows] == [True, True, *[None] * 4] and rows[0]["p_yes"] is None
    values = values_of(out)
    assert (values["unparsed"], values["refused"], values["cut"], values["tn"]) == (4, 2, 2, 3)
    assert len(agreement(read_predictions(out)))
    predict_remote(make(), samples, out)
    assert len(server.seen) == 12, "a refusal is not asked again"


def test_a_server_that_dies_is_not_asked_about_every_picture(server: ApiServer, make: Make, tmp_path: Path) -> None:
    many = [draw(tmp_path / f"{number:02}.png", number) for number in range(36)]
    server.answer = lambda number, seen: judge(seen) if number < 3 else Step(drop=True)
    out = tmp_path / "p.jsonl"
    with pytest.raises(UserError, match="33 of 36 pictures have no answer yet .*no connection.*: the others are in"):
        predict_remote(make(concurrency=3), many, out)
    assert len(rows_of(out)) == 3 and len(server.seen) < 30
    server.answer = lambda number, seen: judge(seen)
    before = len(server.seen)
    predict_remote(make(), many, out)
    assert len(rows_of(out)) == 36 and len(server.seen) == before + 33


# ------------------------------------------------------------------------------------------------- the command


def evaluate(*words: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *(str(word) for word in words)])


def test_evaluate_asks_a_server(
    server: ApiServer, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    out = tmp_path / "made" / "result.json"
    name = f"openai:qwen@{server.url}/v1"
    words = ("--model", name, "--data", parts, "--out", out, "--concurrency", 2, "--key-variable", "MY_KEY")
    for _ in range(2):  # made anew from the kept replies
        result = evaluate(*words, "--requests-per-minute", 6000, "--max-new-tokens", 30)
        assert result.exit_code == 0, result.output
    assert len(server.seen) == 8 and server.seen[0].body["max_tokens"] == 30
    assert "Bearer secret" in str(server.seen[0].headers)
    saved = json.loads(out.read_text())
    assert {row["value"] for row in saved["rows"] if "balanced_accuracy" in row["name"]} == {100.0}
    assert saved["provenance"]["parameters"]["model"] == name
    assert saved["provenance"]["parameters"]["prompt"] == "yes-no"
    server.answer = lambda number, seen: openai_reply(None, refusal="No.") if number < 10 else judge(seen)
    result = evaluate(*words, "--replies", tmp_path / "empty")
    assert "at most: 8 requests" in result.output and "2 pictures were refused" in result.output


def test_evaluate_tells_what_is_missing_in_one_line(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for more, told in (((), "OPENAI_API_KEY"), (("--cost-cap", 0.0001), "nothing was asked")):
        result = evaluate("--model", "gpt-4.1", "--data", parts, "--out", tmp_path / "r.json", *more)
        assert result.exit_code == 1 and told in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "r.json").exists()


def test_expert_ad_says_the_highest_cost_and_keeps_to_pace_and_folder(
    server: ApiServer, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server.answer = lambda number, seen: seen.reply("Too short to be a record.")
    words = ["expert-ad", "--data", parts, "--out", tmp_path / "set", "--teacher", "api", "--model", "m", "--tries", 2]
    words += ["--provider", "openai", "--base-url", f"{server.url}/v1", "--key-variable", "MY_KEY", "--workers", 1]
    words += ["--concurrency", 1, "--requests-per-minute", 60_000, "--replies", tmp_path / "kept", "--no-parquet"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert "no record passed" in result.stderr
    drawn = len({seen.content[0]["image_url"]["url"] for seen in server.seen})
    assert f"at most, without kept replies: {2 * drawn} requests" in result.stdout and drawn
    assert server.most_at_once == 1 and "Bearer secret" in str(server.seen[0].headers)
    assert len(rows_of(tmp_path / "kept" / "replies.jsonl")) == len(server.seen)
