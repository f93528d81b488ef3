"""One question with images to a server of Anthropic's or OpenAI's protocol: a `Request` goes in, a `Reply` comes out.

`Endpoint` says whom to ask; begin with `Provider.ask`. The SDKs retry and time out.
"""

from __future__ import annotations

import base64
import importlib
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError, one_line

LONGEST_PAUSE = 120  # seconds; a server that asks for a longer one will not be back during this run
REFUSALS = {"content_filter", "content_policy_violation"}  # OpenAI's error codes


class TransientError(Exception):
    """A failure that may be gone at the next run."""


class UnreachableError(TransientError):
    """There was no connection at all."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, and how it may be asked. Raises UserError for a value out of range."""

    provider: Literal["anthropic", "openai"]  # the server's protocol
    model: str  # as the server calls it
    base_url: str | None = None  # the provider's own by default; "http://localhost:8000/v1" for vLLM
    # Environment variable with the key; by default ANTHROPIC_API_KEY or OPENAI_API_KEY at the provider's own address
    # and no key elsewhere, so that no other server sees it.
    key_variable: str | None = None
    max_tokens: int = 4000  # of a reply, the model's own thinking included
    timeout: float = 120.0  # seconds of one try
    requests_per_minute: float | None = None  # no limit by default; retries do not count
    concurrency: int = 4  # requests under way at the same time
    # After 408, 409, 429, 5xx, a time-out or a lost connection. The SDKs wait 0.5 s, doubled each time up to 8 s, or as
    # long as Retry-After says.
    retries: int = 7

    def __post_init__(self) -> None:
        for name in ("max_tokens", "timeout", "requests_per_minute", "concurrency"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"{name} of {self.name} is {value}: set it above 0")

    @property
    def name(self) -> str:
        """Provider and model, such as "anthropic/claude-haiku-5-5"."""
        return f"{self.provider}/{self.model}"

    @property
    def address(self) -> str:
        """The server's address."""
        return self.base_url or PROVIDERS[self.provider].address

    @property
    def key_name(self) -> str | None:
        """The environment variable that holds the key; None if the server needs none."""
        return self.key_variable or (None if self.base_url else f"{self.provider.upper()}_API_KEY")


@dataclass(frozen=True)
class Request:
    """One question: a system message, a text, and the images that go before it.

    An image with a side of more than `max_side` pixels is scaled down, its shape kept.
    `attempt` is not sent: the same question under another number is a new request, not answered from the cache.
    """

    system: str
    text: str
    images: tuple[Path, ...] = ()
    attempt: int = 0
    max_side: int = 1024


@dataclass(frozen=True)
class Reply:
    """What came back. A row of replies.jsonl holds it as it is.

    Status is "refused" by the model or a content filter, "truncated" at max_tokens, "failed" in spite of all retries or
    without text, "unsent" because of the cost cap, else "ok".
    """

    text: str | None  # of a truncated reply as far as it goes
    status: Literal["ok", "refused", "truncated", "failed", "unsent"]
    message: str = ""  # for every status but "ok" a sentence that says why
    input_tokens: int | None = None  # as the server counted them; None if it did not
    output_tokens: int | None = None
    cached: bool = False  # kept from before: it cost nothing now
    answered: bool = True  # False if the server never answered, so that asking again may help


def encode_image(path: Path, max_side: int) -> str:
    """A picture as PNG in base64, scaled down as `Request` says and without its metadata; errors as `open_image`.

    PNG, since JPEG blurs fine scratches; a million pixels stay below 5 MB, the lowest limit of the providers.
    """
    image = open_image(path)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    Image.frombytes("RGB", image.size, image.tobytes()).save(buffer, format="PNG")  # the pixels alone
    return base64.b64encode(buffer.getvalue()).decode()


class Provider:
    """A protocol, spoken by the provider's own SDK.

    Raises:
        UserError: the SDK is not installed, or no key is set.
    """

    address: ClassVar[str]
    client_class: ClassVar[str]

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        try:
            self.sdk: Any = importlib.import_module(endpoint.provider)
        except ImportError as error:
            advice = 'pip install -c constraints.txt -e ".[api]", then run again'
            raise UserError(f"the library {endpoint.provider} is not installed: {advice}") from error
        variable = endpoint.key_name
        key = os.environ.get(variable, "").strip() if variable else "none"  # the SDKs require some key
        if not key:
            raise UserError(f"no key for {endpoint.name}: set the environment variable {variable} to it and run again")
        self.client = getattr(self.sdk, self.client_class)(
            api_key=key,
            base_url=endpoint.address,
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
            http_client=self.sdk.DefaultHttpxClient(event_hooks={"response": [_refuse_long_pause]}),
        )

    def ask(self, request: Request) -> Reply:
        """Send a request and read the reply.

        Raises:
            TransientError: no readable reply, or none after all retries.
            UserError: the server rejects the key, the model or the request; an image cannot be read.
        """
        images = [encode_image(path, request.max_side) for path in request.images]
        try:
            return self.answer(request, images)
        except self.sdk.APIStatusError as error:
            return self._read_status(error, request)
        except self.sdk.APITimeoutError as error:
            raise TransientError(f"no answer within {self.endpoint.timeout:g} seconds") from error
        except self.sdk.APIConnectionError as error:
            cause = one_line(error.__cause__ or error)
            raise UnreachableError(f"no connection to {self.endpoint.address} ({cause})") from error
        except (self.sdk.APIError, ValueError, AttributeError, IndexError, TypeError) as error:  # no JSON, other shape
            raise TransientError(f"the reply cannot be read ({one_line(error)})") from error

    def answer(self, request: Request, images: list[str]) -> Reply:
        """The server's reply to a request with images in base64; errors are the SDK's, or those of a wrong shape."""
        raise NotImplementedError

    def _read_status(self, error: Any, request: Request) -> Reply:
        """A status of 400 or above: a refusal, a transient failure (raised), or a mistake of the user (raised)."""
        code, status, message = getattr(error, "code", None), error.status_code, one_line(error.message)
        if code in REFUSALS:
            return Reply(None, "refused", f"{self.endpoint.name} refused: {message}")
        if status in {408, 409, 429} and code != "insufficient_quota" or status >= 500:
            raise TransientError(f"status {status}, {message}")
        images = ", ".join(map(str, request.images)) or "no image"
        raise UserError(
            f"{self.endpoint.name} at {self.endpoint.address} rejects the request with {images} (status {status}, "
            f"{message}): check key, model and base_url, then run again; replies are kept"
        ) from error


def _refuse_long_pause(response: Any) -> None:
    """Have Anthropic's SDK give up where the server asks for a pause of hours, as OpenAI's does by itself."""
    pause = response.headers.get("retry-after", "")
    if pause.isdigit() and int(pause) > LONGEST_PAUSE:
        response.headers["x-should-retry"] = "false"


class AnthropicProvider(Provider):
    """The Messages API."""

    address, client_class = "https://api.anthropic.com", "Anthropic"

    def answer(self, request: Request, images: list[str]) -> Reply:
        sources = [{"type": "base64", "media_type": "image/png", "data": image} for image in images]
        content = [{"type": "image", "source": source} for source in sources]
        answer = self.client.messages.create(
            model=self.endpoint.model,
            max_tokens=self.endpoint.max_tokens,
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": request.text}]}],
            **({"system": request.system} if request.system else {}),
        )
        text = "".join(block.text for block in answer.content if block.type == "text")
        stop, refusal = answer.stop_reason, None
        if stop == "refusal":
            refusal = getattr(answer.stop_details, "explanation", None) or "the model refused"
        cut = stop if stop in {"max_tokens", "model_context_window_exceeded"} else None
        return _reply(text, refusal, cut, (answer.usage.input_tokens, answer.usage.output_tokens))


class OpenAIProvider(Provider):
    """The Chat Completions API, which vLLM and others speak, too."""

    address, client_class = "https://api.openai.com/v1", "OpenAI"

    def answer(self, request: Request, images: list[str]) -> Reply:
        urls = [f"data:image/png;base64,{image}" for image in images]
        content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": request.text}]})
        # OpenAI's newer models refuse the old name, some other servers do not know the new one.
        limit = "max_tokens" if self.endpoint.base_url else "max_completion_tokens"
        body = {limit: self.endpoint.max_tokens}
        answer = self.client.chat.completions.create(model=self.endpoint.model, messages=messages, extra_body=body)
        choice, usage = answer.choices[0], getattr(answer, "usage", None)
        refusal = getattr(choice.message, "refusal", None)
        if choice.finish_reason == "content_filter":
            refusal = refusal or "stopped by the content filter"
        cut = "max_tokens" if choice.finish_reason == "length" else None
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return _reply(choice.message.content or "", refusal, cut, tokens)


PROVIDERS: dict[str, type[Provider]] = {"anthropic": AnthropicProvider, "openai": OpenAIProvider}


def _reply(text: str, refusal: str | None, cut: str | None, tokens: tuple[int | None, int | None]) -> Reply:
    reply = Reply(text or None, "ok", "", *tokens)
    if refusal:
        return replace(reply, status="refused", message=one_line(refusal))
    if cut:
        return replace(reply, status="truncated", message=f"cut off ({cut})")
    if not text.strip():  # it was paid for, so it is kept; another attempt is another request
        return replace(reply, text=None, status="failed", message="the reply holds no text")
    return reply
