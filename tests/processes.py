"""Commands in processes of their own, forked by a server that has done the imports once."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["anchored.workflow", "transformers.models.olmo2", "processes"])


def start(arguments: Sequence[str], **environment: str) -> BaseProcess:
    """`anchored` with these arguments."""
    process = FORKS.Process(target=_command, args=(list(arguments), environment))
    process.start()
    return process


def start_ranks(arguments: Sequence[str], ranks: int = 2) -> list[BaseProcess]:
    """The same command on so many ranks, as `torchrun` starts them."""
    shared = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        start(arguments, **{k: str(v) for k, v in {**shared, "RANK": i, "LOCAL_RANK": i}.items()})
        for i in range(ranks)
    ]


def free_port() -> int:
    """Below those that the system gives to whoever asks for any, as tests beside this one do."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue


def run_ranks(arguments: Sequence[str], ranks: int = 2) -> None:
    """Runs it to its end."""
    for process in start_ranks(arguments, ranks):
        process.join(timeout=120)
        assert process.exitcode == 0


def _command(arguments: list[str], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    from anchored.cli import main

    sys.exit(main(arguments))
