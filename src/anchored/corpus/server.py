"""A model server for the length of one run: launched, watched, restarted, stopped."""

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
_POLL = 0.2  # seconds between two health checks of a starting server
_GRACE = 15.0  # seconds for a server to stop before it is killed
_THINKS = ("enable_thinking", "<think>")
# The guard's standard input closes when this process dies, in whatever way. The guard then ends the
# server's process group. A line on the input means that the server has already been stopped.
_GUARD = """
read -r _ && exit
kill -s TERM -- "-$1" || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -s 0 -- "-$1" || exit; done
kill -s KILL -- "-$1"
"""


class ServeConfig(Config):
    """A server to launch on this machine.

    `arguments` are appended to the server's command line as they are, for example
    `[--tensor-parallel-size, "4"]`.
    """

    model: str = Field(min_length=1, description="folder or hub id")
    server: Literal["vllm", "transformers"] = "vllm"
    arguments: tuple[str, ...] = ()
    start_timeout: float = Field(
        default=1800.0, gt=0, description="seconds to wait for its first answer"
    )
    restarts: int = Field(default=3, ge=0, description="how often it is restarted after it died")

    def command(self, port: int) -> list[str]:
        """Return the command line of the server.

        Raises:
            ConfigError: the server is not installed.
        """
        beside = str(Path(sys.executable).parent)
        program = shutil.which(self.server, path=os.pathsep.join([beside, os.environ["PATH"]]))
        if program is None:
            raise ConfigError(
                f"serve: {self.server} is not installed here; install it, choose another server, "
                "or start a server yourself and set its url"
            )
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [program, "serve", self.model, *address, *self.arguments]


def thinks(model: str) -> bool:
    """Return True if a model folder's chat template can make the model think first."""
    files = (Path(model) / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    texts = [path.read_text("utf-8") for path in files if path.is_file()]
    return any(word in text for text in texts for word in _THINKS)


class Server:
    """A served model that runs inside `async with`, at `url`.

    The server runs in its own process group, which is ended by this object or, if this process is
    killed (SIGKILL), by a guard process. A server that dies is restarted up to `restarts` times.
    Its output goes to `log`.

    Raises:
        ConfigError: the program is not installed.
        EndpointError: the server does not answer in time, or died more than `restarts` times.
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
        """Return True, once the server is up again, if it died after `deaths` deaths.

        Raises:
            EndpointError: the server cannot be restarted.
        """
        await asyncio.sleep(2 * _POLL)  # a request may fail before the death is noticed
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
            self._kill_rest()  # its children may hold its port and memory
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
        """Kill what is left of the server's process group, and dismiss the guard."""
        self._signal(signal.SIGKILL)
        if self._guard is not None:
            self._guard.communicate(b"\n")
            self._guard = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):  # the group is gone
            os.killpg(self._process.pid, number)


def _guarding(group: int) -> subprocess.Popen[bytes]:
    """Start a shell that ends a process group if this process dies."""
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
    """Make a scheduler's SIGTERM end the run like Ctrl-C, so that the server is stopped too.

    Returns:
        The previous handler. Outside the main thread nothing is changed, and None is returned.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, interrupt)
