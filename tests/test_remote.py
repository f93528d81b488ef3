"""Calls to servers, against a local one that answers like the real ones."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from api_server import ApiServer, Seen, Step, anthropic_reply, error, openai_reply
from PIL import Image

from iadr1_lib.errors import UserError
from iadr1_lib.remote import Endpoint, Remote, Reply, Request, client, encode_image, providers

MODELS: dict[Any, str] = {"anthropic": "claude-opus-5", "openai": "gpt-6-sol"}
Make = Callable[..., Remote]


@pytest.fixture
def make(server: ApiServer, tmp_path: Path) -> Make:
    """Make a Remote that asks the local server; all of one test share the cache."""

    def remote(provider: Any = "anthropic", cost_cap: float | None = None, **settings: Any) -> Remote:
        return server.connect(Endpoint(provider, MODELS[provider]), tmp_path / "replies", cost_cap, **settings)

    return remote


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def questions(count: int) -> list[Request]:
    return [Request("be brief", f"question {number}") for number in range(count)]


def one(remote: Remote, request: Request | None = None) -> Reply:
    (reply,) = remote.ask([request or Request("be brief", "hello")])
    return reply


def slowly(server: ApiServer, seconds: float) -> None:
    server.answer = lambda number, seen: Step(server.echo(seen).body, delay=seconds)


# ------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(("provider", "path"), [("anthropic", "/v1/messages"), ("openai", "/v1/chat/completions")])
def test_a_request_holds_key_system_image_and_text(
    server: ApiServer, make: Make, picture: Path, provider: str, path: str
) -> None:
    reply = one(make(provider), Request("be brief", "what is it?", (picture,)))
    assert reply == Reply("echo what is it?", "ok", "", 1000, 100)
    (seen,) = server.seen
    assert seen.path == path and "secret" in str(seen.headers)
    assert seen.body["max_tokens"] == 4000
    system = seen.body.get("system") or seen.body["messages"][0]["content"]
    assert system == "be brief" and "image/png" in str(seen.content[0])
    assert np.array_equal(np.asarray(seen.picture), np.asarray(Image.open(picture)))


def test_the_providers_own_key_goes_to_its_own_address_alone(
    server: ApiServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, "precious")
    one(make(key_variable=None))
    assert "precious" not in str(server.seen[0].headers)
    provider = providers.OpenAIProvider(Endpoint("openai", "gpt-6-sol", max_tokens=7))
    assert provider.client.api_key == "precious"
    sent: dict[str, Any] = {}
    monkeypatch.setattr(provider.client.chat.completions, "create", lambda **body: sent.update(body))
    with pytest.raises(providers.TransientError):  # None is no answer
        provider.ask(Request("", "hello"))
    assert sent["extra_body"] == {"max_completion_tokens": 7}, "the newer name of the limit"


@pytest.mark.parametrize(("size", "sent"), [((400, 100), (200, 50)), ((60, 40), (60, 40)), ((4000, 1), (200, 1))])
def test_large_images_are_scaled_down_and_metadata_stays_at_home(
    tmp_path: Path, size: tuple[int, int], sent: tuple[int, int]
) -> None:
    path, secret = tmp_path / "a.jpg", "the mask lies at the left"
    exif = Image.Exif()
    exif[0x010E] = secret
    Image.new("RGB", size, "red").save(path, exif=exif, comment=secret)
    assert path.read_bytes().count(b"mask") == 2
    data = base64.b64decode(encode_image(path, 200))
    assert Image.open(io.BytesIO(data)).size == sent and b"mask" not in data


# ------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("provider", "step", "status", "message"),
    [
        ("anthropic", anthropic_reply("", "refusal"), "refused", "I would rather not."),
        ("anthropic", anthropic_reply("cut", "max_tokens"), "truncated", "cut off (max_tokens)"),
        ("anthropic", anthropic_reply(""), "failed", "the reply holds no text"),
        ("openai", openai_reply(None, refusal="I would rather not."), "refused", "I would rather not."),
        ("openai", openai_reply("half", "content_filter"), "refused", "content filter"),
        ("openai", error(400, "against the rules", "content_policy_violation"), "refused", "against the rules"),
        ("openai", openai_reply("cut", "length"), "truncated", "cut off (max_tokens)"),
        ("openai", openai_reply(None), "failed", "the reply holds no text"),
    ],
)
def test_what_is_no_plain_reply_is_recorded_as_such_and_kept(
    server: ApiServer, make: Make, provider: str, step: Step, status: str, message: str
) -> None:
    server.script(step)
    reply, again = one(make(provider)), one(make(provider))
    assert reply.status == status and message in reply.message
    assert again.cached and again.message == reply.message and len(server.seen) == 1


@pytest.mark.parametrize("provider", MODELS)
def test_transient_failures_are_tried_again(server: ApiServer, make: Make, provider: str) -> None:
    server.script(error(529, "overloaded"), error(408), Step(drop=True), error(429, retry_after="0.02"))
    assert one(make(provider)).text == "echo hello"
    assert len(server.seen) == 5
    server.answer = lambda number, seen: error(429, "come tomorrow", retry_after="7200")
    assert "come tomorrow" in one(make(provider), Request("", "another")).message
    assert len(server.seen) == 6, "no run sleeps for two hours"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (error(500, "down"), "status 500.*down"),
        (Step(delay=0.7), "no answer within 0.5 seconds"),
        (Step(drop=True), "no connection to"),
        (Step(b'{"cut off'), "cannot be read"),
        (Step({"id": "msg_1"}), "cannot be read"),
        (Step(b"<html>gateway</html>", headers={"content-type": "text/html"}), "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failure_that_stays_is_recorded_but_not_kept(
    server: ApiServer, make: Make, fault: Step, message: str
) -> None:
    server.answer = lambda number, seen: fault if number == 1 else server.echo(seen)
    remote = make("openai", retries=0, timeout=0.5)
    one(remote, Request("", "the server is there"))
    reply = one(remote)
    assert (reply.text, reply.status, reply.answered) == (None, "failed", False)
    assert re.search(f"gave no reply: .*{message}", reply.message)
    assert one(make("openai")).status == "ok", "the next run tries again"


@pytest.mark.parametrize(
    ("provider", "fault"),
    [
        ("anthropic", error(401, "the reason")),
        ("openai", error(429, "the reason", "insufficient_quota")),
        ("openai", error(413, "the reason")),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Step) else "",
)
def test_a_users_mistake_ends_the_run_with_one_sentence(
    server: ApiServer, make: Make, picture: Path, provider: str, fault: Step
) -> None:
    server.answer = lambda number, seen: fault
    with pytest.raises(UserError, match="rejects the request with .*picture.png .*reason.*: check key") as raised:
        one(make(provider, retries=0 if fault.status == 429 else 5), Request("", "hello", (picture,)))
    assert len(server.seen) == 1 and "\n" not in str(raised.value)


@pytest.mark.parametrize(("provider", "variable"), [("anthropic", "ANTHROPIC_API_KEY"), ("openai", "OPENAI_API_KEY")])
def test_a_missing_server_key_library_or_image_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Any, variable: str
) -> None:
    with pytest.raises(UserError, match=r"no connection to http://127.0.0.1:9.*: check base_url"):
        one(Remote(Endpoint(provider, "some-model", "http://127.0.0.1:9", retries=0), tmp_path))
    monkeypatch.delenv(variable, raising=False)
    remote = Remote(Endpoint(provider, "some-model"), tmp_path)
    with pytest.raises(UserError, match=f"no key for {provider}/.*: set the environment variable {variable}"):
        one(remote)
    monkeypatch.setitem(sys.modules, provider, None)
    with pytest.raises(UserError, match=rf"{provider} is not installed: pip install .*\[api\]"):
        one(remote)
    with pytest.raises(UserError, match="There is no picture"):
        one(remote, Request("", "hello", (tmp_path / "absent.png",)))


@pytest.mark.parametrize("setting", ["concurrency", "timeout", "requests_per_minute"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match="set it above 0"):
        Endpoint("openai", "m", **{setting: 0})


# ------------------------------------------------------------------------------------------- the cache


def test_a_reply_is_paid_for_once(server: ApiServer, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(make().ask(questions(5)))
    monkeypatch.delenv("TEST_KEY")
    monkeypatch.setitem(sys.modules, "anthropic", None)  # the cache needs neither key nor SDK
    again = make()
    second = list(again.ask(questions(5)))
    assert len(server.seen) == 5
    assert [reply.text for reply in first] == [reply.text for reply in second]
    assert all(reply.cached for reply in second) and not any(reply.cached for reply in first)
    assert (again.spent.requests, again.spent.cached, again.spent.dollars) == (0, 5, 0)


def test_whatever_changes_the_request_is_asked_anew(
    server: ApiServer, make: Make, picture: Path, tmp_path: Path
) -> None:
    base, other = Request("s", "t", (picture,)), tmp_path / "other.png"
    Image.new("RGB", (60, 40)).save(other)
    changes = [{"system": "S"}, {"text": "T"}, {"images": (other,)}, {"images": (picture, other)}]
    changes += [{"max_side": 20}, {"attempt": 1}]
    list(make().ask([base, *(replace(base, **change) for change in changes)]))
    for change in ({"model": "another"}, {"max_tokens": 5}, {"provider": "openai"}):
        one(make(**change), base)
    assert len(server.seen) == 10
    moved = picture.rename(tmp_path / "moved.png")
    assert one(make(timeout=3, concurrency=9, retries=1), replace(base, images=(moved,))).cached


def test_a_kept_reply_says_what_was_asked_and_a_line_cut_off_is_asked_again(make: Make, tmp_path: Path) -> None:
    list(make(concurrency=1).ask(questions(2)))
    kept = tmp_path / "replies" / "replies.jsonl"
    row = json.loads(kept.read_text().splitlines()[0])
    assert (row["asked"]["text"], row["reply"]["text"]) == ("question 0", "echo question 0")
    kept.write_text(kept.read_text()[:-20])
    for cached in ([True, False], [True, True]):
        assert [reply.cached for reply in make(concurrency=1).ask(questions(2))] == cached


def test_an_error_in_mid_run_keeps_what_was_paid(server: ApiServer, make: Make) -> None:
    def answer(number: int, seen: Seen) -> Step:
        return error(400, "no") if seen.text == "question 2" else Step(server.echo(seen).body, delay=0.2)

    server.answer = answer
    with pytest.raises(UserError, match="rejects the request"):
        list(make(concurrency=3).ask(questions(20)))
    before = len(server.seen)
    assert before < 12, "sending stops"
    assert [reply.cached for reply in make().ask(questions(2))] == [True, True], "the slow ones were waited for"
    assert len(server.seen) == before


@pytest.mark.parametrize(
    ("settings", "most"), [({"concurrency": 2}, 10), ({"concurrency": 1, "requests_per_minute": 1}, 1)]
)
def test_a_reader_who_stops_early_loses_nothing_and_waits_for_no_turn(
    server: ApiServer, make: Make, settings: dict[str, Any], most: int
) -> None:
    slowly(server, 0.05)
    replies = make(**settings).ask(questions(50))
    next(replies)
    replies.close()  # type: ignore[attr-defined]
    sent = len(server.seen)
    assert sent <= most
    assert sum(reply.cached for reply in make().ask(questions(10))) == sent


# ------------------------------------------------------------------------------------------- pace and order


def test_requests_go_out_together_and_replies_keep_the_order(server: ApiServer, make: Make) -> None:
    server.answer = lambda number, seen: Step(server.echo(seen).body, delay=0.2 if number % 4 == 0 else 0.05)
    replies = list(make(concurrency=4).ask([*questions(20), *questions(4)]))
    assert [reply.text for reply in replies] == [f"echo question {number}" for number in (*range(20), *range(4))]
    assert server.most_at_once == 4 and len(server.seen) == 20


def test_a_reply_is_given_out_before_later_ones_are_there_and_few_are_held(server: ApiServer, make: Make) -> None:
    taken: list[Request] = []
    second = threading.Event()

    def endless() -> Iterator[Request]:
        for request in questions(40):
            taken.append(request)
            yield request

    server.answer = lambda number, seen: second.wait(10 * (seen.text == "question 1")) or server.echo(seen)
    replies = make(concurrency=2).ask(endless())
    assert next(replies).text == "echo question 0"
    second.set()
    assert max(len(taken) - done for done, _ in enumerate(replies, 1)) <= 2 * client.LOOK_AHEAD


def test_requests_are_spaced(server: ApiServer, make: Make) -> None:
    list(make(requests_per_minute=600, concurrency=4).ask(questions(6)))
    times = sorted(seen.time for seen in server.seen)
    assert times[-1] - times[0] > 0.45, "six at ten a second take half a second"
    assert min(later - sooner for sooner, later in itertools.pairwise(times)) > 0.02


# ------------------------------------------------------------------------------------------- cost


def test_cost_is_counted_and_the_estimate_is_above_it(make: Make, picture: Path) -> None:
    requests = [Request("be brief", f"question {number}", (picture,)) for number in range(4)]
    remote = make(max_tokens=1000)
    list(remote.ask(requests[:3]))
    assert str(remote.spent) == "3 requests (0 more from the cache), 3000 tokens in, 300 tokens out: $0.0225"
    estimate = remote.estimate([*requests, *questions(2)])
    assert (estimate.requests, estimate.cached, estimate.output_tokens) == (3, 3, 3000)
    assert estimate.dollars is not None and 3 * 1000 * 25 / 1e6 < estimate.dollars < 1


def test_an_unknown_count_costs_the_most_and_an_unknown_price_is_not_zero(server: ApiServer, make: Make) -> None:
    server.script(Step(dict(openai_reply("fine").body, usage=None)))
    remote = make("openai", max_tokens=1000, cost_cap=1.0)
    assert one(remote).input_tokens is None
    assert remote.spent.dollars is not None and remote.spent.dollars > 1000 * 10 / 1e6
    remote = make(model="house-made")
    one(remote)
    assert remote.spent.dollars is None and "cost not known" in str(remote.spent)
    assert remote.estimate(questions(2)).dollars is None
    with pytest.raises(UserError, match="price of anthropic/house-made is not known.*api_prices.yaml"):
        make(model="house-made", cost_cap=1.0)


@pytest.mark.parametrize("text", [None, "prices: [", "- a", "prices: {openai: {m: {input: 1}}}"])
def test_prices_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    (tmp_path / "data").mkdir()
    if text:
        (tmp_path / "data" / "api_prices.yaml").write_text(text)
    monkeypatch.setattr(client, "project_root", lambda: tmp_path)
    with pytest.raises(UserError, match="api_prices.yaml"):
        Remote(Endpoint("openai", "m"), tmp_path)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_cap_stops_the_sending_and_is_kept(server: ApiServer, make: Make, concurrency: int) -> None:
    """Each reply costs 0.0075; each may cost up to 0.0256, so six fit below 0.07: 6 x 0.0075 + 0.0256 > 0.07.

    Several at the same time each hold back their worst case, so fewer fit.
    """
    list(make(max_tokens=1000).ask(questions(20)[-1:]))
    before = len(server.seen)
    slowly(server, 0.01)
    remote = make(max_tokens=1000, concurrency=concurrency, cost_cap=0.07)
    replies = list(remote.ask(questions(20)))
    sent = [reply for reply in replies if reply.status == "ok" and not reply.cached]
    assert len(sent) == len(server.seen) - before <= 6 and len(sent) >= (6 if concurrency == 1 else 2)
    assert remote.spent.dollars is not None and remote.spent.dollars <= 0.07
    unsent = [reply for reply in replies if reply.status == "unsent"]
    assert len(unsent) == 19 - len(sent) and all(
        "the cost cap of $0.07 is reached" in reply.message for reply in unsent
    )
    assert replies[-1].cached, "what is there is given out all the same"
