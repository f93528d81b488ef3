"""Evaluate a model behind an API as one in a folder: samples come in, predictions.jsonl goes out.

    remote = Remote(endpoint_named("gpt-4.1"), "runs/replies", cost_cap=2.0)   # or "openai:NAME@http://localhost:8000/v1"
    predict_remote(remote, samples, Path("predictions.jsonl"))

Keys come from the environment (ANTHROPIC_API_KEY, OPENAI_API_KEY). torch is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from iadr1_lib.errors import UserError
from iadr1_lib.evaluation import PROMPTS, finished_images, prediction_row
from iadr1_lib.files import Journal
from iadr1_lib.records import Sample
from iadr1_lib.remote.client import Remote
from iadr1_lib.remote.providers import Endpoint, Reply, Request

MAX_SIDE = 512  # pixels of the longer side, as the paper's released scripts send pictures to commercial models
MAX_TOKENS = 600  # as there
MAX_FAILURES = 5  # pictures in a row without a reply, retries included: the server is gone
EVERY = 20  # pictures between two lines of progress
ALIASES = {"claude-sonnet-4": "claude-sonnet-4-20250514"}  # names of the paper's Table 1 that are not the provider's
PROVIDER_OF = {"anthropic": r"claude-[^/@]*", "openai": r"(gpt-|chatgpt-|o\d)[^/@]*"}  # names that tell their provider


def endpoint_named(name: str, **settings: Any) -> Endpoint | None:
    """The endpoint that a model's name stands for; None if it is no API's name, or a folder of that name is there.

    Args:
        name: a name of Anthropic's or OpenAI's, such as "gpt-4.1" or "claude-sonnet-4"; with the provider before it
            where that is not plain, "openai:NAME"; with an address for another server, "openai:NAME@http://host/v1".
        settings: further attributes of `Endpoint`.

    Raises:
        UserError: as `Endpoint`.
    """
    if Path(name).exists():
        return None
    prefix = next((f"{provider}:" for provider, pattern in PROVIDER_OF.items() if re.fullmatch(pattern, name)), "")
    match = re.fullmatch(r"(anthropic|openai):([^@]+?)(?:@(https?://\S+))?", prefix + name)
    if not match:
        return None
    provider, model, address = match.groups()
    options: dict[str, Any] = {"base_url": address, "max_tokens": MAX_TOKENS} | settings
    return Endpoint(provider, ALIASES.get(model, model), **options)  # type: ignore[arg-type]


def predict_remote(
    remote: Remote,
    samples: Sequence[Sample],
    out: Path,
    *,
    prompt: str = "yes-no",
    protocol: str = "fair",
    seed: int = 0,
) -> Path:
    """Ask about every sample and append to `out` (predictions.jsonl); pictures already there are not asked about again.

    The highest possible cost is printed before, and what was paid after. Rows are those of `prediction.predict`, model
    being provider and name; p_yes is None. A refusal has its words (or the server's) as raw and the key refused: true;
    a reply cut off at `max_tokens` counts as far as it goes and has the key cut: true. Another seed is asked anew:
    these models do not answer greedily.

    Raises:
        UserError: an unknown prompt mode; the cost could exceed the cap (nothing is asked then); the cap was reached;
            pictures got no reply; as `Remote.ask`. The same call goes on from what was answered.
    """
    if prompt not in PROMPTS:
        raise UserError(f"unknown prompt mode {prompt!r}: choose one of {', '.join(PROMPTS)}")
    name = remote.endpoint.name
    origin = {"prompt": prompt, "protocol": protocol, "model": name, "seed": seed}
    done = finished_images(samples, out, origin)
    todo = [sample for sample in samples if sample.image not in done]
    if not todo:
        return out
    images = [Path(sample.image) for sample in todo]
    requests = [Request("", PROMPTS[prompt], (image,), attempt=seed, max_side=MAX_SIDE) for image in images]
    most = remote.estimate(requests)
    if remote.cost_cap is not None and (most.dollars or 0.0) > remote.cost_cap - (remote.spent.dollars or 0.0):
        raise UserError(
            f"{name} may cost up to ${most.dollars:.4f} ({most.requests} requests), above the cost cap of "
            f"${remote.cost_cap:.2f}, so nothing was asked: raise the cap or ask about fewer pictures"
        )
    print(f"{name}, at most: {most}", flush=True)
    try:
        _write_answers(remote, todo, requests, out, origin)
    finally:
        print(f"{name}, paid: {remote.spent}", flush=True)
    return out


def _write_answers(
    remote: Remote, samples: list[Sample], requests: list[Request], out: Path, origin: dict[str, Any]
) -> None:
    """Write a row per answer as soon as it and those before it are there; raises UserError if any is missing."""
    journal = Journal(out, ascii_only=True)
    failures = answered = 0
    problem = ""
    with closing(remote.ask(requests)) as replies:  # it waits for requests under way, whose replies are kept
        for sample, reply in zip(samples, replies, strict=True):
            if reply.answered:
                journal.append(_row(sample, reply, origin))
                answered, failures = answered + 1, 0
                if answered % EVERY == 0:
                    print(f"answered {answered} of {len(samples)} pictures", flush=True)
                continue
            problem = reply.message
            failures += reply.status == "failed"
            if failures == MAX_FAILURES:
                break
    if problem:
        raise UserError(
            f"{len(samples) - answered} of {len(samples)} pictures have no answer yet ({problem}): "
            f"the others are in {out}, and the same command goes on from there"
        )


def _row(sample: Sample, reply: Reply, origin: dict[str, Any]) -> dict[str, Any]:
    if reply.status == "refused":
        return prediction_row(sample, reply.text or reply.message, None, origin) | {"refused": True}
    return prediction_row(sample, reply.text or "", None, origin, cut=reply.status == "truncated")
