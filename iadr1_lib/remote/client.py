"""Ask a model behind a server: requests come in, replies go out in their order, and each is paid for once.

    remote = Remote(Endpoint("anthropic", "claude-haiku-5-5", requests_per_minute=50), "runs/replies", cost_cap=2.0)
    print(remote.estimate(requests))
    for reply in remote.ask(requests):
        print(reply.status, reply.text)
    print(remote.spent)

SDK and key are needed only when a request is sent: kept replies need neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from iadr1_lib.data import content_hash, image_size
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import Journal, read_text
from iadr1_lib.remote import providers
from iadr1_lib.remote.providers import Endpoint, Provider, Reply, Request
from iadr1_lib.runs import project_root

LOOK_AHEAD = 4  # requests in hand per thread: enough that few threads wait, few enough to stay small
PIXELS_PER_TOKEN, LETTERS_PER_TOKEN = 600, 3  # rough upper bounds: providers count 600 to 1500 and about 4
ENCODING = 1  # to be raised when `encode_image` changes, so that old replies are not taken for new ones


@dataclass
class Cost:
    """Requests paid for and their tokens; `price` is US dollars for a million tokens, in and out, None if unknown."""

    price: tuple[float, float] | None
    requests: int = 0
    cached: int = 0  # requests that a kept reply answers, which cost nothing
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """Count one more request."""
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens

    @property
    def dollars(self) -> float | None:
        """US dollars; None if the price is not known."""
        if self.price is None:
            return None
        return (self.input_tokens * self.price[0] + self.output_tokens * self.price[1]) / 1e6

    def __str__(self) -> str:
        dollars = "cost not known" if self.dollars is None else f"${self.dollars:.4f}"
        tokens = f"{self.input_tokens} tokens in, {self.output_tokens} tokens out"
        return f"{self.requests} requests ({self.cached} more from the cache), {tokens}: {dollars}"


class Remote:
    """Asks one endpoint, with a cache of replies and a budget.

    Args:
        endpoint: whom to ask, and how.
        cache_folder: where replies are kept (replies.jsonl), each written as soon as it is there. Endpoints can share
            it, one run after the other, and it can be copied to other machines.
        cost_cap: US dollars that may be spent in all: a request is sent only if its worst case (`max_tokens` used up)
            still fits. A try without a readable reply is not counted, though the provider may bill it.

    `spent` is what was paid for so far.

    Raises:
        UserError: a cost cap for a model without a known price; a damaged cache.
    """

    def __init__(self, endpoint: Endpoint, cache_folder: str | Path, cost_cap: float | None = None) -> None:
        self.endpoint, self.cost_cap = endpoint, cost_cap
        self.spent = Cost(price_of(endpoint))
        if cost_cap is not None and self.spent.price is None:
            raise UserError(
                f"the price of {endpoint.name} is not known, so no cost cap can be kept: add it to "
                "data/api_prices.yaml or leave the cap out"
            )
        self._journal = Journal(Path(cache_folder) / "replies.jsonl", ascii_only=True)
        names = [field.name for field in fields(Reply)]  # earlier versions kept more
        self._replies = {
            row["key"]: Reply(**{name: row["reply"][name] for name in names}) for row in self._journal.rows()
        }
        self._reserved = 0.0  # dollars that requests under way may cost
        self._next_start = 0.0  # of a request, by time.monotonic()
        self._provider: Provider | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def ask(self, requests: Iterable[Request]) -> Generator[Reply]:
        """One reply per request, in order, each given out as soon as it and those before it are there.

        A few requests are held at a time. When the caller stops early, or an error ends the run, requests under way are
        still waited for and their replies kept: asking again goes on from there.

        Raises:
            UserError: the SDK or the key is missing; the server was never reached, or refuses the key, the model
                or the request; an image cannot be read.
        """
        self._stopped.clear()
        left, together = iter(requests), LOOK_AHEAD * self.endpoint.concurrency
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            try:
                while some := list(islice(left, together)):
                    yield from pool.map(self._reply, some)
            finally:
                self._stopped.set()

    def estimate(self, requests: Iterable[Request]) -> Cost:
        """What asking would cost at most, roughly: tokens in are guessed, and every reply uses up `max_tokens`."""
        cost = Cost(self.spent.price)
        for request in requests:
            if self._key(request) in self._replies:
                cost.cached += 1
            else:
                cost.add(*self._most_tokens(request))
        return cost

    def _reply(self, request: Request) -> Reply:
        """The kept reply, or one that is asked for; what was asked is kept for the reader alone."""
        key, most = self._key(request), self._most_tokens(request)
        dollars = Cost(self.spent.price, 0, 0, *most).dollars or 0.0
        with self._lock:
            if key in self._replies:
                self.spent.cached += 1
                return replace(self._replies[key], cached=True)
            if self.cost_cap is not None and (self.spent.dollars or 0.0) + self._reserved + dollars > self.cost_cap:
                cap = f"the cost cap of ${self.cost_cap:.2f} is reached; raise it and run again, replies are kept"
                return Reply(None, "unsent", f"not sent: {cap}", answered=False)
            if self._provider is None:
                self._provider = providers.PROVIDERS[self.endpoint.provider](self.endpoint)
            self._reserved += dollars
            start = max(time.monotonic(), self._next_start)  # requests are spaced evenly
            self._next_start = start + 60 / (self.endpoint.requests_per_minute or math.inf)
        try:
            if self._stopped.wait(start - time.monotonic()):
                return Reply(None, "unsent", "the run was stopped", answered=False)
            reply = self._provider.ask(request)
            tokens = reply.input_tokens, reply.output_tokens
            if None in tokens and reply.status != "refused":
                tokens = most  # the server does not count tokens
            images = ", ".join(Path(path).name for path in request.images)
            asked = {"model": self.endpoint.name, "system": request.system, "text": request.text, "images": images}
            with self._lock:
                self.spent.add(tokens[0] or 0, tokens[1] or 0)
                self._journal.append({"key": key, "asked": asked, "reply": asdict(reply), "time": time.time()})
                self._replies[key] = reply
            return reply
        except providers.TransientError as error:  # nothing was answered, so nothing is kept: the next run tries again
            if isinstance(error, providers.UnreachableError) and not self.spent.requests:  # most likely a wrong address
                raise UserError(f"{error}: check base_url and the network, then run again") from error
            return Reply(None, "failed", f"{self.endpoint.name} gave no reply: {error}", answered=False)
        except UserError:
            self._stopped.set()  # no later request would fare better
            raise
        finally:
            with self._lock:
                self._reserved -= dollars

    def _key(self, request: Request) -> str:
        """A hash of all that decides what the reply may be; images by their files' contents, wherever they lie."""
        for path in request.images:
            if not Path(path).is_file():
                raise UserError(f"There is no picture {path}: check the path.")
        server = {n: getattr(self.endpoint, n) for n in ("provider", "model", "base_url", "max_tokens")}
        images = [content_hash(path) for path in request.images]
        asked = [ENCODING, server, asdict(replace(request, images=())), images]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _most_tokens(self, request: Request) -> tuple[int, int]:
        """Tokens in and out that a request may take at most."""
        letters = len(request.system) + len(request.text)
        tokens = letters // LETTERS_PER_TOKEN + 100
        for path in request.images:
            size = image_size(path)
            tokens += int(math.prod(size) * min(1.0, request.max_side / max(size)) ** 2) // PIXELS_PER_TOKEN
        return tokens, self.endpoint.max_tokens


def price_of(endpoint: Endpoint) -> tuple[float, float] | None:
    """US dollars for a million tokens, in and out, by data/api_prices.yaml; None for a model that is not there."""
    path = project_root() / "data" / "api_prices.yaml"
    table = read_yaml(path, "prices")["prices"]
    try:
        price = table[endpoint.provider].get(endpoint.model)
        return price and (float(price["input"]), float(price["output"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} has no prices of {endpoint.name} that can be read: write input and output") from error


def read_yaml(path: Path, *keys: str) -> dict[str, Any]:
    """These keys of a YAML file. Raises UserError if it is missing, is no YAML, or lacks one."""
    try:
        content = yaml.safe_load(read_text(path))
        return {key: content[key] for key in keys}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        wanted = f"YAML with {', '.join(keys)}"
        raise UserError(f"{path} cannot be read as {wanted} ({one_line(error)}): check path and content") from error
