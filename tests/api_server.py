"""A local server that answers like Anthropic's and OpenAI's, with faults on demand."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from iadr1_lib.remote import Endpoint, Remote


@dataclass(frozen=True)
class Step:
    """What the server does with one request: wait, then answer, or drop the connection."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


def anthropic_reply(text: str, stop_reason: str = "end_turn", tokens: tuple[int, int] = (1000, 100)) -> Step:
    """A message as /v1/messages gives it: models that think put a block of thinking before the text."""
    thinking = {"type": "thinking", "thinking": "hm", "signature": "s"}
    content = [thinking, {"type": "text", "text": text}] if text else []
    body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-test", "content": content}
    body |= {"stop_reason": stop_reason, "usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]}}
    if stop_reason == "refusal":
        body["stop_details"] = {"type": "refusal", "category": None, "explanation": "I would rather not."}
    return Step(body)


def openai_reply(
    text: str | None, finish_reason: str = "stop", refusal: str | None = None, tokens: tuple[int, int] = (1000, 100)
) -> Step:
    """A completion as /v1/chat/completions gives it."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-test"}
    return Step(body | {"choices": [choice], "usage": usage})


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Step:
    """An error in a shape that both libraries read; header names with _ for -."""
    body = {"type": "error", "error": {"type": "some_error", "message": message, "code": code}}
    return Step(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Seen:
    """One request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    time: float

    @property
    def content(self) -> list[dict[str, Any]]:
        """The parts of the user's message."""
        return self.body["messages"][-1]["content"]

    @property
    def text(self) -> str:
        return str(self.content[-1]["text"])

    @property
    def picture(self) -> Image.Image:
        """The only picture of the message."""
        (part,) = self.content[:-1]
        data = part["source"]["data"] if part["type"] == "image" else part["image_url"]["url"].partition(",")[2]
        return Image.open(io.BytesIO(base64.b64decode(data)))

    def reply(self, text: str, **options: Any) -> Step:
        """A reply in the protocol of the request."""
        return (anthropic_reply if self.path.endswith("/messages") else openai_reply)(text, **options)


class ApiServer:
    """Answers each request with `answer(number, seen)`; by default it echoes the text.

    `seen` lists the requests, `most_at_once` is the largest number that were under way together.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int, Seen], Step] = lambda number, seen: self.echo(seen)
        self.seen: list[Seen] = []
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def script(self, *steps: Step) -> None:
        """Answer the first requests with these steps, in order, and echo the rest."""
        self.answer = lambda number, seen: steps[number] if number < len(steps) else self.echo(seen)

    @staticmethod
    def echo(seen: Seen) -> Step:
        return seen.reply(f"echo {seen.text}")

    def connect(self, endpoint: Endpoint, folder: Path, cost_cap: float | None = None, **settings: Any) -> Remote:
        """A Remote that asks this server in place of the endpoint's own, with the key in TEST_KEY."""
        url = self.url if endpoint.provider == "anthropic" else f"{self.url}/v1"
        local = {"base_url": url, "key_variable": "TEST_KEY", "timeout": 10, **settings}
        return Remote(replace(endpoint, **local), folder, cost_cap)

    def _take(self, seen: Seen) -> Step:
        with self._lock:
            number = len(self.seen)
            self.seen.append(seen)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        return self.answer(number, seen)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                step = api._take(Seen(self.path, headers, body, time.monotonic()))
                time.sleep(step.delay)
                with api._lock:
                    api._now -= 1
                if step.drop:
                    self.close_connection = True
                    self.connection.close()
                    return
                data = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
                self.send_response(step.status)
                for name, value in {"content-type": "application/json", **step.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, ValueError):  # the client has gone, or we dropped it
                    self.close_connection = True

            def log_message(self, *words: Any) -> None:
                pass

        return Handler
