"""Runs `anchored annotate` with an annotator on this machine, resumable at any point.

The output is numbered shards of annotated rows. A shard holds a fixed number of rows and is written
under a temporary name, then renamed, so a shard that exists is finished. A run that was killed and
started again writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anchored.annotation import Annotation, Schema
from anchored.annotators.table import (
    Annotator,
    AnnotatorEntry,
    Setup,
    find_annotator,
    usages,
)
from anchored.config import versions
from anchored.data.corpus_source import CorpusConfig, batched, check_installed, items
from anchored.data.readers import SourceConfig, load_schema, read_items
from anchored.data.rows import Document, Item, annotated_row, uncut
from anchored.errors import ConfigError, DataError
from anchored.files import claim, write_json, write_jsonl
from anchored.processes import end_with_parent
from anchored.tags.observations import annotations_of
from anchored.tags.statistics import TagStatistics, statistics

MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
_IDENTITY = "plan.json"  # the name is kept for runs that are under way
_PROBE = 500
_BATCH = 512

_Shard = Sequence[Item]


class AnnotateConfig(CorpusConfig):
    """Configuration of `anchored annotate` for the annotators that run on this machine.

    Rows keep all their fields. A document's `text` becomes `chunks`. Existing annotations are kept.
    """

    annotator: str = Field(default="offline", description=" or ".join(usages()))
    calibration: Path | None = Field(
        default=None,
        description="calibration.json of an earlier run, to annotate SFT data like its corpus",
    )
    sample_chunks: int = Field(default=20_000, ge=1, description="number of chunks to calibrate on")
    workers: int | None = Field(
        default=None, ge=1, description="number of processes; None: one per core"
    )
    seed: int = 0

    @field_validator("annotator")
    @classmethod
    def _known(cls, annotator: str) -> str:
        find_annotator(annotator)
        return annotator

    @property
    def entry(self) -> AnnotatorEntry:
        """The annotator's entry in the table."""
        return find_annotator(self.annotator)[0]

    def setup(self, schema: Schema, sample: Sequence[str] = ()) -> Setup:
        """Return what the annotator is made from: the run's own calibration once there is one."""
        kept = self.out / CALIBRATION
        return Setup(
            find_annotator(self.annotator)[1],
            schema,
            self.schema_name,
            kept if self.entry.fitted and kept.is_file() else self.calibration,
            sample,
        )


@dataclass
class _Scan:
    """Counts from one pass over the source, and a sample drawn evenly from all its chunks."""

    size: int
    rng: random.Random
    rows: int = 0
    skipped: int = 0
    chunks: int = 0
    chars: int = 0
    chars_to_read: int = 0
    sample: list[str] = field(default_factory=list)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.chunks += 1
            self.chars += len(text)
            if len(self.sample) < self.size:
                self.sample.append(text)
            elif (place := self.rng.randrange(self.chunks)) < self.size:
                self.sample[place] = text


def run(config: AnnotateConfig, console: Console | None = None) -> dict[str, Any]:
    """Annotate a corpus, or resume an earlier run of the same configuration.

    Args:
        config: the run.
        console: receives the estimate, the progress and the summary; by default stderr.

    Returns:
        The manifest, which is also written to `config.out`.

    Raises:
        ConfigError: `out` belongs to another run, or the annotator cannot write the schema.
        DataError: a source or a row is invalid, or the source changed since the run began.
    """
    console = console or Console(stderr=True)
    check_installed(config)
    schema = load_schema(config.schema_name)
    # What is not fitted to the corpus is made first: the corpus may take hours to read.
    annotator = None if config.entry.fitted else config.entry.make(config.setup(schema))
    if config.out.exists():
        claim(config.out, config)
    scan, identity = _scan(config, console)
    if annotator is not None:
        identity["annotator"] = annotator.name
    claim(config.out, config)
    _check_identity(config.out, identity)
    annotator = annotator or _fitted(config, schema, scan.sample)
    todo = _Shards(config, identity["shards"])
    _estimate(annotator, scan, todo, console)
    _write_shards(config, annotator, todo, identity["rows"], console)
    manifest = _manifest(config, annotator, identity)
    write_json(config.out / MANIFEST, manifest)
    _print_summary(manifest, console)
    return manifest


def _scan(config: AnnotateConfig, console: Console) -> tuple[_Scan, dict[str, Any]]:
    """Read the source once; return its counts and sample, and what identifies the source."""
    scan, digest = _Scan(config.sample_chunks, random.Random(config.seed)), hashlib.sha256()
    with console.status("reading the source"):
        for item in items(config):
            if item is None:
                scan.skipped += 1
                continue
            scan.rows += 1
            digest.update(json.dumps(item.raw, default=str).encode())
            scan.add(_chunk_texts(item))
            scan.chars_to_read += sum(map(len, _texts(item)))
    if not scan.rows:
        raise DataError(f"{config.source[0].path}: no row to annotate")
    identity = {
        "source_sha256": digest.hexdigest(),
        "rows": scan.rows,
        "skipped_rows": scan.skipped,
        "chunks": scan.chunks,
        "characters": scan.chars,
        "shards": -(-scan.rows // config.rows_per_shard),
    }
    return scan, identity


def _check_identity(out: Path, identity: dict[str, Any]) -> None:
    """Keep what identifies the source and the annotator; raise if a resumed run has others."""
    path = out / _IDENTITY
    before = json.loads(path.read_bytes()) if path.is_file() else identity
    if before != identity:
        what = "annotator" if before.get("annotator") != identity.get("annotator") else "source"
        raise DataError(f"{out}: the {what} has changed since this run began; use another folder")
    write_json(path, identity)


def _fitted(config: AnnotateConfig, schema: Schema, sample: Sequence[str]) -> Annotator:
    """Return the annotator with the run's calibration, which is kept in the run's folder."""
    annotator = config.entry.make(config.setup(schema, sample))
    kept = config.out / CALIBRATION
    if annotator.calibration is not None and not kept.is_file():
        write_json(kept, annotator.calibration.model_dump())
    return annotator


class _Shards:
    """The numbered files of a run, and which of them are missing."""

    def __init__(self, config: AnnotateConfig, count: int) -> None:
        self.size, self.count = config.rows_per_shard, count
        _sweep(config.out)
        self.missing = [n for n in range(count) if not _shard_path(config.out, n).is_file()]


def _sweep(out: Path) -> None:
    """Remove files that killed processes left half-written."""
    for stale in out.glob(".shard-*.partial"):
        stale.unlink(missing_ok=True)


def _shard_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.jsonl"


def _estimate(annotator: Annotator, scan: _Scan, todo: _Shards, console: Console) -> None:
    """Print how much there is to do and, from a timed probe, how long it will take."""
    share = len(todo.missing) / todo.count
    probe = scan.sample[:_PROBE]
    annotator.annotate_batch(probe)  # untimed: loads lexicons and vectors
    begin = time.perf_counter()
    annotator.annotate_batch(probe)
    per_char = (time.perf_counter() - begin) / sum(map(len, probe))
    seconds = share * scan.chars_to_read * per_char
    console.print(
        f"{scan.rows:,} rows, {scan.chunks:,} chunks, {scan.chars:,} characters; "
        f"{len(todo.missing)} of {todo.count} shards to write, about {seconds:,.0f} s on one core",
        highlight=False,
    )
    if annotator.unread:
        console.print(f"not read offline: {', '.join(annotator.unread)}", highlight=False)


def _write_shards(
    config: AnnotateConfig,
    annotator: Annotator,
    todo: _Shards,
    rows: int,
    console: Console,
) -> None:
    if config.cluster is None:
        workers = min(config.workers or os.cpu_count() or 1, len(todo.missing))
        finished = _finished(config, annotator, todo, workers)
    else:
        finished = _finished_on_cluster(config, annotator, todo, rows)
    columns = (
        TextColumn("annotating"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} rows"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task("annotate", total=rows)
        for done in finished:
            progress.advance(task, done)


def _finished(
    config: AnnotateConfig,
    annotator: Annotator,
    todo: _Shards,
    workers: int,
) -> Iterator[int]:
    """Write the missing shards; yield the number of rows of each shard that is finished."""
    missing = set(todo.missing)
    if workers <= 1:
        for number, shard in _shards(config):
            if number in missing:
                _write_shard(annotator, _shard_path(config.out, number), shard)
            yield len(shard)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (annotator.again(),)) as pool:
        running: set[Future[int]] = set()
        for number, shard in _shards(config):
            if number not in missing:
                yield len(shard)
                continue
            running.add(pool.submit(_work, _shard_path(config.out, number), shard))
            if len(running) > 2 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield sum(future.result() for future in done)
        yield sum(future.result() for future in running)


def _shards(config: AnnotateConfig) -> Iterator[tuple[int, _Shard]]:
    kept = (item for item in items(config) if item is not None)
    yield from enumerate(batched(kept, config.rows_per_shard))


def _finished_on_cluster(
    config: AnnotateConfig, annotator: Annotator, todo: _Shards, rows: int
) -> Iterator[int]:
    """Do the same on a cluster, whose workers write to a folder that all machines share."""
    from anchored.corpus.cluster import joined

    last = rows - (todo.count - 1) * todo.size  # rows of the last shard
    yield rows - sum(last if n == todo.count - 1 else todo.size for n in todo.missing)
    if not todo.missing:
        return
    with joined(config.workers, len(todo.missing)) as cluster:
        make = partial(ClusterWorker, config.out.absolute(), annotator.again(), annotator.name)
        yield from cluster.spread(partial(_missing, config, frozenset(todo.missing)), make)
    _sweep(config.out)  # left by workers that died


def _missing(config: AnnotateConfig, numbers: Set[int]) -> Iterator[tuple[int, _Shard]]:
    yield from ((number, shard) for number, shard in _shards(config) if number in numbers)


class ClusterWorker:
    """Writes shards on a machine of a cluster.

    Args:
        out: the run's folder.
        make: makes the annotator.
        name: name of the annotator on the machine that sends the shards.

    Raises:
        ConfigError: this machine lacks the folder, or has other versions of the annotator's
            packages.
    """

    def __init__(self, out: Path, make: Callable[[], Annotator], name: str) -> None:
        from anchored.corpus.cluster import check_shared

        check_shared(out)
        self._out, self._annotator = out, make()
        if not name.startswith(self._annotator.name):
            raise ConfigError(f"has {self._annotator.name}, not {name}; install the same")

    def __call__(self, number: int, shard: _Shard) -> int:
        """Write one shard and return its number of rows."""
        _write_shard(self._annotator, _shard_path(self._out, number), shard)
        return len(shard)


_worker: Annotator | None = None


def _start_worker(make: Callable[[], Annotator]) -> None:
    global _worker
    end_with_parent()
    _worker = make()


def _work(path: Path, shard: _Shard) -> int:
    assert _worker is not None
    _write_shard(_worker, path, shard)
    return len(shard)


def _write_shard(annotator: Annotator, path: Path, shard: _Shard) -> None:
    texts = list(dict.fromkeys(text for item in shard for text in _texts(item)))
    found: dict[str, Annotation] = {}
    for batch in batched(texts, _BATCH):
        found |= zip(batch, annotator.annotate_batch(batch), strict=True)
    write_jsonl(path, (annotated_row(item, found) for item in shard))


def _chunk_texts(item: Item) -> Iterator[str]:
    """Yield the texts that follow an annotation of their own."""
    if isinstance(item, Document):
        yield from (chunk.text for chunk in item.chunks)
    else:
        turns = (turn for turn in item.messages if turn.role == "assistant")
        yield from (turn.content for turn in turns if turn.content)


def _texts(item: Item) -> Iterator[str]:
    """Yield all texts to annotate; a document that answers a prompt also counts as a whole."""
    yield from _chunk_texts(item)
    if isinstance(item, Document) and item.prompt is not None:
        yield item.text


def _manifest(
    config: AnnotateConfig, annotator: Annotator, identity: dict[str, Any]
) -> dict[str, Any]:
    return {
        "annotator": annotator.name,
        "schema": annotator.schema.model_dump(mode="json"),
        "unread_keys": list(annotator.unread),
        "calibration": CALIBRATION if config.entry.fitted else None,
        **identity,
        "tags": _written_tags(config.out).data(),
        "versions": versions(),
    }


def _written_tags(out: Path) -> TagStatistics:
    sources = (SourceConfig(path=str(shard)) for shard in sorted(out.glob("shard-*.jsonl")))
    rows = (item for source in sources for _, item in read_items(source, uncut))
    return statistics(annotations_of(rows))


def _print_summary(manifest: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    table = Table("key", "coverage", "entropy (nats)", "values", "most frequent")
    for key, found in manifest["tags"]["keys"].items():
        top = ", ".join(value for value, _ in found["top"][:5])
        shares = (f"{found['coverage']:.0%}", f"{found['entropy']:.2f}", f"{found['distinct']:,}")
        table.add_row(key, *shares, top)
    console.print(table)
