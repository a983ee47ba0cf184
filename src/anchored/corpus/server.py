"""A model served for the length of one run: started, watched, started again, ended."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

from pydantic import Field

from anchored.config import Config
from anchored.errors import ConfigError, EndpointError

LOG = "server.log"
_POLL = 0.2  # seconds between two looks at a server that starts
_GRACE = 15.0  # seconds that a server has to end by itself
_THINKS = ("enable_thinking", "<think>")
# Its standard input ends when we die, however we die, and then it ends the server's process group.
# A line says that the server is ended already.
_GUARD = """
read -r _ && exit
kill -s TERM -- "-$1" || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -s 0 -- "-$1" || exit; done
kill -s KILL -- "-$1"
"""


class ServeConfig(Config):
    """A server to be started on this machine.

    `arguments` go to the server's command line as they are, for example
    `[--tensor-parallel-size, "4"]`.
    """

    model: str = Field(min_length=1, description="folder or hub id")
    server: Literal["vllm", "transformers"] = "vllm"
    arguments: tuple[str, ...] = ()
    start_timeout: float = Field(default=1800.0, gt=0, description="seconds until it answers")
    restarts: int = Field(default=3, ge=0, description="how often it may die")

    def command(self, port: int) -> list[str]:
        """What is run.

        Raises:
            ConfigError: the server is not installed.
        """
        beside = str(Path(sys.executable).parent)
        program = shutil.which(self.server, path=os.pathsep.join([beside, os.environ["PATH"]]))
        if program is None:
            raise ConfigError(
                f"serve: {self.server} is not installed here; install it, choose another server, "
                "or start one yourself and give its url"
            )
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [program, "serve", self.model, *address, *self.arguments]


def thinks(model: str) -> bool:
    """Does a model folder's chat template make the model think before it answers?"""
    files = (Path(model) / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    texts = [path.read_text("utf-8") for path in files if path.is_file()]
    return any(word in text for text in texts for word in _THINKS)


class Server:
    """A served model, up inside `async with`; `url` is where.

    It runs in a process group of its own, which ends with this object or, where this process is
    killed (SIGKILL), by a guard beside it. A server that dies is started again, `restarts` times;
    its output goes to `log`.

    Raises:
        ConfigError: the program is not installed.
        EndpointError: it dies, or does not answer in time, more often than it may.
    """

    def __init__(self, config: ServeConfig, log: Path) -> None:
        self.config, self.log = config, log
        self.deaths = 0
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        self._health = f"http://127.0.0.1:{port}/health"
        self._command = config.command(port)
        self._process: asyncio.subprocess.Process | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._up = asyncio.Event()
        self._failure: EndpointError | None = None

    async def __aenter__(self) -> Self:
        self._before = _interrupt_on_sigterm()
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        self._watch = asyncio.create_task(self._keep_up())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self._end()

    async def recovered(self, deaths: int) -> bool:
        """Has the server died since it had died `deaths` times? If so, waits until it is up again.

        Raises:
            EndpointError: it will not be.
        """
        await asyncio.sleep(2 * _POLL)  # its death may be younger than the news of it
        if self.deaths == deaths:
            return False
        await self._up.wait()
        if self._failure is not None:
            raise self._failure
        return True

    async def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._guard = _guarding(self._process.pid)
        try:
            async with asyncio.timeout(self.config.start_timeout):
                while not await self._healthy():
                    if self._process.returncode is not None:
                        raise self._gave_up(f"ended with status {self._process.returncode}")
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise self._gave_up(f"no answer in {self.config.start_timeout:g} s") from None
        self._up.set()

    async def _healthy(self) -> bool:
        import aiohttp

        try:
            async with aiohttp.request("GET", self._health) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _keep_up(self) -> None:
        while self._failure is None:
            assert self._process is not None
            status = await self._process.wait()
            self._up.clear()
            self._kill_rest()  # children that it left may hold its port and its memory
            self.deaths += 1
            try:
                if self.deaths > self.config.restarts:
                    raise self._gave_up(f"died {self.deaths} times, last with status {status}")
                await self._start()
            except EndpointError as error:
                self._failure = error
                self._up.set()

    def _gave_up(self, why: str) -> EndpointError:
        return EndpointError(f"`{shlex.join(self._command)}`: {why}; see {self.log}")

    async def _end(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE):
                await self._process.wait()
        except TimeoutError:
            pass
        self._kill_rest()
        await self._process.wait()

    def _kill_rest(self) -> None:
        """Kills what is left of the server's group; there is nothing to guard then."""
        self._signal(signal.SIGKILL)
        if self._guard is not None:
            self._guard.communicate(b"\n")
            self._guard = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(self._process.pid, number)


def _guarding(group: int) -> subprocess.Popen[bytes]:
    """A shell that ends a process group if this process dies."""
    return subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us, and so is a closed terminal
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _interrupt_on_sigterm() -> Any:
    """A scheduler's SIGTERM ends the run as Ctrl-C does, so that the server is ended too.

    Returns:
        The handler before; None, and nothing is done, outside the main thread.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, interrupt)
