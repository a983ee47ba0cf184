"""The endpoint annotator on a cluster: workers annotate whole shards, with a journal per shard.

A shard's journal lies next to the shard, so if a worker dies, the next one resumes from there. Once
the shard is written, its answers move to the run's journal. A run on a cluster leaves the same
files as a run in a single process.
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
    collect_all,
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
    """What a worker receives; the server's API key is not part of it.

    Attributes:
        out: the run's folder, which all machines share.
        annotator: the annotator, with the rate limits of one worker.
        context_tags, max_failed: as in the run's configuration.
        keyed: True if the worker's machine must have an API key.
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
        """Return the job of one worker; rate limits are per account, so the workers share them."""
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
    """The outcome of a shard."""

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
    """Annotate and write all shards of a corpus.

    Args:
        cluster: the cluster.
        config: the corpus.
        job: what the workers receive.
        journal: answers of earlier runs; the answers of this run are added.
        meter: counts chunks and tokens.
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
    # A worker of a killed run, or one whose result was lost with another worker, may have annotated
    # a shard once more after its journal was collected.
    collect_all(job.out, journal)


def _shards(config: CorpusConfig, job: Job) -> Iterator[tuple[int, _Shard]]:
    """Yield every shard with the answers that the run's journal has for its texts."""
    with Journal(job.out / WHOLE.file("journal", ".jsonl"), read_only=True) as journal:
        for number, rows in numbered_shards(config, WHOLE):
            yield number, (rows, tuple(_known(job, journal, rows)) if len(journal) else ())


def _known(job: Job, journal: Journal, rows: NumberedRows) -> Iterator[tuple[str, Row]]:
    """Yield known answers by key; with context tags, up to a document's first unknown one."""
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
    """Annotates shards with one event loop and one client, which adapts to the server's capacity.

    Raises:
        ConfigError: this machine lacks the run's folder or the API key.
        EndpointError: the server's address refuses connections from this machine.
    """

    def __init__(self, job: Job) -> None:
        config = job.annotator.config
        check_shared(job.out)
        if job.keyed and config.key is None:
            raise ConfigError(
                f"endpoint.key_env: {config.key_env} is not set; set it before `ray start`"
            )
        self._job, self._runner = job, asyncio.Runner()
        self._runner.run(check_listening(config.url))
        self._endpoint = self._runner.run(Endpoint(config).__aenter__())

    def __call__(self, number: int, shard: _Shard) -> Settled:
        """Annotate one shard and write it."""
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
