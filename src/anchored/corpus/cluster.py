"""Distributes shards over a Ray cluster: one machine reads them in order, workers process them.

Ray Data moves the shards. One task reads the corpus on this machine and pauses while the workers
have enough to do. Ray places the workers and reassigns the shards of a worker that died. So a shard
may be processed twice, and shards finish in any order: processing must be idempotent.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from socket import create_connection, gethostname
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, read_datasource
from ray.data.block import BlockMetadata

from anchored import __version__
from anchored.errors import AnchoredError, ConfigError
from anchored.files import CONFIG_NAME

Shards = Callable[[], Iterator[tuple[int, Any]]]
Settle = Callable[[int, Any], Any]

_ADDRESS = "RAY_ADDRESS"
_LOCAL = "local"
_ANSWERS_WITHIN = 20.0  # seconds
_AT_HAND = 2  # shards per worker: one in progress, one waiting
_PASSED_ON = (AnchoredError, OSError)  # the driver prints these in one line


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined, and the number of its workers."""

    workers: int

    def spread(self, shards: Shards, make: Callable[[], Settle]) -> Iterator[Any]:
        """Yield what the workers return for each shard, in order of completion.

        Args:
            shards: yields the number and content of each shard; called in a separate process on
                this machine.
            make: called once in each worker; returns the function that processes a shard.

        Raises:
            AnchoredError: raised by the reader, by `make` or by a worker; `OSError` likewise.
        """
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        found = read_datasource(
            _Reader(shards),
            override_num_blocks=1,
            num_cpus=0,  # else it would wait for workers that wait for it
            label_selector=here,
        ).map_batches(
            _Worker,
            fn_constructor_args=(make, __version__),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=_AT_HAND),
            num_cpus=1,
        )
        _silence(found.context)
        for table in found.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            yield from map(_unpacked, table["packed"])


@contextmanager
def joined(workers: int | None, most: int, one_a_node: bool = False) -> Iterator[Cluster]:
    """Join the cluster at `RAY_ADDRESS` or on this machine, else start one on this machine.

    Args:
        workers: number of processes; None: one per core of the cluster.
        most: upper limit on the number of processes.
        one_a_node: True to default to one process per machine.

    Raises:
        ConfigError: no cluster answers at `RAY_ADDRESS`.
    """
    stays = ray.is_initialized()
    if not stays:
        _join(workers)
    try:
        yield Cluster(max(1, min(workers or _default_workers(one_a_node), most)))
    finally:
        if not stays:
            ray.shutdown()


def _join(workers: int | None) -> None:
    address = os.environ.get(_ADDRESS)
    if address and address != _LOCAL:
        _check_answers(address)
        _init()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cores = max(os.cpu_count() or 1, workers or 1)
    try:
        _init(num_cpus=cores, include_dashboard=False)
    except ValueError:  # a cluster from `ray start` runs here and takes no options
        _init()


def _init(**of_a_new_one: Any) -> None:
    """Initialize Ray, which looks for `RAY_ADDRESS`, then for a cluster on this machine."""
    ray.init(logging_level=logging.ERROR, log_to_driver=False, **of_a_new_one)


def _check_answers(address: str) -> None:
    """Raise at once if nothing answers; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    try:
        create_connection((host, int(port)), _ANSWERS_WITHIN).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{_ADDRESS}: {address}: no Ray cluster answers there: {error}; set it to the "
            "HOST:PORT of one, or unset it"
        ) from None


def _silence(context: DataContext) -> None:
    """Turn off Ray's own progress display, and make every shard one block, whatever its size."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1


def _default_workers(one_a_node: bool) -> int:
    if one_a_node:
        return sum(node["Alive"] for node in ray.nodes())
    return int(ray.cluster_resources().get("CPU", 1))


class _Reader(Datasource):
    """A task that reads all shards in this process's working folder, one block per shard."""

    def __init__(self, shards: Shards) -> None:
        super().__init__()
        self._shards, self._folder = shards, str(Path.cwd())

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(self._blocks, unknown)]

    def _blocks(self) -> Iterator[pa.Table]:
        os.chdir(self._folder)  # a cluster's processes start elsewhere
        try:
            yield from map(_packed, self._shards())
        except _PASSED_ON as error:
            yield _packed(error)


class _Worker:
    """A process of the cluster that processes one shard after the other."""

    def __init__(self, make: Callable[[], Settle], version: str) -> None:
        self._make, self._version = make, version

    @cached_property
    def _settle(self) -> Settle:
        if self._version != __version__:
            raise ConfigError(f"has anchored {__version__}, not {self._version}; install the same")
        return self._make()

    def __call__(self, block: pa.Table) -> pa.Table:
        try:
            return _packed(self._settle(*_unpacked(block["packed"][0])))
        except AnchoredError as error:
            return _packed(type(error)(f"on {gethostname()}: {error}"))
        except OSError as error:
            return _packed(error)


def _packed(found: Any) -> pa.Table:
    return pa.table({"packed": pa.array([pickle.dumps(found)], pa.large_binary())})


def _unpacked(packed: pa.Scalar) -> Any:
    """Return what was packed; raise it if it is an error."""
    found = pickle.loads(packed.as_py())
    if isinstance(found, _PASSED_ON):
        raise found
    return found


def check_shared(out: Path) -> None:
    """Check that a worker's machine has the output folder.

    Raises:
        ConfigError: the folder is missing.
    """
    if not (out / CONFIG_NAME).is_file():
        raise ConfigError(f"out: {out} is not there; name a folder that all machines share")
