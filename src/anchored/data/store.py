"""Prepared datasets on disk: written in bounded memory, refused on loading if they have changed.

out/                    a `datasets.Dataset` with the columns of `features_of`
  manifest.json         configuration, versions, tokenizer, schema, counts, digests of the files
  config.yaml           the configuration alone
  tokenizer/
  validation/           a second `datasets.Dataset`, if there is a validation split
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import (
    Dataset,
    DatasetInfo,
    Features,
    List,
    Value,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)
from datasets.arrow_writer import ArrowWriter
from datasets.table import InMemoryTable
from datasets.utils import are_progress_bars_disabled

from anchored.data.packing import Segments, token_count
from anchored.errors import DataError
from anchored.segments import NO_LOSS, Kind
from anchored.tokenizer import AnchoredTokenizer

MANIFEST = "manifest.json"
FORMAT = 1
FEATURES = Features(
    {
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "kinds": List(Value("int8")),
        "seq_lengths": List(Value("int32")),
    }
)
WEIGHTS = "weights"
_FLUSH_TOKENS = 1 << 18
_BLOCK = 1 << 20
_BLOCKS = 64


def features_of(weighted: bool) -> Features:
    """Return the columns of a prepared dataset.

    Token weights are stored only if one may be neither 0 nor 1: weights of 0 and 1 follow from
    `labels`, which are `NO_LOSS` where the weight is 0.
    """
    return Features({**FEATURES, WEIGHTS: List(Value("float32"))}) if weighted else FEATURES


def to_table(rows: Sequence[Sequence[Segments]], weighted: bool = False) -> pa.Table:
    """Return packed rows as columns: each sequence as by `assemble`, without a loop over tokens.

    `seq_lengths` holds the lengths of the sequences in a row.
    """
    sequences = [sequence for row in rows for sequence in row]
    segments = [segment for sequence in sequences for segment in sequence]
    sizes = np.array([len(segment.ids) for segment in segments], dtype=np.int64)
    ids = np.fromiter(chain.from_iterable([s.ids for s in segments]), np.int32, sizes.sum())
    kinds = np.frombuffer(bytes([segment.kind for segment in segments]), np.int8)
    each = np.array([segment.weight for segment in segments], dtype=np.float32)
    assert weighted or ((each == 0) | (each == 1)).all()
    ends = np.concatenate(([0], np.cumsum(sizes)))[np.cumsum([len(s) for s in sequences])]
    lengths = np.diff(ends, prepend=0)
    weights = np.repeat(each, sizes)
    weights[ends - lengths] = 0  # nothing predicts the first token of a sequence
    row_ends = ends[np.cumsum([len(row) for row in rows]) - 1]
    row_lengths = np.diff(row_ends, prepend=0)
    columns = {
        "input_ids": (ids, row_lengths),
        "labels": (np.where(weights, ids, np.int32(NO_LOSS)), row_lengths),
        "kinds": (np.repeat(kinds, sizes), row_lengths),
        "seq_lengths": (lengths.astype(np.int32), [len(row) for row in rows]),
    }
    if weighted:
        columns[WEIGHTS] = (weights, row_lengths)
    return pa.table(
        {name: _lists(*column) for name, column in columns.items()},
        schema=features_of(weighted).arrow_schema,
    )


def _tokens(row: Sequence[Segments]) -> int:
    return sum([token_count(sequence) for sequence in row])


def _lists(values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> pa.ListArray:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class SplitWriter:
    """Writes one split row by row and counts its tokens.

    Args:
        folder: the folder of the split.
        weighted: True if a weight may be neither 0 nor 1.
    """

    def __init__(self, folder: Path, weighted: bool = False) -> None:
        self.folder = folder
        self._weighted = weighted
        self._partial = folder / "partial" / "rows.arrow"
        self._partial.parent.mkdir(parents=True)
        self._writer = ArrowWriter(path=str(self._partial), features=features_of(weighted))
        self._buffer: list[list[Segments]] = []
        self._buffered = 0
        self._rows = self._sequences = self._longest = 0
        self._tokens: Counter[int] = Counter()
        self._supervised: Counter[int] = Counter()

    def write(self, row: list[Segments]) -> None:
        """Add one row."""
        self._buffer.append(row)
        self._buffered += _tokens(row)
        if self._buffered >= _FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        if not self._buffer:
            return
        table = to_table(self._buffer, self._weighted)
        self._count(table)
        self._writer.write_table(table)
        self._buffer, self._buffered = [], 0

    def _count(self, table: pa.Table) -> None:
        kinds, labels = (
            table[name].combine_chunks().flatten().to_numpy() for name in ("kinds", "labels")
        )
        self._tokens.update(dict(enumerate(np.bincount(kinds).tolist())))
        self._supervised.update(dict(enumerate(np.bincount(kinds[labels != NO_LOSS]).tolist())))
        self._rows += len(self._buffer)
        self._sequences += sum(map(len, self._buffer))
        self._longest = max(self._longest, max(map(_tokens, self._buffer)))

    def close(self) -> dict[str, Any]:
        """Write the remaining rows; return counts of rows, sequences, tokens, and digests."""
        self._flush()
        self._writer.finalize()
        files = {}
        if self._rows:
            files = save_rows(self._partial, self.folder, features_of(self._weighted))
        shutil.rmtree(self._partial.parent)
        tokens, supervised = self._tokens.total(), self._supervised.total()
        return {
            "rows": self._rows,
            "sequences": self._sequences,
            "longest_row": self._longest,
            "tokens": tokens,
            "supervised": supervised,
            "masked": tokens - supervised,
            "by_kind": {kind.name.lower(): self._tokens[kind] for kind in Kind},
            "supervised_by_kind": {kind.name.lower(): self._supervised[kind] for kind in Kind},
            "files": files,
        }


def save_rows(rows: Path, folder: Path, features: Features) -> dict[str, str]:
    """Move an Arrow file into `folder`, beside the files that `Dataset.save_to_disk` writes.

    Returns:
        The digest of the data file, by its name.
    """
    fingerprint = digest(rows)
    (data,) = _save_empty(folder, features, fingerprint, files=1)
    rows.replace(data)
    return {data.name: fingerprint}


def join_shards(shards: Sequence[Path], folder: Path, weighted: bool) -> dict[str, str]:
    """Join the datasets in `shards` into one in `folder`, with links to their data files.

    Returns:
        The digests of the data files, by name.
    """
    parts = [file for shard in shards for file in sorted(shard.glob("*.arrow"))]
    digests = [digest(part) for part in parts]
    fingerprint = hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()
    files = _save_empty(folder, features_of(weighted), fingerprint, len(parts))
    for part, file in zip(parts, files, strict=True):
        file.unlink()
        try:
            os.link(part, file)
        except OSError:  # the file system has no links
            shutil.copyfile(part, file)
    return {file.name: found for file, found in zip(files, digests, strict=True)}


def _save_empty(folder: Path, features: Features, fingerprint: str, files: int) -> list[Path]:
    """Save an empty table with `datasets`, and return its data files for the caller to replace.

    This way rows need not be read again to be saved.
    """
    empty = InMemoryTable(features.arrow_schema.empty_table())
    with _no_progress_bars():
        Dataset(empty, info=DatasetInfo(features=features), fingerprint=fingerprint).save_to_disk(
            str(folder), num_shards=files
        )
    return sorted(folder.glob("*.arrow"))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def digest(path: Path) -> str:
    """Hash a file's size and contents; above 64 MiB, 64 blocks of 1 MiB spread over the file."""
    size = path.stat().st_size
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    step = max(_BLOCK, (size - _BLOCK) // (_BLOCKS - 1))
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            found.update(file.read(_BLOCK))
    return found.hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a prepared dataset.

    Raises:
        DataError: it is missing, has another format, or belongs to annotated text.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise DataError(
            f"{path}: not a prepared dataset ({MANIFEST} is missing); make one with "
            "`anchored prepare`"
        )
    manifest = json.loads(file.read_text(encoding="utf-8"))
    if "annotator" in manifest:
        raise DataError(
            f"{path}: annotated text, not a prepared dataset; run `anchored prepare` with it as a "
            "source"
        )
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{file}: format {manifest.get('format')!r}, but this version reads {FORMAT}; "
            f"prepare the data again"
        )
    return manifest


def load_prepared(
    path: str | Path, tokenizer: AnchoredTokenizer | None = None, split: str = "train"
) -> tuple[Dataset, dict[str, Any]]:
    """Load and verify one split of a prepared dataset; return it with its manifest.

    Args:
        path: the folder.
        tokenizer: the tokenizer of the model; by default the one saved with the data.
        split: `train` or `validation`.

    Raises:
        TokenizerMismatch: the tokenizer encodes differently from the one the data was made with.
        DataError: the manifest or the split is missing, files differ from the manifest, or no
            token carries loss.
    """
    path = Path(path)
    manifest = read_manifest(path)
    tokenizer = tokenizer or AnchoredTokenizer.load(path / "tokenizer")
    tokenizer.check(manifest["tokenizer"]["fingerprint"], str(path))
    account = manifest["splits"].get(split)
    if account is None:
        raise DataError(f"{path}: no {split} split; prepare the data again with a validation_share")
    if not account["supervised"]:
        raise DataError(
            f"{path}: no token carries loss; prepare the data again under another objective"
        )
    folder = path if split == "train" else path / split
    return _load_split(folder, account, manifest.get(WEIGHTS, False)), manifest


def _load_split(folder: Path, account: dict[str, Any], weighted: bool) -> Dataset:
    found = sorted(folder.glob("*.arrow"))
    # Other trainers derive data from the rows; `datasets` caches them in the same folder.
    files = {path.name: digest(path) for path in found if not path.name.startswith("cache-")}
    for name in {**account["files"], **files}:
        before, now = account["files"].get(name), files.get(name)
        if before != now:
            raise DataError(
                f"{folder / name}: digest {now}, but {before} in {MANIFEST}: it changed since it "
                f"was written; prepare the data again"
            )
    dataset = load_from_disk(str(folder))
    columns = set(features_of(weighted)) == set(dataset.column_names)
    if not isinstance(dataset, Dataset) or not columns or len(dataset) != account["rows"]:
        raise DataError(
            f"{folder}: not the rows and columns that {MANIFEST} describes; prepare the data again"
        )
    return dataset


def refuse_weights(data: Path, manifest: Mapping[str, Any], reader: str) -> None:
    """Check that labels alone say what carries loss, for a trainer that reads no weights.

    Raises:
        DataError: tokens carry weights, all of which `reader` would take for 1.
    """
    if manifest.get(WEIGHTS):
        raise DataError(
            f"{data}: objective {manifest['objective']!r} weighs tokens, and {reader} would give "
            "each the weight 1; train with `anchored`, or prepare the data under an objective "
            "whose weights are 0 and 1"
        )
