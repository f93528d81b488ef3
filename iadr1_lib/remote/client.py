"""Calls with images to Anthropic and OpenAI-compatible servers: each reply is paid for once, and nothing is lost.

    endpoint = Endpoint("anthropic", "claude-haiku-5-5", requests_per_minute=50)
    remote = Remote(endpoint, "runs/replies", cost_cap=2.0)
    print(remote.estimate(requests))
    for reply in remote.ask(requests):          # in the order of the requests
        print(reply.status, reply.text)
    print(remote.spent)

What a request says and what becomes of a reply is the caller's business: nothing here knows of prompts or data sets.
The client libraries are imported, and a key is looked for, when the first request is sent: a run that the cache answers
needs neither.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import io
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import yaml
from PIL import Image

from iadr1_lib.data import content_hash, image_size, open_image
from iadr1_lib.errors import UserError, one_line
from iadr1_lib.files import read_json, write_json
from iadr1_lib.runs import project_root

Status = Literal["ok", "refused", "truncated", "failed", "unsent"]

LOOK_AHEAD = 4  # requests in hand per thread: enough that none waits for the reader, few enough to stay small
LONGEST_BACKOFF = 60.0  # seconds
LONGEST_WAIT = 600.0  # seconds; a server that asks for a longer pause will not be back during this run
LARGEST_PNG = 3_500_000  # bytes; in base64 a third more, and 5 MB is the least that a provider takes
PIXELS_PER_TOKEN, LETTERS_PER_TOKEN = 600, 3  # rough, on the dear side: providers count 600 to 1500 and about 4
ENCODING = 1  # to be raised when `encode_image` changes, so that old replies are not taken for new ones


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, and how it may be asked.

    Attributes:
        provider: whose protocol the server speaks, "anthropic" or "openai".
        model: the model's name, as the server knows it.
        base_url: the server's address; None for the provider's own. For vLLM: "http://localhost:8000/v1".
        key_variable: environment variable that holds the key; None for ANTHROPIC_API_KEY or OPENAI_API_KEY at the
            provider's own address and for no key at another: a key is not shown to a server that it was not meant for.
        max_tokens: most tokens of a reply, the model's own thinking included.
        temperature: None leaves it to the server; many models of today refuse any other value than their own.
        extra: further fields of the request's body, such as {"reasoning_effort": "low"}.
        timeout: seconds that one try may take.
        requests_per_minute: None for no limit. Tries count, not only requests.
        concurrency: requests under way at the same time.
        retries: further tries after a passing failure (429, 5xx, time-out, lost connection, garbled reply).
        backoff: seconds before the first retry, doubled each time, up to a minute; more if Retry-After says so.

    Raises:
        UserError: a value makes no sense.
    """

    provider: Literal["anthropic", "openai"]
    model: str
    base_url: str | None = None
    key_variable: str | None = None
    max_tokens: int = 4000
    temperature: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    requests_per_minute: float | None = None
    concurrency: int = 4
    retries: int = 5
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if self.provider not in _SERVICES:
            raise UserError(f"unknown provider {self.provider!r}: choose from {', '.join(_SERVICES)}")
        for name in ("max_tokens", "timeout", "requests_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} of {self.name} is {value}: set it above 0")
        if self.retries < 0 or self.backoff < 0:
            raise UserError(f"retries and backoff of {self.name} may not be negative: set them to 0 or above")

    @property
    def name(self) -> str:
        """Provider and model, such as "anthropic/claude-haiku-5-5"."""
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True)
class Request:
    """One question: a system message, a text, and the images that go before it.

    An image of more than `max_pixels` pixels, or with a side of more than `max_side`, is made smaller, its shape kept.
    `attempt` is not sent: the same question under another number is a new request, not answered from the cache.
    """

    system: str
    text: str
    images: tuple[Path, ...] = ()
    max_pixels: int = 1_000_000
    attempt: int = 0
    max_side: int | None = None


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        text: the model's words; of a truncated reply as far as they go; None if there are none.
        status: "ok"; "refused" by the model or a content filter; "truncated" at max_tokens; "failed" in spite of all
            retries, or without text; "unsent" because the cost cap was reached.
        message: for every status but "ok" a sentence that says why.
        input_tokens, output_tokens: as the server counted them; None if it did not.
        cached: whether it was there before and cost nothing now.
        answered: False if the server never answered, so that asking again may help.
        logprobs: of each token of the text, in order, {"token": its text, "top": {token: log-probability}}; None unless
            the endpoint asked for them (`extra`) and the server gave them. OpenAI-compatible servers only.
    """

    text: str | None
    status: Status
    message: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached: bool = False
    answered: bool = True
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Cost:
    """Requests paid for, tokens, US dollars (None if no price is known); `cached` requests cost nothing."""

    requests: int = 0
    cached: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    dollars: float | None = 0.0

    def __str__(self) -> str:
        price = "cost not known" if self.dollars is None else f"${self.dollars:.4f}"
        tokens = f"{self.input_tokens} tokens in, {self.output_tokens} tokens out"
        return f"{self.requests} requests ({self.cached} more from the cache), {tokens}: {price}"


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    input: float
    output: float

    def of(self, input_tokens: int, output_tokens: int) -> float:
        """US dollars for so many tokens."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


def known_price(provider: str, model: str) -> Price | None:
    """The price in data/api_prices.yaml, or None. Raises UserError if the file cannot be read."""
    path = project_root() / "data" / "api_prices.yaml"
    price = _price_table(path).get(provider, {}).get(model)
    return Price(float(price["input"]), float(price["output"])) if price else None


@lru_cache(maxsize=4)
def _price_table(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    try:
        prices: dict[str, dict[str, dict[str, float]]] = yaml.safe_load(path.read_text(encoding="utf-8"))["prices"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a table of prices: restore it from the project") from error
    return prices


# ------------------------------------------------------------------------------------------------------ asking


class Remote:
    """Asks one endpoint, with one folder of replies and one purse.

    Args:
        endpoint: whom to ask, and how.
        cache_folder: where replies are kept, one JSON file each, written as soon as the reply is there. Folders can be
            shared by endpoints and copied to other machines.
        cost_cap: US dollars that this object may spend in all; None for no limit. A request is sent only if its worst
            case (`max_tokens` used up) still fits. A try that timed out or came back garbled is not counted, though the
            provider may bill it.

    Raises:
        UserError: a cost cap for a model without a known price.
    """

    def __init__(self, endpoint: Endpoint, cache_folder: str | Path, cost_cap: float | None = None) -> None:
        self.endpoint = endpoint
        self.price = known_price(endpoint.provider, endpoint.model)
        if cost_cap is not None and self.price is None:
            raise UserError(
                f"the price of {endpoint.name} is not known, so no cost cap can be kept: add it to "
                "data/api_prices.yaml or leave the cap out"
            )
        self._cache = _Cache(Path(cache_folder))
        self._purse = _Purse(cost_cap)
        self._pace = _Pace(endpoint.requests_per_minute)
        self._service: _Service | None = None
        self._spent = Cost(dollars=None if self.price is None else 0.0)
        self._lock = threading.Lock()
        self._settled = threading.Condition()
        self._under_way: set[str] = set()  # keys: the same question asked twice at once is sent once

    def ask(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """One reply per request, in order, each given out as soon as it and those before it are there.

        Only a few requests are held at a time, whatever their number. When the caller stops early, or an error ends the
        run, requests under way are still waited for and their replies kept: asking again goes on from there.

        Raises:
            UserError: the library or the key is missing; the server was never reached, or refuses the key, the model
                or the request; an image cannot be read; the disk is full.
        """
        run = _Run()
        waiting: deque[Future[Reply]] = deque()
        with ThreadPoolExecutor(self.endpoint.concurrency) as pool:
            try:
                for request in requests:
                    waiting.append(pool.submit(self._answer, request, run))
                    while waiting and (len(waiting) >= LOOK_AHEAD * self.endpoint.concurrency or waiting[0].done()):
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                run.stop()
                for future in waiting:
                    future.cancel()

    @property
    def spent(self) -> Cost:
        """What this object has paid for so far."""
        with self._lock:
            return self._spent

    def estimate(self, requests: Iterable[Request]) -> Cost:
        """What asking would cost at most, roughly: tokens in are guessed, and every reply uses up `max_tokens`.

        Nothing is sent. Images are read to look replies up in the cache.
        """
        cost = Cost(dollars=None if self.price is None else 0.0)
        for request in requests:
            if self._cache.get(_key(self._asked(request))) is None:
                cost = self._add(cost, _guess_tokens(request), self.endpoint.max_tokens)
            else:
                cost = replace(cost, cached=cost.cached + 1)
        return cost

    def quote(self, requests: Iterable[Request]) -> Cost:
        """The `estimate`, if the cost cap allows it.

        Raises:
            UserError: asking might cost more than the cap leaves; nothing is sent.
        """
        cost = self.estimate(requests)
        if cost.dollars is not None and cost.dollars > self._purse.left:
            raise UserError(
                f"{self.endpoint.name} may cost up to ${cost.dollars:.4f} ({cost.requests} requests), above the cost "
                f"cap of ${self._purse.cap:.2f}, so nothing was asked: raise the cap or ask about fewer pictures"
            )
        return cost

    def _answer(self, request: Request, run: _Run) -> Reply:
        """The reply from the cache or from the server; an error stops the run."""
        try:
            run.check()
            asked = self._asked(request)
            key = _key(asked)
            with self._alone(key):
                reply = self._cache.get(key)
                if reply is None:
                    return self._buy(request, asked, run)
            with self._lock:
                self._spent = replace(self._spent, cached=self._spent.cached + 1)
            return replace(reply, cached=True)
        except BaseException as error:
            run.stop(error)
            raise

    def _buy(self, request: Request, asked: dict[str, Any], run: _Run) -> Reply:
        """Send the request, keep the reply, count the cost."""
        worst = self._dollars(_guess_tokens(request), self.endpoint.max_tokens)
        if not self._purse.reserve(worst):
            text = (
                f"not sent: the cost cap of ${self._purse.cap:.2f} is reached; raise it and run again, replies are kept"
            )
            return Reply(None, "unsent", text, answered=False)
        paid = 0.0
        try:
            reply = self._send(request, run)
            paid = self._count(reply, worst)
            self._cache.put(_key(asked), asked, reply)
        except _PassingError as error:  # nothing was answered, so nothing is kept: the next run tries again
            if error.unreachable and not self.spent.requests:  # most likely no passing failure after all
                raise UserError(f"{error}: check base_url and the network, then run again") from error
            return Reply(None, "failed", f"{self.endpoint.name} gave no reply: {error}", answered=False)
        finally:
            self._purse.settle(worst, paid)
        return reply

    def _send(self, request: Request, run: _Run) -> Reply:
        """Try, and try again after passing failures; the last one is raised."""
        service = self._connect()
        pictures = [encode_image(path, request.max_pixels, request.max_side) for path in request.images]
        import tenacity  # of the extra `api`, so it is there once the client is

        again = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.endpoint.retries + 1),
            wait=tenacity.wait_exponential_jitter(
                initial=self.endpoint.backoff, max=LONGEST_BACKOFF, jitter=self.endpoint.backoff
            ),
            retry=tenacity.retry_if_exception_type(_PassingError),
            sleep=run.sleep,
            reraise=True,
        )
        reply: Reply = again(self._try, service, request, pictures, run)
        return reply

    def _try(self, service: _Service, request: Request, pictures: list[tuple[str, str]], run: _Run) -> Reply:
        run.sleep(self._pace.delay())
        try:
            answer = service.send(self.endpoint, request, pictures)
        except service.errors.APIStatusError as error:
            return self._read_error(error, request)
        except service.errors.APITimeoutError as error:
            raise _PassingError(f"no answer within {self.endpoint.timeout:g} seconds") from error
        except service.errors.APIConnectionError as error:
            message = f"no connection to {self._address} ({one_line(error.__cause__ or error)})"
            raise _PassingError(message, unreachable=True) from error
        except (service.errors.APIError, ValueError) as error:  # ValueError: the body is no JSON
            raise _PassingError(f"the answer cannot be read ({error})") from error
        try:
            return service.read(answer)
        except (AttributeError, IndexError, TypeError) as error:  # JSON, but of another shape
            raise _PassingError(f"the answer has not the shape of a reply ({error})") from error

    def _read_error(self, error: Any, request: Request) -> Reply:
        """A status of 400 or above: a refusal, a passing failure (raised), or a mistake of the user (raised)."""
        code, said = getattr(error, "code", None), one_line(error.message)
        if code in {"content_filter", "content_policy_violation"}:
            return Reply(None, "refused", f"{self.endpoint.name} refused: {said}")
        passing = error.status_code in {408, 409, 429} or error.status_code >= 500
        if not passing or code == "insufficient_quota":  # OpenAI's 429 for an empty account
            raise UserError(self._mistake(error.status_code, code, said, request)) from error
        retry_after = _retry_after(error.response.headers)
        if retry_after is not None:
            if retry_after > LONGEST_WAIT:
                raise UserError(
                    f"{self.endpoint.name} takes no requests for {retry_after:.0f} seconds ({said}): run again then, "
                    "replies are kept"
                ) from error
            self._pace.hold(retry_after)  # for all threads: the others would be turned away as well
        raise _PassingError(f"status {error.status_code}, {said}")

    def _mistake(self, status: int, code: str | None, said: str, request: Request) -> str:
        name, variable = self.endpoint.name, _key_variable(self.endpoint) or "no variable (set key_variable)"
        if status == 402 or code == "insufficient_quota":
            return f"the account for {name} has no credit left ({said}): top it up and run again, replies are kept"
        if status == 401:
            return f"{name} does not accept the key from {variable} ({said}): set a valid key and run again"
        if status == 403:
            return f"{name} is not open to the key from {variable} ({said}): choose another model or ask for access"
        if status == 404:
            return f"{self._address} knows no {self.endpoint.model} ({said}): check the model's name and base_url"
        images = ", ".join(str(path) for path in request.images) or "no image"
        return (
            f"{name} rejects the request with {images} (status {status}, {said}): change what it names, or leave the "
            "image out; some models take no temperature"
        )

    def _connect(self) -> _Service:
        with self._lock:
            if self._service is None:
                self._service = _SERVICES[self.endpoint.provider](self.endpoint)
            return self._service

    @property
    def _address(self) -> str:
        return self.endpoint.base_url or _SERVICES[self.endpoint.provider].address

    def _asked(self, request: Request) -> dict[str, Any]:
        """All that decides what the reply may be; images by their files' contents, wherever they lie."""
        of_endpoint = ("provider", "model", "base_url", "max_tokens", "temperature")
        said = asdict(request)
        if said["max_side"] is None:
            del said["max_side"]  # younger than many a cache: replies kept without it stay good
        return {
            **{name: getattr(self.endpoint, name) for name in of_endpoint},
            **said,
            "extra": dict(self.endpoint.extra),
            "images": [content_hash(_there(path)) for path in request.images],
            "encoding": ENCODING,
        }

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Wait while another thread asks the same."""
        with self._settled:
            self._settled.wait_for(lambda: key not in self._under_way)
            self._under_way.add(key)
        try:
            yield
        finally:
            with self._settled:
                self._under_way.remove(key)
                self._settled.notify_all()

    def _count(self, reply: Reply, worst: float) -> float:
        """Add a reply to what was spent; its dollars, or the worst case if the server did not count tokens."""
        with self._lock:
            self._spent = self._add(self._spent, reply.input_tokens or 0, reply.output_tokens or 0)
            if reply.input_tokens is not None and reply.output_tokens is not None:
                return self._dollars(reply.input_tokens, reply.output_tokens)
            if self._spent.dollars is not None and reply.status != "refused":
                self._spent = replace(self._spent, dollars=self._spent.dollars + worst)
                return worst
            return 0.0

    def _add(self, cost: Cost, input_tokens: int, output_tokens: int) -> Cost:
        dollars = None if cost.dollars is None else cost.dollars + self._dollars(input_tokens, output_tokens)
        return Cost(
            cost.requests + 1,
            cost.cached,
            cost.input_tokens + input_tokens,
            cost.output_tokens + output_tokens,
            dollars,
        )

    def _dollars(self, input_tokens: int, output_tokens: int) -> float:
        return 0.0 if self.price is None else self.price.of(input_tokens, output_tokens)


class _PassingError(Exception):
    """A failure that may be gone at the next try; `unreachable` if no server was found at all."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


class _Run:
    """Whether a run still goes on; the first error that stopped it is everybody's."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def stop(self, error: BaseException | None = None) -> None:
        if not self._stopped.is_set():
            self._error = error
            self._stopped.set()

    def check(self) -> None:
        if self._stopped.is_set():
            raise self._error or CancelledError()

    def sleep(self, seconds: float) -> None:
        """Wait so long, or raise as soon as the run is stopped."""
        self._stopped.wait(seconds)
        self.check()


class _Pace:
    """Spaces the starts of tries evenly, so that no minute holds more than `per_minute`."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def delay(self) -> float:
        """Take the next start; the seconds until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def hold(self, seconds: float) -> None:
        """Let nobody start for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _Purse:
    """Keeps a cap: what was paid and what requests under way may yet cost stay below it together."""

    def __init__(self, cap: float | None) -> None:
        self.cap = math.inf if cap is None else cap
        self._paid = self._reserved = 0.0
        self._empty = False
        self._changed = threading.Condition()

    def reserve(self, dollars: float) -> bool:
        """Set money aside, waiting for requests under way to turn out cheaper; False once it does not suffice."""
        with self._changed:
            while self._reserved > 1e-12 and self._paid + self._reserved + dollars > self.cap:
                self._changed.wait()
            self._empty = self._empty or self._paid + dollars > self.cap
            if not self._empty:
                self._reserved += dollars
            return not self._empty

    @property
    def left(self) -> float:
        """Dollars that are neither paid nor set aside."""
        with self._changed:
            return self.cap - self._paid - self._reserved

    def settle(self, reserved: float, paid: float) -> None:
        with self._changed:
            self._reserved -= reserved
            self._paid += paid
            self._changed.notify_all()


class _Cache:
    """Replies on disk, one file each, named by the hash of what was asked; a file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Reply | None:
        try:
            return Reply(**read_json(self._path(key), {"reply": None})["reply"])
        except (UserError, TypeError, KeyError):  # absent, or damaged by a failing disk: to be asked again
            return None

    def put(self, key: str, asked: dict[str, Any], reply: Reply) -> None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self._path(key), {"asked": asked, "reply": asdict(reply), "time": when})

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


def _key(asked: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _guess_tokens(request: Request) -> int:
    pixels = sum(
        math.prod(_sent_size(image_size(path), request.max_pixels, request.max_side)) for path in request.images
    )
    return pixels // PIXELS_PER_TOKEN + (len(request.system) + len(request.text)) // LETTERS_PER_TOKEN + 100


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait (given as seconds or as a date), or None."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------------------ images


def encode_image(path: Path, max_pixels: int, max_side: int | None = None) -> tuple[str, str]:
    """Media type and base64 of a picture made as small as `Request` says, its shape kept; nothing of its metadata.

    PNG, since JPEG blurs fine scratches; JPEG where the PNG would be larger than servers take. Raises UserError as
    `benchmarks.open_image` does.
    """
    image = open_image(path)
    size = _sent_size(image.size, max_pixels, max_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    plain = Image.frombytes("RGB", image.size, image.tobytes())  # pixels only
    media_type, data = "image/png", _saved(plain, format="PNG")
    if len(data) > LARGEST_PNG:
        media_type, data = "image/jpeg", _saved(plain, format="JPEG", quality=95)
    return media_type, base64.b64encode(data).decode()


def _sent_size(size: tuple[int, int], max_pixels: int, max_side: int | None) -> tuple[int, int]:
    """Width and height that are sent of a picture of this width and height."""
    width, height = size
    longer = max(size)
    if max_side is not None and longer > max_side:
        width, height = (max(1, side * max_side // longer) for side in size)  # in whole numbers: exactly max_side
    scale = math.sqrt(max_pixels / (width * height))
    return (width, height) if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _there(path: Path) -> Path:
    if not Path(path).is_file():
        raise UserError(f"There is no picture {path}: check the path.")
    return Path(path)


# --------------------------------------------------------------------------------------------------- providers


class _Service(Protocol):
    """One provider's protocol over its own client library."""

    address: ClassVar[str]
    key_variable: ClassVar[str]
    errors: Any  # the client library, whose errors that matter have the same names in both

    def __init__(self, endpoint: Endpoint) -> None: ...

    def send(self, endpoint: Endpoint, request: Request, pictures: list[tuple[str, str]]) -> Any:
        """Make one try; raises the library's errors."""

    def read(self, answer: Any) -> Reply:
        """Raises AttributeError, IndexError or TypeError for an answer of another shape."""


class _Anthropic:
    address: ClassVar[str] = "https://api.anthropic.com"
    key_variable: ClassVar[str] = "ANTHROPIC_API_KEY"

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise UserError(_missing("anthropic")) from error
        self.errors: Any = anthropic
        self._client = anthropic.Anthropic(**_connection(endpoint))

    def send(self, endpoint: Endpoint, request: Request, pictures: list[tuple[str, str]]) -> Any:
        content: list[Any] = [
            {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
            for media_type, data in pictures
        ]
        content.append({"type": "text", "text": request.text})
        options: dict[str, Any] = {"system": request.system} if request.system else {}
        return self._client.messages.create(
            model=endpoint.model,
            max_tokens=endpoint.max_tokens,
            messages=[{"role": "user", "content": content}],
            extra_body=_extra(endpoint),
            **options,
        )

    def read(self, answer: Any) -> Reply:
        text = "".join(block.text for block in answer.content if block.type == "text")
        status: Status = "ok"
        message = ""
        if answer.stop_reason == "refusal":
            status = "refused"
            message = one_line(getattr(answer.stop_details, "explanation", None) or "the model refused")
        elif answer.stop_reason in {"max_tokens", "model_context_window_exceeded"}:
            status, message = "truncated", f"cut off ({answer.stop_reason})"
        return _reply(text, status, message, answer.usage.input_tokens, answer.usage.output_tokens)


class _OpenAI:
    address: ClassVar[str] = "https://api.openai.com/v1"
    key_variable: ClassVar[str] = "OPENAI_API_KEY"

    def __init__(self, endpoint: Endpoint) -> None:
        try:
            import openai
        except ImportError as error:
            raise UserError(_missing("openai")) from error
        self.errors: Any = openai
        self._client = openai.OpenAI(**_connection(endpoint))

    def send(self, endpoint: Endpoint, request: Request, pictures: list[tuple[str, str]]) -> Any:
        content: list[Any] = [
            {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
            for media_type, data in pictures
        ]
        content.append({"type": "text", "text": request.text})
        messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        # OpenAI's newer models refuse the old name, some other servers do not know the new one.
        limit = "max_tokens" if endpoint.base_url else "max_completion_tokens"
        extra = {limit: endpoint.max_tokens, **_extra(endpoint)}
        return self._client.chat.completions.create(model=endpoint.model, messages=messages, extra_body=extra)

    def read(self, answer: Any) -> Reply:
        choice = answer.choices[0]
        text = choice.message.content or ""
        refusal = getattr(choice.message, "refusal", None)
        status: Status = "ok"
        message = ""
        if refusal or choice.finish_reason == "content_filter":
            status, message = "refused", one_line(refusal or "stopped by the content filter")
        elif choice.finish_reason == "length":
            status, message = "truncated", "cut off (max_tokens)"
        usage = getattr(answer, "usage", None)
        counted = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return replace(_reply(text, status, message, *counted), logprobs=_logprobs(choice))


def _logprobs(choice: Any) -> list[dict[str, Any]] | None:
    """What a server says of the tokens' chances; None if it says nothing, or nothing that can be read."""
    try:
        tokens = choice.logprobs.content
        return [
            {"token": t.token, "top": {other.token: float(other.logprob) for other in t.top_logprobs}} for t in tokens
        ]
    except (AttributeError, TypeError, ValueError):  # a word beside the answer: the answer itself is good
        return None


_SERVICES: dict[str, type[_Service]] = {"anthropic": _Anthropic, "openai": _OpenAI}


def _reply(text: str, status: Status, message: str, input_tokens: int | None, output_tokens: int | None) -> Reply:
    if status == "ok" and not text.strip():  # paid for, so it is kept; another attempt is another request
        return Reply(None, "failed", "the reply holds no text", input_tokens, output_tokens)
    return Reply(text or None, status, message, input_tokens, output_tokens)


def _extra(endpoint: Endpoint) -> dict[str, Any]:
    # In the body by hand: the library for Anthropic no longer has an argument for the temperature.
    warm = {} if endpoint.temperature is None else {"temperature": endpoint.temperature}
    return {**warm, **endpoint.extra}


def _missing(library: str) -> str:
    return f'the library {library} is not installed: pip install -c constraints.txt -e ".[api]", then run again'


def _key_variable(endpoint: Endpoint) -> str | None:
    return endpoint.key_variable or (None if endpoint.base_url else _SERVICES[endpoint.provider].key_variable)


def _connection(endpoint: Endpoint) -> dict[str, Any]:
    """Arguments of both clients. They retry nothing: the rate limit and the cost cap count every try."""
    variable = _key_variable(endpoint)
    key = os.environ.get(variable, "").strip() if variable else "none"  # the clients want some key
    if not key:
        raise UserError(f"no key for {endpoint.name}: set the environment variable {variable} to it and run again")
    address = endpoint.base_url or _SERVICES[endpoint.provider].address
    return {"api_key": key, "base_url": address, "timeout": endpoint.timeout, "max_retries": 0}
