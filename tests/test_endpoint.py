from __future__ import annotations

import asyncio
import itertools
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from anchored import endpoint as module
from anchored.config import validated
from anchored.endpoint import Endpoint, EndpointConfig, Reply, blocking, retry_after, run_all
from anchored.errors import ConfigError, EndpointError, RequestFailed
from anchored.throttle import Limiter, RateLimit

pytest.importorskip("aiohttp")

from fake_server import Answer, FakeServer, Script, Seen, serving

KEY = "sk-very-secret-4711"
HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def config(server: FakeServer, **fields: Any) -> EndpointConfig:
    return EndpointConfig(url=server.url, model="judge", key_env="JUDGE_KEY", **fields)


def ask(server: FakeServer, work: Callable[[Endpoint], Awaitable[Any]], **fields: Any) -> Any:
    async def main() -> Any:
        async with Endpoint(config(server, **fields)) as endpoint:
            return await work(endpoint)

    return asyncio.run(main())


def chat(server: FakeServer, **fields: Any) -> Reply:
    return ask(server, lambda endpoint: endpoint.chat(HELLO, temperature=0), **fields)


def in_turn(*answers: Answer) -> Script:
    """These answers one after the other, the last one for ever."""
    following: Iterator[Answer] = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda seen: next(following)


def test_a_chat_sends_every_field_and_the_key_and_reads_text_reason_and_counts() -> None:
    with serving(in_turn(Answer("  well ", finish_reason="length"))) as server:
        work = lambda one: one.chat(HELLO, temperature=0, top_k=5, structured_outputs={"a": 1})  # noqa: E731
        reply = ask(server, work)
    assert reply == Reply("  well ", "length", prompt_tokens=2, completion_tokens=7)
    assert reply.truncated
    (seen,) = server.seen
    assert (seen.path, seen.headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert seen.body == {
        "model": "judge", "messages": HELLO, "temperature": 0, "top_k": 5,
        "structured_outputs": {"a": 1},
    }  # fmt: skip


def test_completions_take_text_or_ids_and_embeddings_come_in_the_order_of_the_texts() -> None:
    async def work(endpoint: Endpoint) -> Any:
        return (
            await endpoint.complete("Once", max_tokens=3),
            await endpoint.complete([5, 6], max_tokens=3),
            await endpoint.embed(["a", "bb", "ccc"]),
            await endpoint.models(),
        )

    with serving() as server:
        text, ids, vectors, models = ask(server, work)
    assert (text.text, ids.text, models) == ("fine", "fine", ["judge"])
    assert [seen.body.get("prompt") for seen in server.seen[:2]] == ["Once", [5, 6]]
    assert vectors == [[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]]


@pytest.mark.parametrize(
    "bad",
    [
        Answer(status=500),
        Answer(status=503),
        Answer(cut=True),
        Answer(raw=b"<html>gateway</html>"),
        Answer(raw=b'{"choices": []}'),
        Answer(delay=2),
    ],
    ids=["500", "503", "cut", "html", "no choices", "late"],
)
def test_what_may_pass_is_tried_again_up_to_so_many_attempts(bad: Answer) -> None:
    with serving(in_turn(bad, bad, Answer("at last"))) as server:
        assert chat(server, attempts=3, timeout=1).text == "at last"
        assert len(server.seen) == 3
    with serving(in_turn(bad)) as server:
        with pytest.raises(RequestFailed, match=r"chat/completions: .*; 2 attempts; check that"):
            chat(server, attempts=2, timeout=1)
        assert len(server.seen) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_tried_again_and_fails_alone(status: int) -> None:
    answer = Answer(status=status, error={"message": "context too long"})
    with serving(in_turn(answer)) as server, pytest.raises(RequestFailed) as error:
        chat(server)
    assert f"/v1/chat/completions: HTTP {status}: context too long; shorten" in str(error.value)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "way"),
    [
        (Answer(status=401), "put another key in the environment variable JUDGE_KEY"),
        (Answer(status=404), "check the address and that the server has the model 'judge'"),
        (
            Answer(status=429, error={"message": "no money", "code": "insufficient_quota"}),
            "check the address and the account",
        ),
    ],
    ids=["401", "404", "quota"],
)
def test_what_no_request_can_pass_ends_the_run_at_once(answer: Answer, way: str) -> None:
    with serving(in_turn(answer)) as server, pytest.raises(EndpointError, match=way) as error:
        chat(server)
    assert not isinstance(error.value, RequestFailed)
    assert len(server.seen) == 1


def test_a_429_waits_as_long_as_it_says_and_is_no_attempt() -> None:
    busy = Answer(status=429, headers={"Retry-After": "0.2"})
    with serving(in_turn(busy, busy, busy, Answer("now"))) as server:
        start = time.monotonic()
        assert chat(server, attempts=1).text == "now"
        assert time.monotonic() - start >= 0.6


def test_a_server_that_is_always_busy_is_given_up_when_patience_ends() -> None:
    busy = Answer(status=429, headers={"Retry-After": "0.1"})
    with serving(in_turn(busy)) as server:
        with pytest.raises(RequestFailed, match="told to wait longer than"):
            chat(server, patience=0.25)
        assert len(server.seen) == 3
    later = Answer(status=429, headers={"Retry-After": "3600"})
    with serving(in_turn(later)) as server, pytest.raises(RequestFailed):
        chat(server, patience=60)


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC)
    assert retry_after("2.5", now) == 2.5
    assert retry_after("Tue, 24 Nov 2026 10:01:30 GMT", now) == 90
    assert retry_after("Tue, 24 Nov 2026 09:00:00 GMT", now) == 0
    assert [retry_after(text, now) for text in (None, "", "soon", "inf", "-3")] == [
        None, None, None, None, 0,
    ]  # fmt: skip


def test_a_server_that_is_down_ends_the_run_after_ten_failures_in_a_row() -> None:
    async def work(endpoint: Endpoint) -> list[str]:
        failed = []
        for _ in range(20):
            try:
                await endpoint.chat(HELLO)
            except RequestFailed as error:
                failed.append(str(error))
            except EndpointError as error:
                return [*failed, str(error)]
        return failed

    with serving(in_turn(Answer(status=500))) as server:
        *failed, last = ask(server, work, attempts=1)
    assert len(failed) == 9
    assert last.endswith("10 requests in a row failed: check the server, then run again")
    with serving(in_turn(Answer(), *[Answer(status=400)] * 20)) as server:
        assert len(ask(server, work)) == 19  # after an answer, refusals do not count as down


def test_nobody_listening_is_said_with_the_address() -> None:
    with serving() as server:
        pass
    with pytest.raises(RequestFailed, match="Connect call failed"):
        chat(server, attempts=2)


def test_the_key_is_in_no_message_traceback_or_dump() -> None:
    message = "\x1b[31m".rjust(260) + f" Incorrect API key provided: {KEY}"
    echo = Answer(status=401, error={"message": message})
    with serving(in_turn(echo)) as server:
        with pytest.raises(EndpointError) as error:
            chat(server)
        shown = config(server)
        texts = [
            str(error.value),
            "".join(traceback.format_exception(error.value)),
            repr(shown),
            shown.model_dump_json(),
            repr(Endpoint(shown)),
        ]
    assert "Incorrect API key provided: ***" in texts[0]
    assert "\x1b" not in texts[0]
    assert all(KEY not in text for text in texts)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://me:pw@x/v1", "http://"])
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"url: .*(not an address|contains a secret)"):
        validated(EndpointConfig, {"url": url, "model": "m"}, "command line")


def test_a_bare_host_gets_the_usual_path() -> None:
    assert EndpointConfig(url="http://x:8000/", model="m").url == "http://x:8000/v1"
    assert EndpointConfig(url="http://x/openai/", model="m").url == "http://x/openai"


def test_tokens_that_the_server_had_read_before_are_told() -> None:
    usage = {"prompt_tokens": 90, "prompt_tokens_details": {"cached_tokens": 80}}
    data = {"choices": [{"message": {"content": "yes"}}], "usage": usage}
    with serving(in_turn(Answer(raw=json.dumps(data).encode()))) as server:
        reply = chat(server)
    assert (reply.prompt_tokens, reply.cached_tokens) == (90, 80)


def test_a_proxy_of_the_environment_carries_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        elsewhere = EndpointConfig(url="http://elsewhere.invalid", model="judge")

        async def main() -> Reply:
            async with Endpoint(elsewhere) as endpoint:
                return await endpoint.chat(HELLO)

        assert asyncio.run(main()).text == "fine"
        assert server.seen[0].headers["Host"] == "elsewhere.invalid"


def test_a_redirection_does_not_carry_the_key_away() -> None:
    with serving() as other:
        away = Answer(status=307, headers={"Location": f"{other.url}/chat/completions"})
        with serving(in_turn(away)) as server, pytest.raises(EndpointError, match="HTTP 307"):
            chat(server)
        assert not other.seen


def test_thoughts_are_told_from_the_answer() -> None:
    assert Reply("<think>\nhm\n</think>\n\n7").thinking == "hm"
    assert Reply("<think>\nhm\n</think>\n\n7").answer == "7"
    assert Reply("hm</think>7").answer == "7"  # the chat template opened the block
    assert Reply("<think> for ever", "length").answer == ""
    assert (Reply("7").thinking, Reply("7", reasoning="hm").thinking) == (None, "hm")


def test_many_requests_stay_within_the_bound_and_all_come_back() -> None:
    results: dict[int, str] = {}

    async def work(endpoint: Endpoint) -> None:
        async def one(i: int) -> str:
            return (await endpoint.chat([{"role": "user", "content": str(i)}])).text

        await run_all(range(200), one, results.__setitem__, at_once=32)

    with serving(lambda seen: Answer(seen.prompt, delay=0.01)) as server:
        ask(server, work, concurrency=16)
    assert results == {i: str(i) for i in range(200)}
    assert 8 < server.most_at_once <= 16


def test_pressure_falls_when_the_server_has_too_much_and_nothing_is_lost() -> None:
    """A server that bears four at a time."""
    results: dict[int, str] = {}

    async def work(endpoint: Endpoint) -> float:
        async def one(i: int) -> str:
            return (await endpoint.chat([{"role": "user", "content": str(i)}])).text

        await run_all(range(120), one, results.__setitem__, at_once=64)
        return endpoint.limiter.limit

    def script(seen: Seen) -> Answer:
        busy = server.now > 4
        return Answer(status=429, error={"message": "busy"}) if busy else Answer(delay=0.01)

    with serving(script) as server:
        limit = ask(server, work, concurrency=32, attempts=1)
    assert results == dict.fromkeys(range(120), "fine")
    assert limit < 8
    assert len(server.seen) < 240


def test_the_bound_doubles_until_congestion_then_grows_by_one_a_round() -> None:
    limiter = Limiter(64)
    for _ in range(8):
        limiter.succeeded()
    assert limiter.limit == 16
    for _ in range(5):  # one round of congestion is one halving, however many say so
        limiter.congested(0)
    assert limiter.limit == 8
    for _ in range(8):
        limiter.succeeded()
    assert 8.9 < limiter.limit < 9
    for slot in range(1, 9):
        limiter.congested(slot)
    assert limiter.limit == 1


def test_a_refusal_for_the_rate_takes_a_tenth_once_the_bound_is_found() -> None:
    limiter = Limiter(64)
    limiter.limit = 40.0
    limiter.congested(0, gently=True)
    limiter.congested(1, gently=True)
    assert limiter.limit == 18
    limiter.congested(2)
    assert limiter.limit == 9


def test_a_slot_survives_the_cancellation_of_who_waits_for_it() -> None:
    async def main() -> int:
        limiter = Limiter(1)

        async def hold() -> None:
            async with limiter.slot():
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(hold()) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks[1:9]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return limiter.in_flight

    assert asyncio.run(main()) == 0


def test_starts_are_spread_over_the_minute() -> None:
    limit = RateLimit(600)
    waits = [limit.reserve() for _ in range(4)]
    assert waits == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.01)
    assert [RateLimit(None).reserve(10**9) for _ in range(2)] == [0, 0]


def test_the_rates_of_requests_and_tokens_are_kept() -> None:
    async def work(endpoint: Endpoint) -> float:
        start = time.monotonic()
        await asyncio.gather(*(endpoint.chat(HELLO, max_tokens=89) for _ in range(4)))
        return time.monotonic() - start

    with serving() as server:
        assert ask(server, work, requests_per_minute=600) >= 0.3
        # 89 tokens allowed and 11 estimated in: 100 each, 60,000 a minute are 1,000 a second
        assert 0.3 <= ask(server, work, tokens_per_minute=60_000) < 1


def test_the_first_fault_ends_all_and_comes_as_it_is() -> None:
    done: list[int] = []

    async def one(i: int) -> int:
        await asyncio.sleep(0.001 * i)
        if i == 3:
            raise EndpointError("gone")
        return i

    async def main() -> None:
        await run_all(itertools.count(), one, lambda i, _: done.append(i), at_once=5)

    with pytest.raises(EndpointError, match="gone"):
        asyncio.run(main())
    assert {0, 1, 2} <= set(done) and 3 not in done


def test_a_running_loop_as_in_a_notebook_is_no_obstacle() -> None:
    async def answer() -> int:
        return 42

    async def notebook() -> int:
        return blocking(answer())

    assert asyncio.run(notebook()) == blocking(answer()) == 42
