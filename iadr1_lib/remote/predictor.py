"""Models behind an API, evaluated as those in folders are: the same samples in, the same predictions.jsonl out.

    endpoint = endpoint_named("gpt-4.1")                      # or "openai:NAME@http://localhost:8000/v1"
    remote = Remote(endpoint, "runs/replies", cost_cap=2.0)
    predict_remote(remote, samples, Path("predictions.jsonl"))

Keys come from the environment (ANTHROPIC_API_KEY, OPENAI_API_KEY). torch is not needed.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import PROMPTS, finished_images, prediction_row
from iadr1_lib.records import Sample
from iadr1_lib.remote.client import Endpoint, Remote, Reply, Request

MAX_SIDE = 512  # pixels of the longer side, as the paper's released scripts send pictures to commercial models
MAX_TOKENS = 600  # as there
TOP_LOGPROBS = 20  # the most that OpenAI and vLLM give
SILENCE = 5  # pictures in a row without a reply, retries included: the server is gone
EVERY = 20  # pictures between two lines of progress

# Names of the paper's Table 1 that are not the provider's.
ALIASES = {"claude-sonnet-4": "claude-sonnet-4-20250514"}
_PROVIDER_OF = (("anthropic", re.compile(r"claude-")), ("openai", re.compile(r"gpt-|chatgpt-|o\d")))
_FULL_NAME = re.compile(r"(anthropic|openai):([^@]+?)(?:@(https?://\S+))?")
_TELLS_LOGPROBS = re.compile(r"gpt-4")  # OpenAI's later models refuse the request if asked for them


def endpoint_named(name: str, logprobs: bool | None = None, **settings: Any) -> Endpoint | None:
    """The endpoint that a model's name stands for; None if it is no API's name, or a folder of that name is there.

    Args:
        name: a name of Anthropic's or OpenAI's, such as "gpt-4.1" or "claude-sonnet-4"; with the provider before it
            where that is not plain, "openai:NAME"; with an address for another server, "openai:NAME@http://host/v1".
        logprobs: ask for the tokens' log-probabilities, which give P(Yes); None: where servers are known to give them
            (OpenAI's gpt-4 family, other OpenAI-compatible servers). Anthropic gives none.
        settings: further attributes of `Endpoint`.

    Raises:
        UserError: as `Endpoint`, or log-probabilities are asked of Anthropic.
    """
    if Path(name).exists():
        return None
    full = _FULL_NAME.fullmatch(name)
    provider: Any
    if full:
        provider, model, address = full.groups()
    else:
        provider = next((one for one, pattern in _PROVIDER_OF if pattern.match(name) and "/" not in name), None)
        model, address = name, None
    if provider is None:
        return None
    if logprobs and provider == "anthropic":
        raise UserError(f"Anthropic gives no log-probabilities: ask {name} without them")
    if logprobs is None:
        logprobs = provider == "openai" and (address is not None or bool(_TELLS_LOGPROBS.match(model)))
    extra = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}
    usual = {"max_tokens": MAX_TOKENS, "extra": extra}
    return Endpoint(provider, ALIASES.get(model, model), address, **{**usual, **settings})


def request(sample: Sample, prompt: str = "yes-no", seed: int = 0) -> Request:
    """What is sent about a sample, in the words that a model in a folder is asked with under the same prompt mode.

    Another seed is asked anew, since these models do not answer greedily.

    Raises:
        UserError: an unknown prompt mode.
    """
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt mode {prompt!r}: choose one of {', '.join(PROMPTS)}")
    return Request("", PROMPTS[prompt], (Path(sample.image),), attempt=seed, max_side=MAX_SIDE)


def predict_remote(
    remote: Remote,
    samples: Sequence[Sample],
    out: Path,
    *,
    prompt: str = "yes-no",
    protocol: str = "fair",
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Ask about every sample and append to `out` (predictions.jsonl); pictures already there are not asked about again.

    The highest possible cost is printed before, and what was paid after. Rows are those of `inference.predict`, model
    being provider and name; p_yes is None without log-probabilities. A refusal has its words (or the server's) as raw
    and one more key, refused: true. A reply cut off at `max_tokens` counts as far as it goes and has the key cut: true.

    Raises:
        UserError: the cost could exceed the cap (nothing is asked then), the cap was reached, pictures got no reply,
            and whatever `Remote.ask` raises. What was answered is in `out`, and the same call goes on from there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    name = remote.endpoint.name
    origin = {"prompt": prompt, "protocol": protocol, "model": name, "seed": seed}
    done = finished_images(samples, out, origin)
    todo = [sample for sample in samples if sample.image not in done]
    if not todo:
        return out
    requests = [request(sample, prompt, seed) for sample in todo]
    quoted = remote.quote(requests)
    if not quiet:
        print(f"{name}, at most: {quoted}", flush=True)
    try:
        _ask(remote, todo, requests, out, origin, quiet)
    finally:
        if not quiet:
            print(f"{name}, paid: {remote.spent}", flush=True)
    return out


def _ask(
    remote: Remote, samples: list[Sample], requests: list[Request], out: Path, asked: dict[str, Any], quiet: bool
) -> None:
    """Write a row per answer as soon as it and those before it are there; raises UserError if any is missing."""
    missing: list[Reply] = []
    silence = answered = 0
    start = time.monotonic()
    replies = remote.ask(requests)
    with out.open("a", encoding="utf-8") as file:
        for sample, reply in zip(samples, replies, strict=False):  # given up early, replies are fewer
            if reply.answered:
                file.write(json.dumps(_row(sample, reply, asked)) + "\n")
                file.flush()
                answered += 1
                silence = 0
            else:
                missing.append(reply)
                silence += reply.status == "failed"
            if silence == SILENCE:
                break
            if not quiet and (answered and answered % EVERY == 0):
                rate = 60 * answered / (time.monotonic() - start)
                print(f"answered {answered} of {len(samples)} pictures, {rate:.0f} a minute", flush=True)
    replies.close()  # type: ignore[attr-defined]  # waits for requests under way, whose replies are kept
    if missing:
        raise UserError(
            f"{len(samples) - answered} of {len(samples)} pictures have no answer yet ({missing[-1].message}): "
            f"the others are in {out}, and the same command goes on from there"
        )


def _row(sample: Sample, reply: Reply, asked: dict[str, Any]) -> dict[str, Any]:
    refused = reply.status == "refused"
    raw = reply.text or (reply.message if refused else "")
    told = None if refused else p_yes(reply.logprobs)
    row = prediction_row(sample, raw, told, asked, cut=reply.status == "truncated")
    return row | {"refused": True} if refused else row


def p_yes(logprobs: list[dict[str, Any]] | None) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) where the answer's word is chosen; None if that cannot be told.

    Args:
        logprobs: as `Reply.logprobs`. The word after the last `<answer>` counts, without a tag the first yes or no.
    """
    tokens = [token["token"] for token in logprobs or []]
    text = "".join(tokens)
    after = text.rfind("<answer>") + len("<answer>") if "<answer>" in text else 0
    ends = 0
    for place, token in enumerate(tokens):
        ends += len(token)
        follower = tokens[place + 1] if place + 1 < len(tokens) else ""
        if ends > after and _word(token) and not follower[:1].isalpha():  # "No" of "Nothing" is no word
            return _share_of_yes((logprobs or [])[place]["top"])
    return None


def _share_of_yes(top: dict[str, float]) -> float | None:
    chances = {
        word: sum(math.exp(value) for token, value in top.items() if _word(token) == word) for word in ("yes", "no")
    }
    total = chances["yes"] + chances["no"]
    return chances["yes"] / total if total > 0 else None


def _word(token: str) -> str | None:
    """The word yes or no that a token is, with marks and blanks around it (">Yes"), else None."""
    word = re.sub(r"[\W_]", "", token).lower()
    return word if word in ("yes", "no") else None
