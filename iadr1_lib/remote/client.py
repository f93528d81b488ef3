"""Calls to a model behind a server: each reply is paid for once, and nothing is lost.

    endpoint = Endpoint("anthropic", "claude-haiku-5-5", requests_per_minute=50)
    remote = Remote(endpoint, "runs/replies", cost_cap=2.0)
    print(remote.estimate(requests))
    for reply in remote.ask(requests):          # in the order of the requests
        print(reply.status, reply.text)
    print(remote.spent)

The SDKs are imported, and a key is looked for, when the first request is sent: a run that the cache answers needs
neither.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from iadr1_lib.data import content_hash, image_size
from iadr1_lib.errors import UserError
from iadr1_lib.files import Journal
from iadr1_lib.remote.providers import PROVIDERS, Endpoint, Provider, Reply, Request, TransientError, scaled_size
from iadr1_lib.runs import project_root

LOOK_AHEAD = 2  # requests in hand per thread: enough that none waits for the reader, few enough to stay small
LONGEST_PAUSE = 120.0  # seconds; a server that asks for a longer one will not be back during this run
PIXELS_PER_TOKEN, LETTERS_PER_TOKEN = 600, 3  # rough upper bounds: providers count 600 to 1500 and about 4
ENCODING = 1  # to be raised when `encode_image` changes, so that old replies are not taken for new ones


@dataclass(frozen=True)
class Cost:
    """Requests paid for, tokens, US dollars (None if no price is known); `cached` requests cost nothing."""

    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests,
            self.cached + other.cached,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            None if self.dollars is None or other.dollars is None else self.dollars + other.dollars,
        )

    def __str__(self) -> str:
        price = "cost not known" if self.dollars is None else f"${self.dollars:.4f}"
        tokens = f"{self.input_tokens} tokens in, {self.output_tokens} tokens out"
        return f"{self.requests} requests ({self.cached} more from the cache), {tokens}: {price}"


@lru_cache
def read_prices(path: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """US dollars for a million tokens, in and out, by provider and model; from a file such as data/api_prices.yaml.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))["prices"]
        models = [(provider, model, price) for provider in table for model, price in table[provider].items()]
        return {(provider, model): (price["input"], price["output"]) for provider, model, price in models}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a table of prices: restore it from the project") from error


class Remote:
    """Asks one endpoint, with a cache of replies and a budget.

    Args:
        endpoint: whom to ask, and how.
        cache_folder: where replies are kept (replies.jsonl), each written as soon as it is there. Endpoints can share
            it, one run after the other, and it can be copied to other machines.
        cost_cap: US dollars that this object may spend in all; None for no limit. A request is sent only if its worst
            case (`max_tokens` used up) still fits. A try that timed out or came back unreadable is not counted, though
            the provider may bill it.

    Raises:
        UserError: a cost cap for a model without a known price; a damaged cache.
    """

    def __init__(self, endpoint: Endpoint, cache_folder: str | Path, cost_cap: float | None = None) -> None:
        self.endpoint = endpoint
        self.price = read_prices(project_root() / "data" / "api_prices.yaml").get((endpoint.provider, endpoint.model))
        if cost_cap is not None and self.price is None:
            raise UserError(
                f"the price of {endpoint.name} is not known, so no cost cap can be kept: add it to "
                "data/api_prices.yaml or leave the cap out"
            )
        self._journal = Journal(Path(cache_folder) / "replies.jsonl", ascii_only=True)
        self._replies = {row["key"]: Reply(**row["reply"]) for row in self._journal.rows()}
        self._budget = Budget(cost_cap, Cost(dollars=None if self.price is None else 0.0))
        self._limiter = RateLimiter(endpoint.requests_per_minute)
        self._provider: Provider | None = None
        self._lock = threading.Lock()
        self._key_locks: dict[str, threading.Lock] = {}
        self._thread = threading.local()  # .stopped: the event that ends the run which a thread works for

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, in order, each given out as soon as it and those before it are there.

        Only a few requests are held at a time, whatever their number. When the caller stops early, or an error ends the
        run, requests under way are still waited for and their replies kept: asking again goes on from there.

        Raises:
            UserError: the SDK or the key is missing; the server was never reached, or refuses the key, the model
                or the request; an image cannot be read; the disk is full.
        """
        stopped = threading.Event()
        threads = self.endpoint.concurrency
        waiting: deque[Future[Reply]] = deque()
        with ThreadPoolExecutor(threads, initializer=setattr, initargs=(self._thread, "stopped", stopped)) as pool:
            try:
                for request in requests:
                    waiting.append(pool.submit(self._answer, request))
                    while waiting and (len(waiting) >= LOOK_AHEAD * threads or waiting[0].done()):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                stopped.set()
                for future in waiting:
                    future.cancel()

    @property
    def spent(self) -> Cost:
        """What this object has paid for so far."""
        return self._budget.spent

    def estimate(self, requests: Iterable[Request]) -> Cost:
        """What asking would cost at most, roughly: tokens in are guessed, and every reply uses up `max_tokens`.

        Nothing is sent. Images are read to look replies up in the cache.
        """
        costs = (Cost(cached=1) if self._key(r) in self._replies else self._highest_cost(r) for r in requests)
        return sum(costs, start=Cost(dollars=None if self.price is None else 0.0))

    def quote(self, requests: Iterable[Request]) -> Cost:
        """The `estimate`, if the cost cap allows it.

        Raises:
            UserError: asking might cost more than the cap leaves; nothing is sent.
        """
        cost = self.estimate(requests)
        if (cost.dollars or 0.0) > self._budget.left:
            raise UserError(
                f"{self.endpoint.name} may cost up to ${cost.dollars:.4f} ({cost.requests} requests), above the cost "
                f"cap of ${self._budget.cap:.2f}, so nothing was asked: raise the cap or ask about fewer pictures"
            )
        return cost

    def _answer(self, request: Request) -> Reply:
        """The reply from the cache or from the server."""
        key = self._key(request)
        with self._key_locks.setdefault(key, threading.Lock()):  # the same question asked twice at once is sent once
            if key not in self._replies:
                return self._buy(key, request)
        self._budget.settle(None, Cost(cached=1))
        return replace(self._replies[key], cached=True)

    def _buy(self, key: str, request: Request) -> Reply:
        """Send the request, count the cost, keep the reply."""
        highest = self._highest_cost(request)
        if not self._budget.reserve(highest):
            cap = f"the cost cap of ${self._budget.cap:.2f} is reached"
            return Reply(None, "unsent", f"not sent: {cap}; raise it and run again, replies are kept", answered=False)
        cost = Cost()
        try:
            reply = self._connect().ask(request)
            cost = self._cost(reply.input_tokens or 0, reply.output_tokens or 0)
            if None in (reply.input_tokens, reply.output_tokens) and reply.status != "refused":
                cost = replace(cost, dollars=highest.dollars)  # the server does not count tokens
        except TransientError as error:  # nothing was answered, so nothing is kept: the next run tries again
            if error.unreachable and not self.spent.requests:  # most likely a wrong address
                raise UserError(f"{error}: check base_url and the network, then run again") from error
            return Reply(None, "failed", f"{self.endpoint.name} gave no reply: {error}", answered=False)
        finally:
            self._budget.settle(highest, cost)
        self._keep(key, request, reply)
        return reply

    def _keep(self, key: str, request: Request, reply: Reply) -> None:
        """Write a reply to the cache; what was asked is there for the reader alone."""
        asked = {"model": self.endpoint.name, "system": request.system, "text": request.text}
        asked["images"] = ", ".join(Path(path).name for path in request.images)
        with self._lock:
            self._journal.append({"key": key, "asked": asked, "reply": asdict(reply), "time": time.time()})
            self._replies[key] = reply

    def _connect(self) -> Provider:
        with self._lock:
            if self._provider is None:
                self._provider = PROVIDERS[self.endpoint.provider](self.endpoint, self._before_try, _after_try)
            return self._provider

    def _before_try(self, _: Any) -> None:
        """Wait for the rate limiter, for retries too; end the retries when the run has stopped."""
        if self._thread.stopped.wait(self._limiter.delay()):
            raise StoppedError

    def _key(self, request: Request) -> str:
        """A hash of all that decides what the reply may be; images by their files' contents, wherever they lie."""
        for path in request.images:
            if not Path(path).is_file():
                raise UserError(f"There is no picture {path}: check the path.")
        server = {n: getattr(self.endpoint, n) for n in ("provider", "model", "base_url", "max_tokens")}
        images = [content_hash(path) for path in request.images]
        asked = [ENCODING, server, dict(self.endpoint.extra), asdict(replace(request, images=())), images]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _highest_cost(self, request: Request) -> Cost:
        sizes = (scaled_size(image_size(path), request.max_pixels, request.max_side) for path in request.images)
        letters = len(request.system) + len(request.text)
        tokens = sum(map(math.prod, sizes)) // PIXELS_PER_TOKEN + letters // LETTERS_PER_TOKEN + 100
        return self._cost(tokens, self.endpoint.max_tokens)

    def _cost(self, input_tokens: int, output_tokens: int) -> Cost:
        price = self.price
        dollars = None if price is None else (input_tokens * price[0] + output_tokens * price[1]) / 1e6
        return Cost(1, 0, input_tokens, output_tokens, dollars)


class StoppedError(BaseException):
    """The run has stopped. The SDKs take an Exception in a hook for a lost connection, and try again."""


def _after_try(response: Any) -> None:
    """Have the SDK give up where the server asks for a pause of hours, which it would sleep through."""
    pause = response.headers.get("retry-after", "")
    if pause.isdigit() and int(pause) > LONGEST_PAUSE:
        response.headers["x-should-retry"] = "false"


class RateLimiter:
    """Spaces the starts of tries evenly, so that no minute holds more than `per_minute`."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0  # when the next try may start, by time.monotonic()
        self._lock = threading.Lock()

    def delay(self) -> float:
        """Take the next start; the seconds until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now


class Budget:
    """Keeps a cap in US dollars: what was spent and what requests under way may still cost stay below it together."""

    def __init__(self, cap: float | None, spent: Cost) -> None:
        self.cap = math.inf if cap is None else cap
        self.spent = spent
        self._reserved: list[float] = []
        self._changed = threading.Condition()

    @property
    def left(self) -> float:
        """Dollars that are neither spent nor reserved."""
        return self.cap - (self.spent.dollars or 0.0) - sum(self._reserved)

    def reserve(self, cost: Cost) -> bool:
        """Reserve a request's dollars, waiting for others to turn out cheaper; False if they do not suffice."""
        dollars = cost.dollars or 0.0
        with self._changed:
            self._changed.wait_for(lambda: not self._reserved or dollars <= self.left)
            fits = dollars <= self.left
            if fits:
                self._reserved.append(dollars)
            return fits

    def settle(self, reserved: Cost | None, cost: Cost) -> None:
        """Count a cost in place of what was reserved for it; None if nothing was."""
        with self._changed:
            if reserved is not None:
                self._reserved.remove(reserved.dollars or 0.0)
            self.spent += cost
            self._changed.notify_all()
