"""A real HTTP server on loopback that speaks the OpenAI protocol and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def prompt(self) -> str:
        """The last message of a conversation, or the text to continue."""
        if "messages" in self.body:
            return self.body["messages"][-1]["content"]
        return str(self.body.get("prompt", self.body.get("input")))


@dataclass(frozen=True)
class Answer:
    """What to send back; `cut` closes the connection without a word, `raw` sends any body."""

    text: str | None = "fine"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    finish_reason: str = "stop"
    message: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "as told"})
    raw: bytes | None = None


Script = Callable[[Seen], Answer]


class FakeServer:
    """Answers by `script`; counts what comes and how much of it at once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.now, self.most_at_once = 0, 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        seen = Seen(request.path, body, dict(request.headers))
        self.seen.append(seen)
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            return await self._answer(request, seen)
        finally:
            self.now -= 1

    async def _answer(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        answer = self.script(seen)
        await asyncio.sleep(answer.delay)
        if answer.cut:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if answer.raw is not None:
            return web.Response(body=answer.raw, status=answer.status)
        data = _data(seen, answer) if answer.status == 200 else {"error": answer.error}
        return web.json_response(data, status=answer.status, headers=answer.headers)


def _data(seen: Seen, answer: Answer) -> dict[str, Any]:
    usage = {"prompt_tokens": len(seen.prompt.split()), "completion_tokens": 7}
    if seen.path.endswith("/chat/completions"):
        message = {"role": "assistant", "content": answer.text, **answer.message}
        return {
            "choices": [{"message": message, "finish_reason": answer.finish_reason}],
            "usage": usage,
        }
    if seen.path.endswith("/completions"):
        return {
            "choices": [{"text": answer.text, "finish_reason": answer.finish_reason}],
            "usage": usage,
        }
    if seen.path.endswith("/embeddings"):
        vectors = [[float(len(text)), 1.0] for text in seen.body["input"]]
        rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return {"data": rows[::-1], "usage": usage}
    return {"data": [{"id": "judge"}]}


@contextmanager
def serving(script: Script = lambda seen: Answer()) -> Iterator[FakeServer]:
    """Runs a server in a thread on a free port."""
    server = FakeServer(script)
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_route("*", "/v1/{tail:.*}", server.handle)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
