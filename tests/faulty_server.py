"""An OpenAI-compatible server on loopback that fails as real ones do; replies are scripted.

with FaultyServer(lambda body: Scripted("yes"), fault_rate=0.3) as server:
    ServerClient(server.url, "any-model")
server.delivered[key_of(body)]     # answers sent whole, by content of the request
"""

import asyncio
import hashlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from threading import Thread
from types import TracebackType
from typing import Any, Self

Body = dict[str, Any]

FAULTS = (
    "500",
    "503",
    "429-seconds",
    "429-date",
    "timeout",
    "truncated-json",
    "truncated-body",
    "wrong-type",
    "wrong-shape",
    "reset",
    "reset-after-head",
)


@dataclass(frozen=True)
class Scripted:
    """What the server shall answer to one request.

    `top_logprobs` (one mapping from token to log-prob per generated token) is sent only if
    the request asks for `logprobs`. `message` holds further fields of a chat reply's message. A
    `status` other than 200 sends `error` instead; `raw`, if there is one, is the whole body, with
    its content type and further headers.
    """

    text: str = ""
    finish_reason: str = "stop"
    prompt_tokens: int = 7
    completion_tokens: int = 3
    top_logprobs: Sequence[Mapping[str, float]] | None = None
    status: int = 200
    error: str = "refused"
    delay_s: float = 0.0
    message: Mapping[str, Any] = field(default_factory=dict)
    raw: str | None = None
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


def key_of(body: Body) -> str:
    """Name a request by its content."""
    return json.dumps(body, sort_keys=True)


class FaultyServer:
    """Runs in a thread of its own while the `with` block lasts.

    Args:
        reply: The answer to a request body; a str is an answer with that text.
        fault_rate: Share of POST requests that fail, decided by request content and attempt.
        faults: Which of `FAULTS` happen, each as likely.
        seed: Of the faults.
        models: Names that /v1/models lists.
        openapi: What /openapi.json gives; None is a 404.

    Attributes:
        url: Where it listens.
        requests: Every POST body received, in order.
        headers: The headers of every POST, lower-case names.
        delivered: Answers sent whole, by `key_of(body)`.
        faults_sent: How often each fault was sent.
    """

    def __init__(
        self,
        reply: Callable[[Body], Scripted | str] = lambda body: Scripted("ok"),
        *,
        fault_rate: float = 0.0,
        faults: Sequence[str] = FAULTS,
        seed: int = 0,
        models: Sequence[str] = ("scripted",),
        openapi: Body | None = None,
    ) -> None:
        self._reply, self._rate, self._faults, self._seed = reply, fault_rate, faults, seed
        self._models, self._openapi = models, openapi
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.delivered: Counter[str] = Counter()
        self.faults_sent: Counter[str] = Counter()
        self.most_at_once = 0
        self._at_once = 0
        self._attempts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        self._thread = Thread(target=self._serve, daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket)
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._one_request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _one_request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split(" ")
        fields = [line.split(": ", 1) for line in head[1:] if line]
        headers = {name.lower(): value for name, value in fields}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            return await self._get(path, writer)
        body = json.loads(raw)
        self.requests.append(body)
        self.headers.append(headers)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._post(path, body, reader, writer)
        finally:
            self._at_once -= 1

    async def _get(self, path: str, writer: asyncio.StreamWriter) -> bool:
        pages: dict[str, Any] = {
            "/v1/models": {"data": [{"id": name, "object": "model"} for name in self._models]},
            "/health": {"status": "ok"},
        }
        if self._openapi is not None:
            pages["/openapi.json"] = self._openapi
        found = path in pages
        await _send(writer, 200 if found else 404, json.dumps(pages.get(path, {"detail": "none"})))
        return True

    async def _post(
        self, path: str, body: Body, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        key = key_of(body)
        fault = self._fault_for(key)
        answer = self._reply(body)
        scripted = Scripted(answer) if isinstance(answer, str) else answer
        await asyncio.sleep(scripted.delay_s)
        if fault is not None:
            self.faults_sent[fault] += 1
            return await _fail(fault, reader, writer, self._whole(path, body, scripted))
        if scripted.raw is not None:
            extra = "".join(f"{name}: {value}\r\n" for name, value in scripted.headers.items())
            sent = {"kind": scripted.kind, "extra": extra}
            await _send(writer, scripted.status, scripted.raw, **sent)
            return True
        if scripted.status != 200:
            error = {"error": {"message": scripted.error, "code": None}}
            await _send(writer, scripted.status, json.dumps(error))
            return True
        await _send(writer, 200, self._whole(path, body, scripted))
        self.delivered[key] += 1
        return True

    def _fault_for(self, key: str) -> str | None:
        attempt = self._attempts[key]
        self._attempts[key] += 1
        name = hashlib.sha256(f"{self._seed} {key} {attempt}".encode()).digest()
        dice = random.Random(name)
        return dice.choice(list(self._faults)) if dice.random() < self._rate else None

    def _whole(self, path: str, body: Body, scripted: Scripted) -> str:
        choice: Body = {"index": 0, "finish_reason": scripted.finish_reason}
        top = scripted.top_logprobs if body.get("logprobs") else None
        if path.endswith("/chat/completions"):
            choice["message"] = {"role": "assistant", "content": scripted.text, **scripted.message}
            if top is not None:
                choice["logprobs"] = {"content": [_chat_token(token) for token in top]}
        else:
            choice["text"] = scripted.text
            if top is not None:
                choice["logprobs"] = {"top_logprobs": [dict(token) for token in top]}
        usage = {
            "prompt_tokens": scripted.prompt_tokens,
            "completion_tokens": scripted.completion_tokens,
            "total_tokens": scripted.prompt_tokens + scripted.completion_tokens,
        }
        return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage})


def _chat_token(token: Mapping[str, float]) -> Body:
    best = max(token, key=lambda text: token[text])
    tops = [{"token": text, "logprob": value} for text, value in token.items()]
    return {"token": best, "logprob": token[best], "top_logprobs": tops}


async def _send(
    writer: asyncio.StreamWriter,
    status: int,
    text: str,
    *,
    kind: str = "application/json",
    extra: str = "",
    cut: int = 0,
) -> None:
    """Send a response; `cut` bytes of its announced length are left out."""
    data = text.encode()
    kind = f"content-type: {kind}\r\n" if kind else ""
    head = f"HTTP/1.1 {status} X\r\n{kind}content-length: {len(data)}\r\n{extra}\r\n"
    writer.write(head.encode() + data[: len(data) - cut])
    await writer.drain()


async def _fail(
    fault: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: str
) -> bool:
    """Send one fault; gives whether the connection can go on."""
    error = json.dumps({"error": {"message": f"injected {fault}"}})
    date = format_datetime(datetime.now(UTC), usegmt=True)
    sendings: dict[str, Callable[[], Awaitable[None]]] = {
        "500": lambda: _send(writer, 500, error),
        "503": lambda: _send(writer, 503, error),
        "429-seconds": lambda: _send(writer, 429, error, extra="retry-after: 0.05\r\n"),
        "429-date": lambda: _send(writer, 429, error, extra=f"retry-after: {date}\r\n"),
        "truncated-json": lambda: _send(writer, 200, whole[: len(whole) // 2]),
        "truncated-body": lambda: _send(writer, 200, whole, cut=len(whole) // 2),
        "wrong-type": lambda: _send(writer, 200, "<html>sign in</html>", kind="text/html"),
        "wrong-shape": lambda: _send(writer, 200, '{"choices": []}'),
        "timeout": lambda: _wait_for_hangup(reader),
        "reset": lambda: _reset(writer),
        "reset-after-head": lambda: _reset(writer, after=b"HTTP/1.1 200 OK\r\ncontent-"),
    }
    await sendings[fault]()
    return fault not in ("truncated-body", "timeout", "reset", "reset-after-head")


async def _wait_for_hangup(reader: asyncio.StreamReader) -> None:
    await reader.read()


async def _reset(writer: asyncio.StreamWriter, *, after: bytes = b"") -> None:
    """Drop the connection with RST, as a crashed server or a lost route does."""
    writer.write(after)
    await writer.drain()
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
