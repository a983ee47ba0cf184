"""`anchored prepare`: make a prepared dataset from sources, in one stream or in parallel shards."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, track
from rich.table import Table

from anchored.annotation import Schema
from anchored.config import Config, to_yaml, versions
from anchored.data.readers import ObjectiveName, SourceConfig, load_schema
from anchored.data.rows import Document, Item
from anchored.data.shard import Account, Dropped, Shard, Sourced, is_weighted, sourced_items
from anchored.data.store import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    join_shards,
    load_prepared,
    read_manifest,
)
from anchored.errors import AnchoredError, ConfigError, DataError
from anchored.files import CONFIG_NAME, atomic_write, building, claim, digest, write_json
from anchored.processes import end_with_parent
from anchored.segments import OBJECTIVES, KeyOrder, Kind, check_annotations_come_back
from anchored.tokenizer import AnchoredTokenizer

__all__ = [
    "NewTokenizer",
    "PrepareConfig",
    "SourceConfig",
    "account_table",
    "load_prepared",
    "prepare",
    "read_manifest",
]

_ACCOUNT, _SOURCES = "account.json", "sources.json"


class NewTokenizer(Config):
    """A new tokenizer, trained on the sources."""

    vocab_size: int = Field(ge=300)
    max_chars: int = Field(
        default=50_000_000, ge=1, description="characters of text to train it on"
    )


class PrepareConfig(Config):
    """The configuration of `anchored prepare`.

    The objective decides whether annotations are written and what carries loss. `out` and
    `tokenizer` may be left out only inside a training configuration.
    """

    out: Path | None = None
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    tokenizer: str | NewTokenizer | None = Field(
        default=None, description="folder, hub id, or a new one"
    )
    objective: ObjectiveName = "annotated"
    schema_name: str | None = Field(
        default=None, description="built-in name or YAML file that tags are checked against"
    )
    canonical: Path | None = Field(
        default=None,
        description="file of spellings to merge into one; `anchored inspect --tags` proposes one",
    )
    key_order: KeyOrder = "shuffled"
    prompted_share: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="share of the documents with a prompt that pretraining sees after their prompt",
    )
    annotated_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the rows that pretraining sees with their annotations; the others "
        "are written plain",
    )
    max_length: int = Field(default=1024, ge=16, description="tokens per row")
    packing: bool = True
    token_budget: int | None = Field(
        default=None,
        ge=1,
        description="tokens to keep, annotations included: they replace text",
    )
    validation_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of rows held out, by id"
    )
    min_chunk_chars: int = Field(default=200, ge=1)
    max_chunk_chars: int = Field(default=1500, ge=1)
    format_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of examples with loss on tag keys; replaces the objective's own",
    )
    skip_bad_rows: bool = Field(
        default=False, description="count malformed rows and skip them instead of stopping"
    )
    shards: int = Field(
        default=1,
        ge=1,
        description="number of parts, each with every n-th row, prepared in parallel processes; a "
        "stopped run keeps its finished parts",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _ends(self) -> PrepareConfig:
        endless = [source.path for source in self.sources if source.endless]
        if endless and self.token_budget is None:
            raise ValueError(f"source {endless[0]!r} never ends: set its limit, or a token_budget")
        return self


def prepare(config: PrepareConfig, console: Console | None = None) -> Path:
    """Write the prepared dataset that `config` describes, and print its token counts.

    Args:
        config: the configuration.
        console: prints the counts; `Console(quiet=True)` prints nothing.

    Returns:
        `config.out`, which is complete or does not exist.

    Raises:
        ConfigError: `out` or `tokenizer` is missing, the tokenizer or schema cannot be loaded, or
            the tokenizer loses characters that annotations need.
        DataError: a source or a row is malformed, `out` is not empty, or no token carries loss.
    """
    console = console or Console()
    if config.out is None:
        raise ConfigError("out: missing; name the folder of the prepared dataset")
    schema = load_schema(config.schema_name) if config.schema_name else None
    if config.shards > 1:
        manifest = _in_shards(config, config.out, schema, console)
    else:
        with building(config.out) as folder:
            tokenizer = _tokenizer(config, schema)
            tokenizer.save(folder / "tokenizer")
            account = Shard(config, tokenizer, schema, folder).write(partial(_progress, console))
            _check(config, account)
            manifest = _finish(config, schema, tokenizer, account, folder)
    console.print(account_table(manifest))
    return config.out


def _in_shards(
    config: PrepareConfig, out: Path, schema: Schema | None, console: Console
) -> dict[str, Any]:
    """Prepare the shards in a folder beside `out`, which is removed once all are joined."""
    staging = out.with_name(f".{out.name}.shards")
    names = [f"shard-{number:05d}" for number in range(config.shards)]
    if (out / MANIFEST).is_file():
        shutil.rmtree(staging, ignore_errors=True)  # killed while removing this
    with building(out) as folder:
        _claim_staging(staging, config)
        with _kept_if_begun(staging, names):
            if not (staging / "tokenizer").exists():
                with building(staging / "tokenizer") as saved:
                    _tokenizer(config, schema).save(saved)
            _write_missing(config, staging, names, console)
        tokenizer = AnchoredTokenizer.load(staging / "tokenizer")
        tokenizer.save(folder / "tokenizer")
        account = Account.total([Account.load(staging / name / _ACCOUNT) for name in names])
        _check(config, account)
        weighted = is_weighted(config)
        for split in account.splits:
            within = "." if split == "train" else split
            parts = [staging / name / within for name in names]
            account.splits[split]["files"] = join_shards(parts, folder / within, weighted)
        manifest = _finish(config, schema, tokenizer, account, folder)
    shutil.rmtree(staging)
    return manifest


def _claim_staging(staging: Path, config: PrepareConfig) -> None:
    """Claim `staging` for this configuration and the present state of its sources.

    Raises:
        ConfigError: its shards were made with another configuration or other sources.
    """
    try:
        claim(staging, config)
    except ConfigError as error:
        raise ConfigError(f"{error}; or remove {staging} to start again") from None
    found, path = _source_files(config), staging / _SOURCES
    before = json.loads(path.read_bytes()) if path.is_file() else found
    for name in {**before, **found}:
        if before.get(name) != found.get(name):
            raise ConfigError(
                f"{name}: changed since shards were made of it; restore it, or remove {staging} to "
                "start again"
            )
    write_json(path, found)


def _source_files(config: PrepareConfig) -> dict[str, list[int]]:
    """Return the size and modification time of every local file that rows come from."""
    given = (Path(p) for s in config.sources for p in (s.path, s.annotations) if p is not None)
    files = (file for path in given for file in (path, *sorted(path.rglob("*"))) if file.is_file())
    return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


@contextmanager
def _kept_if_begun(staging: Path, names: Sequence[str]) -> Iterator[None]:
    """Remove `staging` if a run fails on its input before any shard is done."""
    try:
        yield
    except AnchoredError:
        if not any((staging / name).exists() for name in names):
            shutil.rmtree(staging, ignore_errors=True)
        raise


def _write_missing(
    config: PrepareConfig, staging: Path, names: Sequence[str], console: Console
) -> None:
    missing = [number for number, name in enumerate(names) if not (staging / name).exists()]
    if not missing:
        return
    workers = min(len(missing), os.cpu_count() or 1)
    console.print(
        f"{len(missing)} of {len(names)} shards to prepare, {workers} at once; a stopped run "
        "resumes with the missing ones"
    )
    bar = Console(stderr=True)
    with ProcessPoolExecutor(workers, _forks(), _become_worker, (workers,)) as pool:
        running = [pool.submit(_write_shard, config, staging, names[n], n) for n in missing]
        try:
            for future in track(
                as_completed(running),
                "preparing shards",
                len(running),
                console=bar,
                transient=True,
                disable=console.quiet or not bar.is_interactive,
            ):
                future.result()
        except BrokenProcessPool:
            raise AnchoredError(
                f"{staging}: a process that prepared a shard was killed, perhaps for its memory; "
                "run again to resume"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _forks() -> BaseContext:
    """Return a context whose processes fork from one that only did the imports, if possible."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _become_worker(workers: int) -> None:
    os.environ["RAYON_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    end_with_parent()


def _write_shard(config: PrepareConfig, staging: Path, name: str, number: int) -> None:
    schema = load_schema(config.schema_name) if config.schema_name else None
    tokenizer = AnchoredTokenizer.load(staging / "tokenizer")
    with building(staging / name) as folder:
        account = Shard(config, tokenizer, schema, folder, number).write()
        write_json(folder / _ACCOUNT, vars(account))


def _finish(
    config: PrepareConfig,
    schema: Schema | None,
    tokenizer: AnchoredTokenizer,
    account: Account,
    folder: Path,
) -> dict[str, Any]:
    manifest = _manifest(config, tokenizer, schema, account)
    write_json(folder / MANIFEST, manifest)
    atomic_write(folder / CONFIG_NAME, to_yaml(config))
    return manifest


def _check(config: PrepareConfig, account: Account) -> None:
    for name, split in account.splits.items():
        if not split["supervised"]:
            left_out = (f"{n['examples']} {why}" for why, n in account.dropped.items())
            raise DataError(
                f"sources: no token of the {name} split carries loss under objective "
                f"{config.objective!r}; left out: {', '.join(left_out) or 'nothing'}"
            )
    if OBJECTIVES[config.objective].annotated and not account.read["annotations"]:
        raise DataError(
            f"sources: objective {config.objective!r} needs annotations and no row has "
            f"one; run `anchored annotate` first, or use objective plain or standard"
        )
    if account.left:
        budget = config.token_budget or 0
        raise DataError(
            f"token_budget: {budget} tokens asked for, but the sources end after "
            f"{budget - account.left}; lower the budget or add sources"
            + (", or use fewer shards, whose parts are uneven" if config.shards > 1 else "")
        )


def _tokenizer(config: PrepareConfig, schema: Schema | None) -> AnchoredTokenizer:
    tokenizer = _given_or_learnt(config)
    objectives = {source.objective or config.objective for source in config.sources}
    if any(OBJECTIVES[name].annotated for name in objectives):
        check_annotations_come_back(tokenizer, schema)
    return tokenizer


def _given_or_learnt(config: PrepareConfig) -> AnchoredTokenizer:
    if config.tokenizer is None:
        raise ConfigError("tokenizer: missing; give a folder, a hub id or {vocab_size: ...}")
    if isinstance(config.tokenizer, str):
        return AnchoredTokenizer.load(config.tokenizer)
    items = (item for item, _ in sourced_items(config, Dropped()))
    texts = _first_chars(_texts(items), config.tokenizer.max_chars)
    return AnchoredTokenizer.train(texts, config.tokenizer.vocab_size)


def _first_chars(texts: Iterable[str], limit: int) -> Iterator[str]:
    seen = 0
    for text in texts:
        yield text
        seen += len(text)
        if seen >= limit:
            return


def _texts(items: Iterable[Item]) -> Iterator[str]:
    """Yield all text that is encoded, tags included."""
    for item in items:
        if isinstance(item, Document):
            for chunk in item.chunks:
                yield from (str(chunk.annotation or ""), chunk.text)
            yield item.prompt or ""
        else:
            for message in item.messages:
                yield from (str(message.annotation or ""), message.content)


def _progress(console: Console, items: Iterable[Sourced]) -> Iterator[Sourced]:
    columns = (
        SpinnerColumn(),
        TextColumn("preparing: {task.completed:,} rows"),
        TimeElapsedColumn(),
    )
    stderr = Console(stderr=True)
    hidden = console.quiet or not stderr.is_interactive  # otherwise it leaves an empty line
    with Progress(*columns, console=stderr, transient=True, disable=hidden) as bar:
        task = bar.add_task("prepare", total=None)
        for number, sourced in enumerate(items, 1):
            if number % 256 == 0:
                bar.update(task, completed=number)
            yield sourced


def _manifest(
    config: PrepareConfig, tokenizer: AnchoredTokenizer, schema: Schema | None, account: Account
) -> dict[str, Any]:
    train = account.splits["train"]
    dropped = {reason: dict(counts) for reason, counts in account.dropped.items()}
    return {
        "format": FORMAT,
        "objective": config.objective,
        **({WEIGHTS: True} if is_weighted(config) else {}),
        "tokens": {
            "kept": train["tokens"],
            "supervised": train["supervised"],
            "masked": train["masked"],
            "dropped": sum(counts["tokens"] for counts in dropped.values()),
        },
        "dropped": dropped,
        "splits": account.splits,
        "read": dict(account.read),
        "schema": schema.model_dump(mode="json") if schema else None,
        "canonical": digest(config.canonical) if config.canonical else None,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "probe": tokenizer.probe(),
            "vocab_size": len(tokenizer),
        },
    }


def account_table(manifest: dict[str, Any]) -> Table:
    """Return the token counts of a manifest: kept, with loss, masked, by kind, and left out."""
    title = f"{manifest['config']['out']}: {manifest['objective']}"
    table = Table("", "rows", "tokens", "with loss", "masked", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in manifest["splits"].items():
        numbers = (split[key] for key in ("rows", "tokens", "supervised", "masked"))
        table.add_row(name, *(f"{number:,}" for number in numbers))
        for kind, tokens in split["by_kind"].items():
            learnt = split["supervised_by_kind"][kind]
            numbers = (f"{n:,}" for n in (tokens, learnt, tokens - learnt))
            table.add_row(f"  {kind.replace('_', ' ')}", "", *numbers)
    if missing := manifest["read"].get("annotations missing"):
        learnt = Kind.TAG_KEY in OBJECTIVES[manifest["objective"]].loss
        instead = "learnt as empty" if learnt else "empty"
        table.add_row(f"annotations missing, {instead}", f"{missing:,}", "", "", "")
    for reason, counts in manifest["dropped"].items():
        numbers = (f"{counts['examples']:,}", f"{counts['tokens']:,}")
        table.add_row(f"left out: {reason}", *numbers, "", "")
    return table
