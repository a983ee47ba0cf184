"""The endpoint against a real server that none of us wrote: `transformers serve`."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM

from anchored.data.generations import read_sets
from anchored.endpoint import Endpoint, EndpointConfig, Reply
from anchored.judge.judging import Inquiry, JudgeConfig, consult
from anchored.tokenizer import AnchoredTokenizer

pytest.importorskip("openai")
pytest.importorskip("aiohttp")
for _name in ("fastapi", "uvicorn"):
    pytest.importorskip(_name, reason="transformers serve needs transformers[serving]")
pytestmark = pytest.mark.slow

STARTED = 120  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of one layer."""
    path = tmp_path_factory.mktemp("model")
    tokenizer = AnchoredTokenizer.train(["the score of a text is a number "] * 50, 400)
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096,
        bos_token_id=tokenizer.control.bos, eos_token_id=tokenizer.control.eos,
        pad_token_id=tokenizer.control.pad,
    )  # fmt: skip
    tokenizer.save(path)
    Olmo2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port"]
    with subprocess.Popen([*command, str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTED
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("transformers serve did not start")


def test_chats_and_completions_come_back_with_their_counts(url: str, folder: Path) -> None:
    async def main() -> tuple[Reply, Reply]:
        async with Endpoint(EndpointConfig(url=url, model=str(folder), attempts=1)) as endpoint:
            chat = await endpoint.chat(
                [{"role": "user", "content": "the score"}], max_tokens=8, temperature=0
            )
            return chat, await endpoint.complete("the score of a", max_tokens=4, temperature=0)

    chat, completion = asyncio.run(main())
    assert (chat.completion_tokens, chat.truncated) == (8, True)
    assert completion.completion_tokens == 4
    assert chat.text and completion.text


def test_a_model_that_talks_nonsense_gives_a_failure_for_every_question(
    url: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "Say it.", "generations": ["one", "two", "three"]}))
    judge = JudgeConfig(url=url, model=str(folder), concurrency=2, timeout=60)
    answers = consult(Inquiry(judge, quality=True), read_sets([path]), tmp_path / "journal.jsonl")
    assert len(answers.failures) == len(answers.rows) == 3
    assert all("ran out of tokens in its answer" in row["error"] for row in answers.failures)
    assert [answers.score("Say it.", text) for text in ("one", "two", "three")] == [None] * 3
    assert answers.as_json()["completion_tokens"] == 3 * 2 * 30
