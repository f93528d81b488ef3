"""One question with images to a server of Anthropic's or OpenAI's protocol: what is sent, and what comes back."""

from __future__ import annotations

import base64
import importlib
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from iadr1_lib.data import open_image
from iadr1_lib.errors import UserError, one_line

Status = Literal["ok", "refused", "truncated", "failed", "unsent"]

LARGEST_PNG = 3_500_000  # bytes; in base64 a third more, and 5 MB is the lowest limit of the providers
ADVICE = {  # where the same request again would fail again, by HTTP status
    401: "set a valid key in {key}",
    402: "top the account up",
    403: "choose another model or ask for access with the key in {key}",
    404: "check the model's name and base_url",
}


class TransientError(Exception):
    """A failure that may be gone at the next run; `unreachable` if there was no connection at all."""

    def __init__(self, message: str, unreachable: bool = False) -> None:
        super().__init__(message)
        self.unreachable = unreachable


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, and how it may be asked.

    Attributes:
        provider: the server's protocol, "anthropic" or "openai".
        model: the model's name, as the server knows it.
        base_url: the server's address; None for the provider's own. For vLLM: "http://localhost:8000/v1".
        key_variable: environment variable that holds the key; None for ANTHROPIC_API_KEY or OPENAI_API_KEY at the
            provider's own address and for no key elsewhere, so that no other server sees the provider's key.
        max_tokens: most tokens of a reply, the model's own thinking included.
        extra: further fields of the request's body, such as {"temperature": 0.0}.
        timeout: seconds that one try may take.
        requests_per_minute: None for no limit; retries count.
        concurrency: requests under way at the same time.
        retries: further tries after a transient failure (408, 409, 429, 5xx, time-out, lost connection, unreadable
            reply). The SDKs wait 0.5 s, doubled each time up to 8 s, or as long as Retry-After says.

    Raises:
        UserError: a value is out of range.
    """

    provider: Literal["anthropic", "openai"]
    model: str
    base_url: str | None = None
    key_variable: str | None = None
    max_tokens: int = 4000
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    requests_per_minute: float | None = None
    concurrency: int = 4
    retries: int = 7

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise UserError(f"unknown provider {self.provider!r}: choose from {', '.join(PROVIDERS)}")
        for name in ("max_tokens", "timeout", "requests_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} of {self.name} is {value}: set it above 0")
        if self.retries < 0:
            raise UserError(f"retries of {self.name} is {self.retries}: set it to 0 or above")

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
        return self.key_variable or (None if self.base_url else PROVIDERS[self.provider].key_variable)


@dataclass(frozen=True)
class Request:
    """One question: a system message, a text, and the images that go before it.

    An image of more than `max_pixels` pixels, or with a side of more than `max_side`, is scaled down, its shape kept.
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
        cached: whether it was kept from before and cost nothing now.
        answered: False if the server never answered, so that asking again may help.
        logprobs: of each token of the text, in order, {"token": its text, "top": {token: log-probability}}, where only
            the words yes and no have their alternatives in "top"; None unless the endpoint asks for them (`extra`) and
            the server gives them. OpenAI-compatible servers only.
    """

    text: str | None
    status: Status
    message: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached: bool = False
    answered: bool = True
    logprobs: list[dict[str, Any]] | None = None


# ------------------------------------------------------------------------------------------------------ images


def encode_image(path: Path, max_pixels: int, max_side: int | None = None) -> tuple[str, str]:
    """Media type and base64 of a picture, scaled down as `Request` says and without its metadata.

    PNG, since JPEG blurs fine scratches; JPEG where the PNG is larger than providers take.

    Raises:
        UserError: as `open_image`.
    """
    image = open_image(path)
    if (size := scaled_size(image.size, max_pixels, max_side)) != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    pixels = Image.frombytes("RGB", image.size, image.tobytes())  # no metadata
    media_type, data = "image/png", _saved(pixels, format="PNG")
    if len(data) > LARGEST_PNG:
        media_type, data = "image/jpeg", _saved(pixels, format="JPEG", quality=95)
    return media_type, base64.b64encode(data).decode()


def scaled_size(size: tuple[int, int], max_pixels: int, max_side: int | None) -> tuple[int, int]:
    """Width and height in pixels that are sent of a picture of this width and height."""
    longer = max(size)
    if max_side is not None and longer > max_side:
        size = max(1, size[0] * max_side // longer), max(1, size[1] * max_side // longer)  # the longer is max_side
    scale = math.sqrt(max_pixels / math.prod(size))
    return size if scale >= 1 else (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))


def _saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------- providers


class Provider:
    """A protocol, spoken by the provider's own SDK, which retries transient failures.

    Args:
        endpoint: whom to ask, and how.
        before_try: called with each HTTP request, those of retries too.
        after_try: called with each HTTP response, before the SDK decides whether to try again.

    Raises:
        UserError: the SDK is not installed, or no key is set.
    """

    address: ClassVar[str]
    key_variable: ClassVar[str]
    library: ClassVar[str]
    client_class: ClassVar[str]

    def __init__(self, endpoint: Endpoint, before_try: Callable[[Any], None], after_try: Callable[[Any], None]) -> None:
        self.endpoint = endpoint
        try:
            self.sdk: Any = importlib.import_module(self.library)
        except ImportError as error:
            advice = 'pip install -c constraints.txt -e ".[api]", then run again'
            raise UserError(f"the library {self.library} is not installed: {advice}") from error
        variable = endpoint.key_name
        key = os.environ.get(variable, "").strip() if variable else "none"  # the SDKs require some key
        if not key:
            raise UserError(f"no key for {endpoint.name}: set the environment variable {variable} to it and run again")
        self.client = getattr(self.sdk, self.client_class)(
            api_key=key,
            base_url=endpoint.address,
            timeout=endpoint.timeout,
            max_retries=endpoint.retries,
            http_client=self.sdk.DefaultHttpxClient(event_hooks={"request": [before_try], "response": [after_try]}),
        )

    def ask(self, request: Request) -> Reply:
        """Send a request and read the reply.

        Raises:
            TransientError: no readable reply after all retries.
            UserError: the server refuses the key, the model or the request; an image cannot be read.
        """
        images = [encode_image(path, request.max_pixels, request.max_side) for path in request.images]
        for _ in range(self.endpoint.retries + 1):
            try:
                return self.read(self.send(request, images))
            except self.sdk.APIStatusError as error:
                return self._read_status(error, request)
            except self.sdk.APITimeoutError as error:
                raise TransientError(f"no answer within {self.endpoint.timeout:g} seconds") from error
            except self.sdk.APIConnectionError as error:
                cause = one_line(error.__cause__ or error)
                raise TransientError(f"no connection to {self.endpoint.address} ({cause})", unreachable=True) from error
            except (self.sdk.APIError, ValueError, AttributeError, IndexError, TypeError) as error:
                unreadable = one_line(error)  # no JSON, or of another shape; the SDKs do not retry this
        raise TransientError(f"the reply cannot be read ({unreadable})")

    def send(self, request: Request, images: list[tuple[str, str]]) -> Any:
        """The server's answer, as the SDK's object; raises the SDK's errors, ValueError if it is no JSON."""
        raise NotImplementedError

    def read(self, answer: Any) -> Reply:
        """The reply in an answer; raises AttributeError, IndexError or TypeError for one of another shape."""
        raise NotImplementedError

    def _read_status(self, error: Any, request: Request) -> Reply:
        """A status of 400 or above: a refusal, a transient failure (raised), or a mistake of the user (raised)."""
        code, status, message = getattr(error, "code", None), error.status_code, one_line(error.message)
        if code in {"content_filter", "content_policy_violation"}:
            return Reply(None, "refused", f"{self.endpoint.name} refused: {message}")
        if code == "insufficient_quota":  # OpenAI's 429 for an empty account
            status = 402
        if status in {408, 409, 429} or status >= 500:
            raise TransientError(f"status {status}, {message}")
        images = ", ".join(map(str, request.images)) or "no image"
        advice = ADVICE.get(status, "change what the message names, or leave the image out")
        advice = advice.format(key=self.endpoint.key_name or "an environment variable (key_variable)")
        name = f"{self.endpoint.name} at {self.endpoint.address}"
        raise UserError(
            f"{name} rejects the request with {images} (status {status}, {message}): {advice}, then run again; "
            "replies are kept"
        ) from error


class AnthropicProvider(Provider):
    """The Messages API."""

    address = "https://api.anthropic.com"
    key_variable = "ANTHROPIC_API_KEY"
    library, client_class = "anthropic", "Anthropic"

    def send(self, request: Request, images: list[tuple[str, str]]) -> Any:
        sources = [{"type": "base64", "media_type": media_type, "data": data} for media_type, data in images]
        content = [{"type": "image", "source": source} for source in sources]
        return self.client.messages.create(
            model=self.endpoint.model,
            max_tokens=self.endpoint.max_tokens,
            messages=[{"role": "user", "content": [*content, {"type": "text", "text": request.text}]}],
            extra_body=self.endpoint.extra,
            **({"system": request.system} if request.system else {}),
        )

    def read(self, answer: Any) -> Reply:
        text = "".join(block.text for block in answer.content if block.type == "text")
        refusal = cut = None
        if answer.stop_reason == "refusal":
            refusal = getattr(answer.stop_details, "explanation", None) or "the model refused"
        elif answer.stop_reason in {"max_tokens", "model_context_window_exceeded"}:
            cut = answer.stop_reason
        return _reply(text, refusal, cut, (answer.usage.input_tokens, answer.usage.output_tokens))


class OpenAIProvider(Provider):
    """The Chat Completions API, which vLLM and others speak, too."""

    address = "https://api.openai.com/v1"
    key_variable = "OPENAI_API_KEY"
    library, client_class = "openai", "OpenAI"

    def send(self, request: Request, images: list[tuple[str, str]]) -> Any:
        urls = [f"data:{media_type};base64,{data}" for media_type, data in images]
        content: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: list[Any] = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": request.text}]})
        # OpenAI's newer models refuse the old name, some other servers do not know the new one.
        limit = "max_tokens" if self.endpoint.base_url else "max_completion_tokens"
        body = {limit: self.endpoint.max_tokens, **self.endpoint.extra}
        return self.client.chat.completions.create(model=self.endpoint.model, messages=messages, extra_body=body)

    def read(self, answer: Any) -> Reply:
        choice = answer.choices[0]
        refusal = getattr(choice.message, "refusal", None)
        if choice.finish_reason == "content_filter":
            refusal = refusal or "stopped by the content filter"
        cut = "max_tokens" if choice.finish_reason == "length" else None
        usage = getattr(answer, "usage", None)
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return _reply(choice.message.content or "", refusal, cut, tokens, _logprobs(choice))


PROVIDERS: dict[str, type[Provider]] = {"anthropic": AnthropicProvider, "openai": OpenAIProvider}


def _reply(
    text: str,
    refusal: str | None,
    cut: str | None,
    tokens: tuple[int | None, int | None],
    logprobs: list[dict[str, Any]] | None = None,
) -> Reply:
    status: Status
    if refusal:
        status, message = "refused", one_line(refusal)
    elif cut:
        status, message = "truncated", f"cut off ({cut})"
    elif text.strip():
        status, message = "ok", ""
    else:  # it was paid for, so it is kept; another attempt is another request
        status, message, text = "failed", "the reply holds no text", ""
    return Reply(text or None, status, message, *tokens, logprobs=logprobs)


def _logprobs(choice: Any) -> list[dict[str, Any]] | None:
    """Log-probabilities as `Reply` has them; None if the server gives none that can be read."""
    try:
        return [
            {
                "token": token.token,
                "top": {top.token: float(top.logprob) for top in token.top_logprobs} if yes_or_no(token.token) else {},
            }
            for token in choice.logprobs.content
        ]
    except (AttributeError, TypeError, ValueError):  # an addition to the answer: the answer itself is good
        return None


def yes_or_no(token: str) -> str | None:
    """The word yes or no that a token is, with marks and blanks around it (">Yes"), else None."""
    word = re.sub(r"[\W_]", "", token).lower()
    return word if word in ("yes", "no") else None
