"""The one client of OpenAI-compatible servers: concurrent chat, completions and embeddings.

vLLM, SGLang, llama.cpp, `transformers serve` and OpenAI itself speak this protocol. All retries
happen here. Requests go directly over aiohttp: a request through the `openai` package costs five
times the processor time (1.4 ms instead of 0.3 ms), which would limit the number of chunks of a
corpus that can be annotated per second.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import Field, field_validator

from anchored.config import Config
from anchored.errors import ConfigError, EndpointError, RequestFailed
from anchored.throttle import Limiter, RateLimit

CHARACTERS_A_TOKEN = 4  # an estimate for English; `Reply` has the real counts
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
SHOWN = 300  # characters of a server's message
FIND_WITHIN = 20.0  # seconds
LOST_IN_A_ROW = 10  # consecutive failures after which a server counts as down

T = TypeVar("T")
R = TypeVar("R")


class EndpointConfig(Config):
    """The address of a served model, and limits on the requests to it.

    The key is read from the environment variable `key_env` and sent to `url` only. If the variable
    is unset, the word "none" is sent.
    """

    url: str = Field(description="base address; `/v1` is added if it has no path")
    model: str = Field(min_length=1)
    key_env: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    concurrency: int = Field(default=64, ge=1, description="maximum number of requests in flight")
    timeout: float = Field(default=300.0, gt=0, description="seconds to wait for one answer")
    attempts: int = Field(
        default=5, ge=1, description="tries per request; a 429 does not count as one"
    )
    patience: float = Field(
        default=900.0, ge=0, description="seconds that one request may wait after 429s, in total"
    )
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an address; write http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("contains a secret or a query; put the key in the environment")
        return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")

    @property
    def key(self) -> str | None:
        """The current value of `key_env`; not a field, so that no dump or message shows it."""
        return os.environ.get(self.key_env) or None


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. Token counts are the server's own, or None if it sends none.

    `text` is the whole answer; `refusal` and `reasoning` are what the server sent in fields of
    their own; `cached_tokens` counts the prompt tokens that the server had in its cache.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refusal: str | None = None
    reasoning: str | None = None
    cached_tokens: int | None = None

    @property
    def truncated(self) -> bool:
        """True if the answer was cut off at the token limit."""
        return self.finish_reason == "length"

    @property
    def thinking(self) -> str | None:
        """The model's thoughts before its answer, from a separate field or a `<think>` block."""
        return self.reasoning or _split_thinking(self.text)[0]

    @property
    def answer(self) -> str:
        """The part of `text` after its `<think>` block; empty if the block never ends."""
        return _split_thinking(self.text)[1]


def _split_thinking(text: str) -> tuple[str | None, str]:
    """Split off the thoughts; some chat templates open the block, so that only its end shows."""
    thoughts, closed, answer = text.partition("</think>")
    if not closed and not text.lstrip().startswith("<think>"):
        return None, text
    return thoughts.strip().removeprefix("<think>").strip(), answer.strip()


@dataclass(frozen=True, slots=True)
class _Trouble:
    """The reason why one attempt failed: the HTTP status, if any, and the seconds to wait."""

    message: str
    status: int | None = None
    retry_after: float | None = None
    congestion: bool = False

    @property
    def refused(self) -> bool:
        """True if this request will never be answered, although others may be."""
        return self.status in (400, 413, 422)

    @property
    def final(self) -> bool:
        """True if no request will be answered."""
        return (
            self.status is not None
            and 300 <= self.status < 500
            and self.status not in (408, 409, 425, 429)
            and not self.refused
        ) or (self.status == 429 and "insufficient_quota" in self.message)


class Endpoint:
    """A served model, open for requests inside `async with`.

    Every method waits for its turn and retries where that may help: after a lost connection, a
    time-out or a 5xx up to `attempts` times, and after a 429 until `patience` is used up. While it
    waits, for the time in `Retry-After` or with exponential backoff and jitter, it holds no slot.

    Every method raises:
        RequestFailed: this request was refused, or every attempt failed.
        EndpointError: no request can succeed: the key, address or model name is wrong, or the
            server is down.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.limiter = Limiter(config.concurrency)
        self._requests = RateLimit(config.requests_per_minute)
        self._tokens = RateLimit(config.tokens_per_minute)
        self._resume_at = 0.0  # a 429 with Retry-After applies to all requests
        self._lost = 0
        self._answered = False
        self._client: Any = None

    async def __aenter__(self) -> Self:
        self._client = _client(self.config)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> Reply:
        """Ask for the answer to a conversation, through `/chat/completions`.

        Args:
            messages: dicts of `role` and `content`.
            sampling: any field of the request's body, including server-specific ones.
        """
        body = {"model": self.config.model, "messages": list(messages), **sampling}
        return await self._ask("chat/completions", body, _chat_reply)

    async def complete(self, prompt: str | Sequence[int], **sampling: Any) -> Reply:
        """Ask for the continuation of a text or of token ids, through `/completions`."""
        given = prompt if isinstance(prompt, str) else list(prompt)
        body = {"model": self.config.model, "prompt": given, **sampling}
        return await self._ask("completions", body, _completion_reply)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Ask for one vector per text [N, D], through `/embeddings`."""
        body = {"model": self.config.model, "input": list(texts), "encoding_format": "float"}
        return await self._ask("embeddings", body, lambda data: _vectors(data, len(texts)))

    async def models(self) -> list[str]:
        """Return the names of the models that the server offers."""
        return await self._ask("models", None, lambda data: [one["id"] for one in data["data"]])

    async def _ask(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        waits = _Waits(self.config)
        while True:
            await self._turn(body)
            found = await self._attempt(path, body, read)
            if not isinstance(found, _Trouble):
                self._lost, self._answered = 0, True
                return found
            if found.status == 429 and found.retry_after is not None:
                self._resume_at = max(self._resume_at, monotonic() + found.retry_after)
            seconds = None if found.final or found.refused else waits.after(found)
            if seconds is None:
                self._lost += not found.refused or not self._answered
                raise self._failure(path, found, waits)
            await asyncio.sleep(seconds)

    async def _turn(self, body: dict[str, Any] | None) -> None:
        """Wait until the rate limits and the server's last `Retry-After` allow this request."""
        seconds = self._requests.reserve()
        if self.config.tokens_per_minute:
            seconds = max(seconds, self._tokens.reserve(_estimated_tokens(body or {})))
        seconds = max(seconds, self._resume_at - monotonic())
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def _attempt(
        self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T | _Trouble:
        async with self.limiter.slot() as slot:
            found = await self._send(path, body, read)
            if not isinstance(found, _Trouble):
                self.limiter.succeeded()
            elif found.congestion:
                self.limiter.congested(slot, gently=found.status == 429)
            return found

    async def _send(
        self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]
    ) -> T | _Trouble:
        import aiohttp

        method = "GET" if body is None else "POST"
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.config.url}/{path}"
        try:
            async with (
                asyncio.timeout(self.config.timeout),
                # a redirect would send the key to another address
                self._client.request(method, url, data=data, allow_redirects=False) as answer,
            ):
                content = await answer.read()
            if answer.status != 200:
                return _status_trouble(answer.status, answer.headers, content)
            return read(json.loads(content))
        except TimeoutError:
            return _Trouble(f"no answer within {self.config.timeout:g} s", congestion=True)
        except aiohttp.ClientError as error:
            return _Trouble(str(error) or type(error).__name__)
        except (ValueError, LookupError, TypeError) as error:
            return _Trouble(f"the answer does not follow the protocol: {error!r:.120}")

    def _failure(self, path: str, trouble: _Trouble, waits: _Waits) -> EndpointError:
        """Build the error that says what happened and what to do about it."""
        status = f"HTTP {trouble.status}: " if trouble.status else ""
        message = trouble.message.replace(self.config.key or "\0", "***")  # before it is cut
        printable = "".join(c if c.isprintable() else " " for c in message)
        message = " ".join(printable.split())[:SHOWN]
        what = f"{self.config.url}/{path}: {status}{message}"
        if trouble.final:
            return EndpointError(f"{what}; {self._way_out(trouble.status)}")
        if self._lost >= LOST_IN_A_ROW:
            return EndpointError(
                f"{what}; {self._lost} requests in a row failed: check the server, then run again"
            )
        return RequestFailed(f"{what}; {waits.tried(trouble)}")

    def _way_out(self, status: int | None) -> str:
        if status in (401, 403):
            held = "another key" if self.config.key else "a key"
            return f"put {held} in the environment variable {self.config.key_env}"
        if status == 404:
            return f"check the address and that the server has the model {self.config.model!r}"
        return "check the address and the account"


class _Waits:
    """The waits of one request between its attempts."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._attempts = 0
        self._busy = 0
        self._waited = 0.0

    def after(self, trouble: _Trouble) -> float | None:
        """Return the seconds to wait, or None if attempts or patience are used up."""
        if trouble.status == 429:
            self._busy += 1
            seconds = _wait(self._busy, trouble.retry_after)
            self._waited += seconds
            return seconds if self._waited <= self._config.patience else None
        self._attempts += 1
        if self._attempts >= self._config.attempts:
            return None
        return _wait(self._attempts, trouble.retry_after)

    def tried(self, trouble: _Trouble) -> str:
        """Say what was tried, and what the user can do."""
        if trouble.refused:
            return "shorten the text or check the sampling parameters"
        if trouble.status == 429:
            return f"told to wait longer than {self._config.patience:g} s; run again later"
        return f"{self._attempts} attempts; check that the server is running, then run again"


def _wait(turn: int, retry_after: float | None) -> float:
    """Return the seconds before the next attempt: the server's wish, or exponential backoff.

    Jitter spreads requests that failed together.
    """
    if retry_after is not None:
        return retry_after * (1 + 0.1 * random.random())
    return min(LONGEST_WAIT, FIRST_WAIT * 2 ** (turn - 1)) * (0.5 + 0.5 * random.random())


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header (a number or an HTTP date), or None."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError):  # not a date, or one without a time zone
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _client(config: EndpointConfig) -> Any:
    try:
        import aiohttp
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install 'anchored[endpoint]'"
        ) from None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=config.concurrency),
        timeout=aiohttp.ClientTimeout(total=None),  # ours bounds the whole attempt
        headers={
            "Authorization": f"Bearer {config.key or 'none'}",
            "Content-Type": "application/json",
        },
        proxy=_proxy(config.url),
        cookie_jar=aiohttp.DummyCookieJar(),  # requests are independent of each other
    )


def _proxy(url: str) -> str | None:
    """Read the proxy from the environment; aiohttp would start a thread per request for that."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)


async def check_listening(url: str) -> None:
    """Check that a server accepts connections, so that a wrong address fails before any retry.

    Raises:
        EndpointError: the connection was refused or timed out.
    """
    parts = urlsplit(url)
    if _proxy(url):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(FIND_WITHIN):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError) as error:
        why = str(error) or f"timed out after {FIND_WITHIN:g} s"
        raise EndpointError(
            f"{url}: cannot connect: {why}; start the server or fix the address"
        ) from None
    writer.close()


def _status_trouble(status: int, headers: Mapping[str, str], content: bytes) -> _Trouble:
    """Read `{"error": {message, code}}`, `{"message": ...}` or any other body of an error."""
    try:
        body = json.loads(content)
    except ValueError:
        body = content.decode("utf-8", "replace")
    body = body.get("error", body) if isinstance(body, Mapping) else body
    named = body if isinstance(body, Mapping) else {"message": body}
    parts = [str(named[name]) for name in ("message", "code") if named.get(name)]
    return _Trouble(
        " ".join(parts) or "no reason given",
        status,
        retry_after(headers.get("retry-after"), datetime.now(UTC)),
        congestion=status in (429, 503, 529),
    )


def _usage(data: Any) -> tuple[int | None, int | None]:
    usage = data.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _chat_reply(data: Any) -> Reply:
    choice = data["choices"][0]
    message = choice["message"]
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return Reply(
        message.get("content") or "",
        choice.get("finish_reason"),
        *_usage(data),
        message.get("refusal"),
        reasoning if isinstance(reasoning, str) else None,
        ((data.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def _completion_reply(data: Any) -> Reply:
    choice = data["choices"][0]
    return Reply(choice["text"], choice.get("finish_reason"), *_usage(data))


def _vectors(data: Any, wanted: int) -> list[list[float]]:
    rows = {int(one["index"]): one["embedding"] for one in data["data"]}
    if sorted(rows) != list(range(wanted)):
        raise ValueError(f"{len(rows)} vectors for {wanted} texts")
    return [rows[i] for i in range(wanted)]


def estimated_tokens(text: str) -> int:
    """Estimate the number of tokens in a text, at `CHARACTERS_A_TOKEN` characters per token."""
    return math.ceil(len(text) / CHARACTERS_A_TOKEN)


def _estimated_tokens(body: Mapping[str, Any]) -> int:
    """Estimate the tokens of a request and of the longest answer that it allows."""
    given = body.get("prompt", body.get("input", body.get("messages")))
    is_ids = isinstance(given, list) and bool(given) and isinstance(given[0], int)
    read = len(given or ()) if is_ids else estimated_tokens(json.dumps(given, ensure_ascii=False))
    return read + int(body.get("max_completion_tokens") or body.get("max_tokens") or 0)


async def run_all(
    items: Iterable[T],
    worker: Callable[[T], Awaitable[R]],
    on_result: Callable[[T, R], None],
    at_once: int,
) -> None:
    """Work through `items`, which may be infinite, with at most `at_once` of them in memory.

    `on_result` gets each result as it arrives. The first exception, including an interrupt, cancels
    the rest and is raised unchanged.
    """
    source = iter(items)

    async def work() -> None:
        for item in source:
            on_result(item, await worker(item))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except BaseExceptionGroup as found:
        raise found.exceptions[0] from None


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, also in a notebook, and return its result."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
