"""A server that a run starts for itself: `transformers serve` with a model written by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from anchored import endpoint as client
from anchored.corpus.endpoint_run import EndpointAnnotateConfig, run
from anchored.corpus.server import ServeConfig, thinks
from anchored.data.standoff import read_records
from anchored.errors import ConfigError, EndpointError

pytest.importorskip("aiohttp")

QUIET = Console(quiet=True)
SMALL = "name: small\nkeys:\n  - {name: topic, description: what it is about}\n"


def bigram_model(folder: Path) -> Path:
    """A Llama that says "topic: light" and ends, whatever it is asked.

    Embeddings are one-hot and both blocks add nothing, so that the head maps a token to the next.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[UNK]", "[EOS]", "[SAY]", "topic:", "light", "a", "b", "c"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}[SAY]"
    tokenizer.save_pretrained(folder)
    size = len(words)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=size, intermediate_size=size, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, eos_token_id=1, bos_token_id=1,
            max_position_embeddings=2048,
        )
    )  # fmt: skip
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state["model.embed_tokens.weight"] = torch.eye(size)
    state["model.norm.weight"] = torch.ones(size)
    for now, following in ((2, 3), (3, 4), (4, 1)):
        state["lm_head.weight"][following, now] = 10.0
    model.load_state_dict(state)
    model.save_pretrained(folder)
    return folder


def config(tmp_path: Path, serve: dict[str, object], chunks: int = 1) -> EndpointAnnotateConfig:
    source, schema = tmp_path / "in.jsonl", tmp_path / "schema.yaml"
    source.write_text("".join(json.dumps({"text": f"a {i}"}) + "\n" for i in range(chunks)))
    schema.write_text(SMALL)
    fields = {"source": str(source), "out": tmp_path / "out", "schema_name": str(schema)}
    endpoint: dict[str, object] = {"concurrency": 2, "constrain": "none", "attempts": 6}
    endpoint["sampling"] = {"max_tokens": 8, "stop": None}  # its stops need another tokenizer
    return EndpointAnnotateConfig.model_validate({**fields, "endpoint": endpoint, "serve": serve})


def children() -> list[int]:
    return [int(n) for n in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def served(processes: set[int]) -> int:
    """The one that serves; beside it stands its guard."""
    lines = {one: Path(f"/proc/{one}/cmdline").read_bytes() for one in processes}
    return next(one for one, line in lines.items() if b"\0serve\0" in line)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the server by /proc")
def test_a_server_that_is_killed_is_started_again_and_ended_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setattr(client, "FIRST_WAIT", 0.1)
    model = bigram_model(tmp_path / "model")
    settings = config(tmp_path, {"model": str(model), "server": "transformers"}, chunks=40)
    before, killed = set(children()), list[int]()

    def kill_once() -> None:
        journal, end = settings.out / "journal.jsonl", time.monotonic() + 300
        while time.monotonic() < end:
            if journal.is_file() and journal.stat().st_size > 1000:
                killed.append(served(set(children()) - before))
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_once)
    killer.start()
    manifest = run(settings, QUIET)
    killer.join()
    assert (manifest["chunks"], manifest["failed"], len(killed)) == (40, 0, 1)
    assert all(one.annotation == ({"key": "topic", "value": "light"},)
               for one in read_records(settings.out))  # fmt: skip
    assert set(children()) == before
    assert manifest["tokens"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; sys.exit(3)", r"ended with status 3; see .*server.log"),
        ("import time; time.sleep(60)", r"no answer in 1 s; see .*server.log"),
    ],
    ids=["dies", "hangs"],
)
def test_a_server_that_does_not_come_up_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: str(program))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(EndpointError, match=message):
        run(config(tmp_path, {"model": "m", "start_timeout": 1}), QUIET)
    assert signal.getsignal(signal.SIGTERM) == before


FAMILY = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
pathlib.Path(os.environ["PIDS"]).write_text(f"{os.getpid()} {child.pid} ")
time.sleep(120)
"""


def alive(process: int) -> bool:
    """Is it there, and not only because nobody has asked for its status?"""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_run_that_is_killed_takes_its_server_and_the_servers_children_with_it(
    tmp_path: Path,
) -> None:
    program, pids = tmp_path / "vllm", tmp_path / "pids"
    program.write_text(f"#!{sys.executable}\n{FAMILY}")
    program.chmod(0o755)
    settings = config(tmp_path, {"model": "m"})
    code = (
        "import sys; from anchored.corpus.endpoint_run import EndpointAnnotateConfig, run; "
        "run(EndpointAnnotateConfig.model_validate_json(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, settings.model_dump_json()],
        env={
            **os.environ,
            "PIDS": str(pids),
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        },
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: pids.is_file() and pids.read_text().endswith(" "))
    family = [int(one) for one in pids.read_text().split()]
    assert all(map(alive, family))
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(alive, family)))
    assert not any(map(alive, family))


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.02)


def test_a_server_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vllm is not installed here; install it, choose another"):
        run(config(tmp_path, {"model": "m"}), QUIET)


def test_the_arguments_go_to_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/bin/vllm")
    served = ServeConfig(model="m", arguments=("--tensor-parallel-size", "4"))
    assert served.command(7000) == [
        "/bin/vllm", "serve", "m", "--host", "127.0.0.1", "--port", "7000",
        "--tensor-parallel-size", "4",
    ]  # fmt: skip


def test_a_chat_template_that_can_think_is_seen(tmp_path: Path) -> None:
    assert not thinks(str(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("{% if enable_thinking %}<think>{% endif %}")
    assert thinks(str(tmp_path))
    assert not thinks("owner/on-the-hub")
