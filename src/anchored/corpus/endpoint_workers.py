"""The endpoint annotator on a cluster: workers settle whole shards, each by a journal of its own.

The journal of a shard lies beside it while the shard is at work, so whoever gets the shard after a
worker's death goes on from there. Once the shard is written, its answers move to the run's journal:
what a run leaves is what a single process leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anchored.annotators.by_endpoint import Answer, EndpointAnnotator, Request
from anchored.annotators.prompts import written
from anchored.corpus.cluster import Cluster, check_shared
from anchored.corpus.meter import Meter
from anchored.corpus.shards import (
    OF_A_KILLED_RUN,
    WHOLE,
    NumberedRows,
    ShardWriter,
    collect,
    numbered_shards,
    shard_journal,
    too_many_failed,
)
from anchored.data.corpus_source import CorpusConfig
from anchored.data.standoff import open_parts
from anchored.endpoint import Endpoint, check_listening
from anchored.errors import ConfigError
from anchored.journal import Journal, Row

Answers = tuple[tuple[str, Row], ...]
_Shard = tuple[NumberedRows, Answers]


@dataclass(frozen=True)
class Job:
    """All that a worker is told; the key of the server is not part of it.

    Attributes:
        out: the run's folder, which every machine has.
        annotator: with the rates of one worker.
        context_tags, max_failed: as in the run's configuration.
        keyed: is there a key, which the worker's machine must then have too.
    """

    out: Path
    annotator: EndpointAnnotator
    context_tags: int
    max_failed: int | None
    keyed: bool

    @classmethod
    def shared(
        cls,
        out: Path,
        annotator: EndpointAnnotator,
        context_tags: int,
        max_failed: int | None,
        workers: int,
    ) -> Job:
        """One of equal parts: rates are an account's, so workers divide them among themselves."""
        config = annotator.config
        rates = {
            name: max(1, rate // workers)
            for name in ("requests_per_minute", "tokens_per_minute")
            if (rate := getattr(config, name)) is not None
        }
        slower = EndpointAnnotator(
            config.model_copy(update=rates), annotator.schema, annotator.prompts
        )
        return cls(out.absolute(), slower, context_tags, max_failed, config.key is not None)


@dataclass(frozen=True)
class Settled:
    """What became of a shard."""

    number: int
    meter: Meter
    first_error: str | None


def annotate(
    cluster: Cluster,
    config: CorpusConfig,
    job: Job,
    journal: Journal,
    meter: Meter,
    on_settled: Callable[[], None],
) -> None:
    """Settles and writes all shards of a corpus.

    Args:
        cluster: who works.
        config: the corpus.
        job: what the workers are told.
        journal: answers of earlier runs, to which those of this one are added.
        meter: counts.
        on_settled: called after each shard.

    Raises:
        ConfigError: a worker's machine lacks the folder or the key.
        EndpointError: no request can succeed.
        Incomplete: more than `max_failed` texts have failed.
    """
    shards = partial(_shards, config, job)
    for settled in cluster.spread(shards, partial(Worker, job)):
        collect(shard_journal(job.out, settled.number), journal)
        meter.add(settled.meter)
        on_settled()
        if job.max_failed is not None and meter.failed > job.max_failed:
            raise too_many_failed(job.out, meter.failed, settled.first_error)


def _shards(config: CorpusConfig, job: Job) -> Iterator[tuple[int, _Shard]]:
    """Every shard with the answers that the run's journal has for its texts."""
    with Journal(job.out / WHOLE.file("journal", ".jsonl"), read_only=True) as journal:
        for number, rows in numbered_shards(config, WHOLE):
            yield number, (rows, tuple(_known(job, journal, rows)) if len(journal) else ())


def _known(job: Job, journal: Journal, rows: NumberedRows) -> Iterator[tuple[str, Row]]:
    """Answers by key; with tags of chunks before, up to a document's first that is not known."""
    for _, item in rows:
        earlier: list[str] = []
        for part in open_parts(item):
            shown = earlier[-job.context_tags :] if job.context_tags else ()
            key = job.annotator.key(Request(part.text, part.request, tuple(shown)))
            found = journal.get(key)
            if found is not None:
                yield key, found
                earlier.append(written(Answer.of(found).annotation))
            elif job.context_tags:
                break


class Worker:
    """Settles shards on one loop and with one client, which learns what the server bears.

    Raises:
        ConfigError: this machine lacks the run's folder or the key.
        EndpointError: nobody listens at the server's address as seen from here.
    """

    def __init__(self, job: Job) -> None:
        config = job.annotator.config
        check_shared(job.out)
        if job.keyed and config.key is None:
            raise ConfigError(
                f"endpoint.key_env: {config.key_env} is not set there; set it before `ray start`"
            )
        self._job, self._runner = job, asyncio.Runner()
        self._runner.run(check_listening(config.url))
        self._endpoint = self._runner.run(Endpoint(config).__aenter__())

    def __call__(self, number: int, shard: _Shard) -> Settled:
        """Settles one shard and writes it."""
        rows, known = shard
        path = shard_journal(self._job.out, number)
        with Journal(path, patience=OF_A_KILLED_RUN) as journal:
            for key, row in known:
                if journal.get(key) is None:
                    journal.put(key, row)
            return self._runner.run(self._settle(number, rows, journal))

    async def _settle(self, number: int, rows: NumberedRows, journal: Journal) -> Settled:
        job, meter = self._job, Meter(0)
        writer = ShardWriter(
            job.out,
            journal,
            job.annotator.key,
            lambda request: job.annotator.annotate(self._endpoint, request),
            meter,
            job.context_tags,
            job.max_failed,
        )
        await writer.write([(number, rows)], 2 * job.annotator.config.concurrency)
        return Settled(number, meter, writer.first_error)
