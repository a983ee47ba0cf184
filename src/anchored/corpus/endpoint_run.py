"""Runs `anchored annotate --annotator endpoint`, which writes stand-off shards, resumably.

Every answer is first written to a journal, keyed by all that it depends on. So a run that was
killed repeats only the requests in flight, equal chunks are sent once, and a document that is added
later costs one document. A shard is written from the journal once all its texts are annotated.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from rich.console import Console

from anchored.annotators.by_endpoint import (
    AnnotatorConfig,
    Answer,
    EndpointAnnotator,
    Request,
    Usage,
)
from anchored.annotators.prompts import Prompt
from anchored.config import versions
from anchored.corpus.meter import Display, Meter, Projection
from anchored.corpus.server import LOG, ServeConfig, Server, thinks
from anchored.corpus.shards import WHOLE, ShardWriter, Share, collect_all, numbered_shards
from anchored.data.corpus_source import CorpusConfig, check_installed
from anchored.data.readers import load_schema
from anchored.data.standoff import SHARD, Part, open_parts, read_shard, shard_numbers
from anchored.endpoint import (
    CHARACTERS_A_TOKEN,
    Endpoint,
    blocking,
    check_listening,
    estimated_tokens,
    run_all,
)
from anchored.errors import ConfigError, DataError, EndpointError, Incomplete
from anchored.files import claim, write_json
from anchored.journal import Journal

TOKENS_A_KEY = 6  # estimated tokens of an answer per key; a dry run measures them
_THINKS = (
    "its chat template can make it think, and such answers fail; switch it off with "
    "endpoint.sampling={chat_template_kwargs: {enable_thinking: false}}"
)
_FREE = ("source", "serve", "max_failed")  # what may change between two runs into one folder


class EndpointAnnotateConfig(CorpusConfig):
    """Configuration of `anchored annotate` for the endpoint annotator.

    Existing annotations are kept. The corpus may grow, shrink or move before a run is resumed.
    """

    annotator: Literal["endpoint"] = "endpoint"
    endpoint: AnnotatorConfig
    serve: ServeConfig | None = Field(
        default=None, description="server to launch; the endpoint then takes its address and model"
    )
    prompt: Path | None = Field(
        default=None, description="file to use instead of the built-in prompts"
    )
    context_tags: int = Field(
        default=0, ge=0, description="show the model the tags of the N preceding chunks"
    )
    max_failed: int | None = Field(
        default=None, ge=0, description="stop when more than this many texts have failed"
    )
    workers: int | None = Field(
        default=None, ge=1, description="processes on a cluster; None: one per machine"
    )

    @model_validator(mode="after")
    def _cluster_fits(self) -> Self:
        if self.cluster is None and self.workers is not None:
            raise ValueError(
                "workers: works only with a cluster; add cluster: ray, or leave it out"
            )
        if self.cluster is not None and self.serve is not None:
            raise ValueError(
                "serve: one server would serve all machines; start the servers first and set "
                "endpoint.url, or run one server per task with --shard"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _serve_names_the_endpoint(cls, data: Any) -> Any:
        serve = data.get("serve") if isinstance(data, dict) else None
        if not isinstance(serve, dict) or "model" not in serve:
            return data
        served = {"url": "http://127.0.0.1", "model": serve["model"]}
        return {**data, "endpoint": {**served, **(data.get("endpoint") or {})}}


@dataclass
class _Scan:
    """Counts from one pass over a share, and a sample drawn evenly from its texts."""

    size: int
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    rows: int = 0
    parts: int = 0
    characters: int = 0
    last_shard: int = -1
    sample: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        self.parts += 1
        self.characters += len(part.text) + len(part.request or "")
        if len(self.sample) < self.size:
            self.sample.append(part)
        elif (place := self.rng.randrange(self.parts)) < self.size:
            self.sample[place] = part


def run(
    config: EndpointAnnotateConfig,
    console: Console | None = None,
    share: Share = WHOLE,
    dry_run: int = 0,
) -> dict[str, Any]:
    """Annotate a corpus, or resume an earlier run in the same folder.

    Args:
        config: the run.
        console: receives the estimate, the progress and the summary; by default stderr.
        share: the part of the corpus that this process annotates.
        dry_run: annotate only this many texts, and project tokens, time and cost for all.

    Returns:
        The manifest, which is also written to `config.out`, or the projection of a dry run.

    Raises:
        ConfigError: `out` belongs to another run, or the schema, the prompt or the server is wrong.
        DataError: a source or a row is invalid.
        EndpointError: the server cannot be used; the answers so far are kept.
        Incomplete: some texts failed; run again to retry them.
    """
    console = console or Console(stderr=True)
    if config.cluster is not None and share != WHOLE:
        raise ConfigError("cluster: annotates the whole corpus; leave out --shard or the cluster")
    check_installed(config)
    annotator = _annotator(config)
    if config.out.exists():
        claim(config.out, config, _FREE)
    scan = _scan(config, share, dry_run, console)
    claim(config.out, config, _FREE)
    console.print(_estimate(annotator, scan), highlight=False, soft_wrap=True)
    with Journal(config.out / share.file("journal", ".jsonl")) as journal:
        if share == WHOLE:
            collect_all(config.out, journal)
        work = _Work(config, annotator, journal, console)
        if dry_run:
            projection = blocking(work.project(scan))
            console.print(str(projection), highlight=False, soft_wrap=True)
            return asdict(projection)
        if config.cluster is None:
            blocking(work.annotate(scan, share))
        else:
            work.annotate_on_cluster(scan)
        _remove_shards_after(scan.last_shard, config.out, share)
        manifest = _manifest(config, annotator, scan, journal, share)
    write_json(config.out / share.file("manifest", ".json"), manifest)
    _raise_if_incomplete(config.out, manifest)
    return manifest


def _annotator(config: EndpointAnnotateConfig) -> EndpointAnnotator:
    schema = load_schema(config.schema_name)
    about_text, about_response = (
        Prompt.of(schema, response, config.prompt) for response in (False, True)
    )
    return EndpointAnnotator(config.endpoint, schema, (about_text, about_response))


def _scan(config: EndpointAnnotateConfig, share: Share, sample: int, console: Console) -> _Scan:
    scan = _Scan(sample)
    with console.status("reading the source"):
        for scan.last_shard, rows in numbered_shards(config, share):
            scan.rows += len(rows)
            for _, item in rows:
                for part in open_parts(item):
                    scan.add(part)
    if not scan.rows and share == WHOLE:
        raise DataError(f"{config.source[0].path}: no row to annotate")
    return scan


def _estimate(annotator: EndpointAnnotator, scan: _Scan) -> str:
    """Return what there is to do and an estimate of the tokens, from the number of characters."""
    beginning = estimated_tokens(annotator.prompts[0].text)
    read = scan.parts * beginning + scan.characters // CHARACTERS_A_TOKEN
    out = scan.parts * TOKENS_A_KEY * len(annotator.schema.keys)
    cost = annotator.config.cost(read, out)
    return (
        f"{scan.rows:,} rows, {scan.parts:,} chunks; about {read:,} input tokens (every request "
        f"begins with the same {beginning:,}) and {out:,} output tokens"
        + ("" if cost is None else f": {cost:,.2f} at the given prices")
    )


class _Work:
    """The asynchronous part of a run: connects server, endpoint, writer and display."""

    def __init__(
        self,
        config: EndpointAnnotateConfig,
        annotator: EndpointAnnotator,
        journal: Journal,
        console: Console,
    ) -> None:
        self.config, self.annotator = config, annotator
        self.journal, self.console = journal, console

    async def annotate(self, scan: _Scan, share: Share) -> None:
        """Annotate every text of the share and write its shards."""
        meter = Meter(scan.parts)
        async with self._writer(meter) as writer:
            await writer.write(
                numbered_shards(self.config, share), 2 * self.config.endpoint.concurrency
            )
        self.console.print(meter.line(), highlight=False, soft_wrap=True)

    def annotate_on_cluster(self, scan: _Scan) -> None:
        """Annotate the whole corpus with the workers of a cluster."""
        from anchored.corpus.cluster import joined
        from anchored.corpus.endpoint_workers import Job, annotate

        config, meter = self.config, Meter(scan.parts)
        with joined(config.workers, scan.last_shard + 1, one_a_node=True) as cluster:
            job = Job.shared(
                config.out, self.annotator, config.context_tags, config.max_failed, cluster.workers
            )
            display = Display(meter, self.console)
            with display.progress:
                annotate(cluster, config, job, self.journal, meter, display.update)
        self.console.print(meter.line(), highlight=False, soft_wrap=True)

    async def project(self, scan: _Scan) -> Projection:
        """Return the projection for the whole share from its sample; the answers are kept."""
        requests = [Request(part.text, part.request) for part in scan.sample]
        answers: list[Answer] = []
        meter = Meter(len(requests))
        async with self._writer(meter) as writer:
            await run_all(
                requests,
                lambda request: writer.settled(self.annotator.key(request), request),
                lambda _, answer: answers.append(answer),
                2 * self.config.endpoint.concurrency,
            )
        return Projection.of(answers, meter, scan.parts, self.config.endpoint)

    @asynccontextmanager
    async def _writer(self, meter: Meter) -> AsyncIterator[ShardWriter]:
        display = Display(meter, self.console)
        async with self._asker() as ask:
            with display.progress:
                yield ShardWriter(
                    self.config.out,
                    self.journal,
                    self.annotator.key,
                    ask,
                    meter,
                    self.config.context_tags,
                    self.config.max_failed,
                    display.update,
                )

    @asynccontextmanager
    async def _asker(self) -> AsyncIterator[Callable[[Request], Awaitable[Answer]]]:
        """Yield a function that asks the endpoint, or a server that this run launches."""
        if self.config.serve is None:
            await check_listening(self.config.endpoint.url)
            async with Endpoint(self.config.endpoint) as endpoint:
                yield lambda request: self.annotator.annotate(endpoint, request)
            return
        if thinks(self.config.serve.model):
            self.console.print(f"{self.config.serve.model}: {_THINKS}", soft_wrap=True)
        async with Server(self.config.serve, self.config.out / LOG) as server:
            there = self.config.endpoint.model_copy(update={"url": server.url})
            async with Endpoint(there) as endpoint:
                yield lambda request: self._ask_again(server, endpoint, request)

    async def _ask_again(self, server: Server, endpoint: Endpoint, request: Request) -> Answer:
        """Ask again as long as the server died while it was answering."""
        while True:
            deaths = server.deaths
            try:
                answer = await self.annotator.annotate(endpoint, request)
            except EndpointError:
                if not await server.recovered(deaths):
                    raise
            else:
                if answer.error is None or not await server.recovered(deaths):
                    return answer


def _manifest(
    config: EndpointAnnotateConfig,
    annotator: EndpointAnnotator,
    scan: _Scan,
    journal: Journal,
    share: Share,
) -> dict[str, Any]:
    usage, dropped = _spent(journal)
    return {
        "annotator": config.annotator,
        "model": config.endpoint.model,
        "sampling": config.endpoint.request,
        "prompts": {prompt.name: prompt.sha256 for prompt in annotator.prompts},
        "schema": annotator.schema.model_dump(mode="json"),
        "rows": scan.rows,
        **_written(config.out, share),
        "dropped_keys": dict(dropped.most_common()),
        "tokens": asdict(usage),
        "cost": config.endpoint.cost(usage.prompt_tokens, usage.completion_tokens),
        "versions": versions(),
    }


def _remove_shards_after(last: int, out: Path, share: Share) -> None:
    """Remove the shards of an earlier, longer corpus."""
    for number in shard_numbers(out):
        if share.has(number) and number > last:
            (out / SHARD.format(number)).unlink()


def _spent(journal: Journal) -> tuple[Usage, Counter[str]]:
    """Return the tokens of all kept answers, and how often each key was dropped from them."""
    usage, dropped = Usage(), Counter[str]()
    for row in journal.rows():
        usage += Usage.of_row(row)
        dropped.update(row.get("dropped", ()))
    return usage, dropped


def _written(out: Path, share: Share) -> dict[str, Any]:
    """Return the counts of chunks and failures in the shards, and the coverage of each key."""
    counts, first_error, present = Counter[str](), None, Counter[str]()
    for number in filter(share.has, shard_numbers(out)):
        for record in read_shard(out, number):
            counts.update(chunks=1, failed=record.error is not None)
            present.update({tag["key"] for tag in record.annotation})
            first_error = first_error or record.error
    annotated = max(1, counts["chunks"] - counts["failed"])
    return {
        "chunks": counts["chunks"],
        "failed": counts["failed"],
        "first_error": first_error,
        "coverage": {key: round(count / annotated, 4) for key, count in present.most_common()},
    }


def _raise_if_incomplete(out: Path, manifest: dict[str, Any]) -> None:
    if manifest["failed"]:
        raise Incomplete(
            f"{out}: {manifest['failed']:,} of {manifest['chunks']:,} chunks failed, the first "
            f"by: {manifest['first_error']}; run again to retry"
        )
