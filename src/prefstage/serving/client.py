"""The client of OpenAI-compatible servers: patient with faults, and never asking twice."""

import asyncio
import ipaddress
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Queue
from threading import Thread
from typing import Any, Self, TypeVar, cast
from urllib.request import getproxies

import httpx2
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    stop_after_attempt,
    wait_combine,
    wait_random_exponential,
)

from prefstage.core import InputError, ServiceError, redacted, remember_secret, secret_from
from prefstage.serving.protocol import (
    INSTEAD,
    OPTIONAL,
    ChatReply,
    Fault,
    not_taken,
    read_chat,
    read_completion,
    read_models,
    read_response,
    server_wait_s,
    without_lone_surrogates,
)

T = TypeVar("T")
R = TypeVar("R")

_END = object()  # after the last result
_log = logging.getLogger(__name__)
_CONNECT_S = 30.0
_LARGEST_BYTES = 64 << 20  # of a reply
_LONGEST_BACKOFF_S = 60.0
_LONGEST_RETRY_AFTER_S = 600.0
_PROBE_S = 20.0  # for what nothing depends on


class RefusedRequestError(ServiceError):
    """The server refused a request, and would again.

    Attributes:
        status: HTTP status.
        reason: What the server said, in one line.
        of_content: Whether it refused what this one request holds, so that others may be
            answered; otherwise it would refuse every request.
    """

    status: int = 0
    reason: str = ""
    of_content: bool = False


class ServerClient:
    """Speaks to one OpenAI-compatible server; use it as ``async with client:``.

    A request is sent again after refused, reset or truncated connections, time-outs, HTTP
    408, 423 to 425, 429, 498 and 5xx, and bodies that are not the JSON that is due. A request that
    was answered is never sent again; a retry after a lost answer is unavoidable and is counted.
    Where a fault outlasts all retries, a tiny request shows whose it is: if that is answered and
    the first still is not, the fault lies in what it holds.
    A field that the server names as unknown or unsupported is left out from then on, with a
    warning (`max_tokens` becomes `max_completion_tokens`).

    Args:
        base_url: Such as ``http://127.0.0.1:8000`` (``/v1`` is added where no path is
            given) or ``https://host/api/v1``. A query (``?api-version=…``) goes with every
            request; the end of a pasted endpoint (``/chat/completions``) is taken off.
        model: The model's name on the server; None where the server has only one and does
            not ask for its name.
        api_key_env: Environment variable that holds the API key, if the server wants one.
            The key is sent to the server and written nowhere.
        concurrency: Requests in flight at most, >= 1.
        timeout_s: Seconds for one attempt, queueing at the server included, > 0.
        retries: Attempts after the first, >= 0.
        backoff_s: First upper bound of the random wait before a retry; doubles each time,
            up to a minute. Seconds.
        without: Fields that the server is known not to take, perhaps in one string with commas:
            left out from the first request on.

    Attributes:
        usage: What it did so far: HTTP "requests" sent, retries included; "replies" received
            whole; "retries", sent again after a fault; "failures", given up; "prompt_tokens" and
            "completion_tokens" of the answers, as the server counts them.

    Raises:
        InputError: If the URL is not one of http or https, or a number is out of range.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 600.0,
        retries: int = 8,
        backoff_s: float = 0.5,
        without: str | Collection[str] = (),
    ) -> None:
        self.base_url, self._login = _checked_url(base_url)
        self.model = model
        for name, value, enough, expected in (
            ("concurrency", concurrency, concurrency >= 1, "1 or more"),
            ("retries", retries, retries >= 0, "0 or more"),
            ("timeout_s", timeout_s, timeout_s > 0, "more than 0 seconds"),
        ):
            InputError.unless(
                enough, saw=f"{name}={value:g}", expected=expected, cure=f"raise {name}"
            )
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self.usage: Counter[str] = Counter(
            dict.fromkeys(("requests", "replies", "retries", "failures"), 0)
            | {"prompt_tokens": 0, "completion_tokens": 0}
        )
        self._api_key_env = api_key_env
        names = without.split(",") if isinstance(without, str) else without
        self._without = {name.strip() for name in names if name.strip()}
        for name in sorted(self._without - {*OPTIONAL}):
            raise InputError.of(
                saw=f"without={name}", expected=f"some of {', '.join(OPTIONAL)}", cure="fix it"
            )
        # After what the server asks for, exponential backoff with full jitter: before retry k
        # U(0, min(max, multiplier·2^k)). Source: Brooker 2015, "Exponential Backoff And Jitter",
        # AWS Architecture Blog.
        self._wait = wait_combine(
            server_wait_s, wait_random_exponential(multiplier=backoff_s, max=_LONGEST_BACKOFF_S)
        )
        self._http: httpx2.AsyncClient | None = None
        self._slots = asyncio.Semaphore(concurrency)

    async def __aenter__(self) -> Self:
        """Open the connections."""
        key, headers = secret_from(self._api_key_env), dict[str, str]()
        if key:
            headers["Authorization"] = f"Bearer {key}"
            if "api-version" in httpx2.URL(self.base_url).params:  # Azure knows a key by this name
                headers["api-key"] = key
        self._slots = asyncio.Semaphore(self.concurrency)
        with InputError.instead_of(
            *(ImportError, ValueError, OSError, TypeError, httpx2.InvalidURL),
            saw="the connection cannot be made as the environment says ({error})",
            expected="proxies (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) as http://HOST:PORT or, with "
            "the package socksio, socks5://HOST:PORT, and certificates (SSL_CERT_FILE, "
            "SSL_CERT_DIR) that are there",
            cure="mend or unset these variables",
        ):
            self._http = httpx2.AsyncClient(
                headers=headers,
                auth=self._login,
                # The time-out of a whole attempt is ours: httpx would begin anew with each byte.
                timeout=httpx2.Timeout(None, connect=_CONNECT_S),
                limits=httpx2.Limits(max_connections=self.concurrency),
                trust_env=not _is_loopback(self.base_url),  # a proxy cannot reach our loopback
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> ChatReply:
        """Ask for one answer to a conversation (/v1/chat/completions).

        Args:
            messages: The conversation, each message with `role` and `content`.
            **options: Further fields of the request: temperature, top_p, max_tokens, seed,
                logprobs, top_logprobs, stop, ...

        Returns:
            The answer.

        Raises:
            RefusedRequestError: If the server refuses the request.
            ServiceError: If faults outlast all retries.
        """
        return await self._ask(
            "chat/completions", {"messages": list(map(dict, messages)), **options}, read_chat
        )

    async def complete(self, prompt: str, **options: Any) -> ChatReply:
        """Ask for one continuation of a text (/v1/completions), for models without a template.

        Args:
            prompt: The text to continue.
            **options: As in `chat`; `logprobs` is a number here.

        Returns:
            The continuation.

        Raises:
            ServiceError: As in `chat`.
        """
        return await self._ask("completions", {"prompt": prompt, **options}, read_completion)

    async def models(self) -> list[str]:
        """Ask which models the server offers (/v1/models).

        Returns:
            Their names.

        Raises:
            ServiceError: As in `chat`.
        """
        return await self._send("GET", self._url("models"), None, read_models)

    async def describe(self) -> Mapping[str, Any]:
        """Ask for the server's OpenAPI description.

        Returns:
            The description, or an empty one where the server has none, or does not answer:
            nothing depends on it but the dialect, and the next request will tell.
        """
        base = httpx2.URL(self.base_url)
        url = str(base.copy_with(path=base.path.removesuffix("/v1") + "/openapi.json"))
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_PROBE_S):
                body = await self._send("GET", url, None, lambda body: body, patience=1)
            return body if isinstance(body, dict) else {}
        return {}

    async def _ask(
        self, path: str, body: dict[str, Any], read: Callable[[Any], ChatReply]
    ) -> ChatReply:
        body |= {} if self.model is None else {"model": self.model}
        url, patience = self._url(path), None
        while True:
            for name in self._without & {*body}:
                value = body.pop(name)
                if name in INSTEAD:
                    body[INSTEAD[name]] = value
            if "messages" in body and "logprobs" not in body:
                body.pop("top_logprobs", None)
            try:
                reply = await self._send("POST", url, body, read, patience=patience)
                break
            except ServiceError as error:
                fault = cast(Fault, error.__cause__)
                if fault.wait_s is None:
                    name = not_taken(fault, [*body])
                    if not name:
                        raise
                    self._leave_out(name, self._shown(fault))
                # A reply without a choice is no outage; what else broke may be one, and as well
                # when others were answered a moment ago.
                elif fault.of_content and (
                    patience == 0 or (fault.retries is not None and self.usage["replies"])
                ):
                    raise self._refusal(url, fault) from fault
                elif fault.of_content and await self._answers(url, body, read):
                    patience = 0
                else:
                    raise
        self.usage.update(
            replies=1,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        return reply

    # Whether the server answers a tiny request of the same kind just now.
    async def _answers(self, url: str, body: dict[str, Any], read: Callable[[Any], Any]) -> bool:
        hello = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi"}
        tiny = {**hello, "max_tokens": 1, "max_completion_tokens": 1}
        asked = {**body, **{name: value for name, value in tiny.items() if name in body}}
        with suppress(ServiceError):
            await self._send("POST", url, asked, read, patience=0)
            return True
        return False

    def _leave_out(self, name: str, said: str) -> None:
        if name not in self._without:
            change = f"sent as {INSTEAD[name]}" if name in INSTEAD else "left out"
            _log.warning("%s is not taken by the server: %s from now on (%s)", name, change, said)
        self._without.add(name)

    def _url(self, path: str) -> str:
        base = httpx2.URL(self.base_url)
        return str(base.copy_with(path=f"{base.path}/{path}"))

    async def _send(
        self,
        method: str,
        url: str,
        body: dict[str, Any] | None,
        read: Callable[[Any], T],
        *,
        patience: int | None = None,
    ) -> T:
        retries = self.retries if patience is None else min(patience, self.retries)
        limited: Counter[int] = Counter()  # faults that are not worth all retries

        def again(state: RetryCallState) -> bool:
            fault = state.outcome.exception() if state.outcome else None
            if not isinstance(fault, Fault) or fault.wait_s is None:
                return False
            if fault.retries is None:
                return True
            limited[fault.retries] += 1
            return limited[fault.retries] <= fault.retries

        attempts = AsyncRetrying(
            stop=stop_after_attempt(1 + retries),
            wait=self._wait,
            retry=again,
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            async with self._slots:
                return await attempts(self._attempt, method, url, body, read)
        except Fault as fault:
            self.usage["failures"] += patience is None
            if fault.wait_s is None:
                raise self._refusal(url, fault) from fault
            through = ""
            if not (fault.status or _is_loopback(url)) and getproxies():
                through = ", that the proxy does which HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names"
            tries = attempts.statistics["attempt_number"]
            raise ServiceError.of(
                saw=f"{url}: {self._shown(fault)}, {tries} {'time' if tries == 1 else 'times'}",
                expected="an answer",
                cure=f"check that the server runs and is not overloaded{through}; then repeat the "
                "command",
            ) from fault

    def _shown(self, fault: Fault) -> str:
        return redacted(str(fault))

    def _refusal(self, url: str, fault: Fault) -> RefusedRequestError:
        reason = self._shown(fault)
        error = RefusedRequestError.of(
            saw=f"{url}: {reason}",
            expected="an answer",
            cure=f"set the environment variable {self._api_key_env} to a valid API key"
            if fault.status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN)
            else "change the request as the server says",
        )
        error.status, error.reason, error.of_content = fault.status, reason, fault.of_content
        return error

    async def _attempt(
        self, method: str, url: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T:
        if self._http is None:
            raise RuntimeError("use the client inside `async with client:`")
        self.usage["requests"] += 1
        sent: dict[str, Any] = {}
        if body is not None:
            text = without_lone_surrogates(json.dumps(body, ensure_ascii=False))
            sent = {"content": text.encode(), "headers": {"content-type": "application/json"}}
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._http.stream(method, url, **sent) as response,
            ):
                parts, size = list[bytes](), 0
                async for part in response.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _LARGEST_BYTES:
                        limit = f"an answer of more than {_LARGEST_BYTES >> 20} MiB"
                        raise Fault(limit, wait_s=None, of_content=True)
        except TimeoutError:
            raise Fault(f"no answer within {self.timeout_s:g} s", of_content=True) from None
        except (httpx2.TransportError, httpx2.DecodingError, ExceptionGroup) as error:
            # A group: of a port beyond 65535, such as a proxy's.
            cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            raise Fault(f"{type(cause).__name__} {cause}".strip(), of_content=True) from None
        content = b"".join(parts)
        return read_response(response, content, read, longest_wait_s=_LONGEST_RETRY_AFTER_S)

    def _count_retry(self, _state: RetryCallState) -> None:
        self.usage["retries"] += 1


# The URL, and the user and password in it, which stand in no text from now on.
def _checked_url(url: str) -> tuple[str, tuple[str, str] | None]:
    parsed = httpx2.URL("")
    with suppress(httpx2.InvalidURL):
        parsed = httpx2.URL(url)
    InputError.unless(
        parsed.scheme in ("http", "https") and parsed.host,
        saw=f"server URL {redacted(url)!r}",
        expected="http://HOST:PORT or https://HOST/PATH",
        cure="write the whole URL",
    )
    path = parsed.path.rstrip("/")
    for endpoint in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(endpoint)
    login = (parsed.username, parsed.password) if parsed.password else None
    remember_secret(parsed.password)
    for name, value in parsed.params.multi_items():
        if redacted(f"?{name}={value}") != f"?{name}={value}":
            remember_secret(value)
    whole = parsed.copy_with(path=path.rstrip("/") or "/v1", userinfo=b"")
    return str(whole), login


def _is_loopback(url: str) -> bool:
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def ask_all(
    client: ServerClient, items: Iterable[T], ask: Callable[[T], Awaitable[R]]
) -> Iterator[R]:
    """Ask about every item, `client.concurrency` at a time, and give results as they come.

    What must be kept whatever happens next (an answer that was paid for) is written to disk
    inside `ask`, right after it arrives.

    Args:
        client: Opened here, and closed at the end.
        items: What to ask about; taken one by one as requests become free.
        ask: Asks about one item through `client` and gives the result.

    Yields:
        The result of each item, in the order of arrival.

    Raises:
        Exception: The first that `ask` raised, after the requests in flight have been
            answered and their results yielded; no new ones are begun.
    """
    results: Queue[R | object] = Queue()
    errors: list[Exception] = []
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:  # shared by all workers: each item goes to one of them
            try:
                results.put(await ask(item))
            except Exception as error:  # the others finish what is in flight
                errors.append(error)
            if errors:
                return

    async def work_on_all() -> None:
        async with client:
            await asyncio.gather(*(work() for _ in range(client.concurrency)))

    # The event loop has a thread of its own: a slow consumer of the results must neither delay
    # answers nor let them time out.
    loop = asyncio.new_event_loop()
    task = loop.create_task(work_on_all())

    def run() -> None:
        try:
            with suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        except Exception as error:
            errors.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            results.put(_END)

    thread = Thread(target=run, name="prefstage-asking", daemon=True)
    thread.start()
    try:
        while (result := results.get()) is not _END:
            yield cast(R, result)
    finally:
        with suppress(RuntimeError):  # the loop is closed: all is done
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
    if errors:
        raise errors[0]
