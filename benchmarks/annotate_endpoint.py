"""Measure annotation by an endpoint: chunks per second of one process, and the cost of kills.

    python benchmarks/annotate_endpoint.py [--chunks 6000] [--kills 20] [--json FILE]

The server is a separate process on this machine that answers 50 to 150 ms after each request. So
the benchmark measures the client: reading, hashing, sending, reading answers, the journal, the
shards. The stock `openai` client, making the same requests, is the reference. Two more runs follow:
one against a server that rejects more than 300 requests per second, and one over 20,000 chunks that
is killed (SIGKILL) at random moments, with a torn line left in its journal each time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console

from anchored.annotation import Schema
from anchored.annotators.prompts import Prompt
from anchored.config import versions
from anchored.corpus.endpoint_run import EndpointAnnotateConfig, run
from anchored.data.standoff import read_records
from anchored.endpoint import run_all

IN_FLIGHT = 256  # with half as many, at 100 ms each, at most 1,280 answers per second are possible
CLIENT_CHUNKS = 1500  # the openai client takes too long for all chunks
LIMIT = 300  # requests per second
KILLED_CHUNKS = 20_000
CHUNK = "The keeper of light {} walked to the harbour before dawn and counted the boats. "
ANSWER = "topic: a harbour\ndomain: literature\nentity: the keeper\ntime: dawn\nsentiment: neutral"


def main() -> None:
    """Run all measurements and print each when it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=6000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=2, metavar=("RATE", "LOG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(float(options.serve[0]), Path(options.serve[1])))
        return
    results: dict[str, Any] = {"load": os.getloadavg(), "versions": versions()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, argument in (
            (speed, options.chunks), (limited, options.chunks), (killed, options.kills)
        ):  # fmt: skip
            found = part(folder, argument)
            print(json.dumps(found, indent=2), flush=True)
            results |= found
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


class Answers(asyncio.Protocol):
    """One connection of the server, with minimal HTTP, so that the server is not what is measured.

    Requests come one after the other; their bodies are ignored.
    """

    def __init__(self, bucket: Bucket, log: TextIO) -> None:
        self._bucket, self._log = bucket, log
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the answers."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Answer once the request is complete."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        now = time.monotonic()
        if not self._bucket.take(now):
            self._transport.write(REFUSED)
            return
        self._log.write(json.dumps([now, hash(body)]) + "\n")
        loop = asyncio.get_running_loop()
        loop.call_later(random.uniform(0.05, 0.15), self._transport.write, ANSWERED)


class Bucket:
    """A limit of `rate` requests per second, 0 for none, with a burst of a tenth of a second."""

    def __init__(self, rate: float) -> None:
        self._rate, self._held, self._filled = rate, rate / 10, time.monotonic()

    def take(self, now: float) -> bool:
        """Return True if a request that comes now may be answered."""
        self._held += (now - self._filled) * self._rate
        self._held, self._filled = min(self._rate / 10, self._held), now
        if self._rate and self._held < 1:
            return False
        self._held -= 1
        return True


def _response(status: str, data: Any) -> bytes:
    body = json.dumps(data)
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHOICE = {"message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop", "index": 0}
_USAGE = {"prompt_tokens": 500, "completion_tokens": 30, "total_tokens": 530}
_NAMED = {"id": "a", "object": "chat.completion", "created": 0, "model": "m"}
ANSWERED = _response("200 OK", {**_NAMED, "choices": [_CHOICE], "usage": _USAGE})
REFUSED = _response("429 Too Many Requests", {"error": {"message": "too many"}})


async def serve(rate: float, log: Path) -> None:
    """Answer and log every request after 50 to 150 ms; beyond `rate` per second, send a 429."""
    loop, stop, bucket = asyncio.get_running_loop(), asyncio.Event(), Bucket(rate)
    with log.open("a", buffering=1 << 16) as file:
        listening = await loop.create_server(lambda: Answers(bucket, file), "127.0.0.1", 0)
        print(listening.sockets[0].getsockname()[1], flush=True)
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


@contextmanager
def server(rate: float, log: Path) -> Iterator[str]:
    """Yield the address of a server in a separate process."""
    command = [sys.executable, __file__, "--serve", str(rate), str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


def corpus(path: Path, chunks: int) -> Path:
    """Write a file of documents with ten chunks each, all of them different."""
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, chunks, 10):
            texts = (CHUNK.format(start + i) * 4 for i in range(10))
            file.write(json.dumps({"id": str(start), "text": "\n\n".join(texts)}) + "\n")
    return path


def config(source: Path, out: Path, url: str, **endpoint: Any) -> EndpointAnnotateConfig:
    """Return the configuration of a run with `IN_FLIGHT` concurrent requests."""
    given = {"url": url, "model": "m", "concurrency": IN_FLIGHT, **endpoint}
    fields = {"source": str(source), "out": out, "endpoint": given, "rows_per_shard": 50}
    return EndpointAnnotateConfig.model_validate(fields)


def speed(folder: Path, chunks: int) -> dict[str, Any]:
    """Measure chunks per second and processor time per chunk, also for the `openai` client.

    Imports are not counted on either side.
    """
    import aiohttp  # noqa: F401
    import openai  # noqa: F401

    source = corpus(folder / "speed.jsonl", chunks)
    with server(0, folder / "speed.log") as url:
        begin, cpu = time.perf_counter(), time.process_time()
        run(config(source, folder / "speed", url), Console(quiet=True))
        ours, ours_cpu = time.perf_counter() - begin, time.process_time() - cpu
        begin, cpu = time.perf_counter(), time.process_time()
        asyncio.run(by_openai(url))
        theirs, theirs_cpu = time.perf_counter() - begin, time.process_time() - cpu
    rates = chunks / ours, CLIENT_CHUNKS / theirs
    return {
        "chunks_per_second": rates[0],
        "cpu_ms_per_chunk": ours_cpu / chunks * 1000,
        "openai_per_second": rates[1],
        "openai_cpu_ms": theirs_cpu / CLIENT_CHUNKS * 1000,
        "ratio": rates[0] / rates[1],
        "ratio_cpu": theirs_cpu / CLIENT_CHUNKS / (ours_cpu / chunks),
    }


async def by_openai(url: str) -> None:
    """Make the same requests with the stock `openai.AsyncOpenAI`; nothing is read or kept."""
    import openai

    prompt = Prompt.of(Schema.load("general"))
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

        async def ask(number: int) -> Any:
            content = prompt.about(CHUNK.format(number) * 4)
            return await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=200,
                stop=["\n\n"],
            )

        await run_all(range(CLIENT_CHUNKS), ask, lambda *_: None, IN_FLIGHT)


def limited(folder: Path, chunks: int) -> dict[str, Any]:
    """Return the share used of a server that answers at most `LIMIT` requests per second."""
    source, log = corpus(folder / "limited.jsonl", chunks), folder / "limited.log"
    with server(LIMIT, log) as url:
        run(config(source, folder / "limited", url), Console(quiet=True))
    times = [json.loads(line)[0] for line in log.read_text().splitlines()]
    steady = times[len(times) // 10 :]
    return {
        "limited_per_second": len(times) / (times[-1] - times[0]),
        "limited_share": len(steady) / (steady[-1] - steady[0]) / LIMIT,
    }


def killed(folder: Path, kills: int) -> dict[str, Any]:
    """Kill a run repeatedly; return its outcome and how many requests were repeated."""
    source = corpus(folder / "killed.jsonl", KILLED_CHUNKS)
    out, log, rng = folder / "killed", folder / "killed.log", random.Random(0)
    with server(0, log) as url:
        wanted = config(source, out, url, concurrency=32)
        for turn in range(kills + 1):
            kill_at = KILLED_CHUNKS * (turn + rng.random()) / (kills + 1) if turn < kills else None
            _run_once(wanted, kill_at)
    asked = Counter(json.loads(line)[1] for line in log.read_text().splitlines())
    records = list(read_records(out))
    return {
        "kills": kills,
        "chunks_once_and_in_order": [(record.row, record.part) for record in records]
        == [divmod(i, 10) for i in range(KILLED_CHUNKS)],
        "failed": sum(record.error is not None for record in records),
        "asked_again_share": asked.total() / KILLED_CHUNKS - 1,
    }


def _run_once(wanted: EndpointAnnotateConfig, kill_at: float | None) -> None:
    """Run one process; kill it at so many journal lines, and then tear the last line."""
    command = [sys.executable, "-c", _RUN, wanted.model_dump_json()]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    journal = wanted.out / "journal.jsonl"
    while kill_at is not None and process.poll() is None:
        time.sleep(0.01)
        if journal.is_file() and journal.stat().st_size > kill_at * _ROW_BYTES:
            process.kill()
    process.wait()
    if kill_at is not None:
        with journal.open("ab") as file:
            file.write(b'{"key": "torn')


_RUN = """
import sys
from anchored.corpus.endpoint_run import EndpointAnnotateConfig, run
run(EndpointAnnotateConfig.model_validate_json(sys.argv[1]))
"""
_ROW_BYTES = 330  # size of a journal row with `ANSWER`


if __name__ == "__main__":
    main()
