"""Prepared data for other trainers: one sequence per row, with each trainer's column names.

out/                    a `datasets.DatasetDict`: `train`, and `validation` if there is one
  export.json           columns, labels, separation of documents, counts, tokenizer, versions
  tokenizer/            its `anchored.json`, copied beside a model trained on this, lets us load it

Rows are never packed, because none of these trainers keeps the documents of a packed row apart.
Axolotl and torchtune number a row's positions from 0 to its end when they pack rows themselves. The
collators of Axolotl and LLaMA-Factory add an attention mask, and with one transformers does not
separate documents by their positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from rich.console import Console
from rich.progress import Progress

from anchored.config import versions
from anchored.data.store import load_prepared, read_manifest, refuse_weights, save_rows
from anchored.errors import ConfigError
from anchored.files import building, write_json
from anchored.models.record import of_other_trainer, save_beside
from anchored.segments import NO_LOSS
from anchored.tokenizer import AnchoredTokenizer

EXPORT = "export.json"
_ROWS = 512
_DTYPES = {"ids": "int32", "labels": "int32", "mask": "int8"}


@dataclass(frozen=True)
class Format:
    """The format that one trainer reads.

    Attributes:
        columns: column names by content: `ids`, `labels`, and `mask`, which is 1 everywhere. No
            other column is written, because LLaMA-Factory's collator pads every column.
        length: the trainer's setting that must be at least the longest row, because longer rows are
            dropped, cut or refused; None if the trainer ignores lengths.
    """

    columns: Mapping[str, str]
    length: str | None

    @property
    def features(self) -> Features:
        """The types of the columns for `datasets`."""
        return Features({name: List(Value(_DTYPES[of])) for of, name in self.columns.items()})


_TRANSFORMERS = {"ids": "input_ids", "labels": "labels", "mask": "attention_mask"}
FORMATS = {
    "axolotl": Format(_TRANSFORMERS, "sequence_len"),
    "llamafactory": Format(_TRANSFORMERS, None),
    "torchtune": Format({"ids": "tokens", "labels": "labels"}, "tokenizer.max_seq_len"),
}


@dataclass(frozen=True)
class Counts:
    """What was written for one split; `supervised` counts the tokens with loss."""

    rows: int = 0
    tokens: int = 0
    supervised: int = 0
    longest_row: int = 0

    def plus(self, lengths: np.ndarray, labels: np.ndarray) -> Counts:
        """Return the counts after more rows, given their lengths and their joined labels."""
        return Counts(
            self.rows + len(lengths),
            self.tokens + len(labels),
            self.supervised + int((labels != NO_LOSS).sum()),
            max(self.longest_row, int(lengths.max(initial=0))),
        )


def export(data: Path, name: str, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Write a prepared dataset in one of `FORMATS`; return the contents of `export.json`.

    Args:
        data: folder made by `anchored prepare`, packed or not.
        name: name of the format.
        out: new folder.
        console: shows progress.

    Raises:
        ConfigError: the format is unknown.
        DataError: `data` is not the dataset its manifest describes, tokens carry weights that no
            format can express, or `out` is not empty.
        TokenizerMismatch: the tokenizer in `data` is not the one it was made with.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format {name!r}: the formats are {', '.join(FORMATS)}")
    console = console or Console(quiet=True)
    manifest = read_manifest(data)
    refuse_weights(data, manifest, name)
    tokenizer = AnchoredTokenizer.load(data / "tokenizer")
    accounts = {split: one for split, one in manifest["splits"].items() if one["rows"]}
    console.print(_cost(FORMATS[name], accounts))
    with building(out) as folder:
        splits = {}
        for split in accounts:
            rows, _ = load_prepared(data, tokenizer, split)
            splits[split] = _write_split(rows, FORMATS[name], folder / split, console)
        # By this file `datasets` recognizes a `DatasetDict`.
        write_json(folder / "dataset_dict.json", {"splits": list(splits)})
        save_beside(folder / "tokenizer", tokenizer, of_other_trainer(manifest))
        found = _describe(name, manifest, tokenizer, splits)
        write_json(folder / EXPORT, found)
    return found


def _cost(form: Format, accounts: Mapping[str, Mapping[str, int]]) -> str:
    sequences = sum(account["sequences"] for account in accounts.values())
    tokens = sum(account["tokens"] for account in accounts.values())
    size = tokens * sum(np.dtype(_DTYPES[of]).itemsize for of in form.columns)
    return f"{sequences:,} sequences of {tokens:,} tokens: {size / 2**20:,.1f} MiB"


def _write_split(rows: Dataset, form: Format, folder: Path, console: Console) -> Counts:
    partial = folder / "partial" / "rows.arrow"
    partial.parent.mkdir(parents=True)
    writer = ArrowWriter(path=str(partial), features=form.features)
    counts = Counts()
    with Progress(console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(folder.name, total=len(rows))
        for batch in _batches(rows):
            table, lengths, labels = unpack(batch, form)
            writer.write_table(table)
            counts = counts.plus(lengths, labels)
            bar.advance(task, batch.num_rows)
    writer.finalize()
    save_rows(partial, folder, form.features)
    partial.parent.rmdir()
    return counts


def _batches(rows: Dataset) -> Iterator[pa.Table]:
    arrow = rows.with_format("arrow")
    for start in range(0, len(rows), _ROWS):
        yield arrow[start : start + _ROWS]  # pyright: ignore[reportReturnType]


def unpack(rows: pa.Table, form: Format) -> tuple[pa.Table, np.ndarray, np.ndarray]:
    """Convert rows of prepared data into one row per sequence.

    The first token of a sequence carries no loss, so that a trainer that joins rows again learns
    nothing across their boundary.

    Returns:
        The table; the length of each row (S,); the labels of all rows, joined (T,).
    """
    ids, labels, lengths = (
        rows[name].combine_chunks().flatten().to_numpy()
        for name in ("input_ids", "labels", "seq_lengths")
    )
    ends = np.cumsum(lengths)
    starts = ends - lengths
    assert ends[-1] == len(ids) and (labels[starts] == NO_LOSS).all()
    offsets = pa.array(np.concatenate(([0], ends)).astype(np.int32))
    values = {"ids": ids, "labels": labels, "mask": np.ones(len(ids), np.int8)}
    columns = {
        name: pa.ListArray.from_arrays(offsets, pa.array(values[of]))
        for of, name in form.columns.items()
    }
    return pa.table(columns, schema=form.features.arrow_schema), lengths, labels


def _describe(
    name: str,
    manifest: Mapping[str, Any],
    tokenizer: AnchoredTokenizer,
    splits: Mapping[str, Counts],
) -> dict[str, Any]:
    form = FORMATS[name]
    return {
        "format": name,
        "columns": {column: _DTYPES[of] for of, column in form.columns.items()},
        "labels": f"unshifted; {NO_LOSS} carries no loss",
        "documents": "one sequence a row",
        "objective": manifest["objective"],
        "splits": {split: asdict(counts) for split, counts in splits.items()},
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": len(tokenizer),
            "control": asdict(tokenizer.control),
        },
        "versions": versions(),
    }


def advice(found: Mapping[str, Any], out: Path) -> str:
    """Return what a user must know to train on the folder `out`, one fact per line."""
    longest = max(split["longest_row"] for split in found["splits"].values())
    setting = FORMATS[found["format"]].length
    lines = [
        f"{out}: {split['rows']:,} rows of {name}, {split['supervised']:,} tokens with loss"
        for name, split in found["splits"].items()
    ]
    if setting:
        lines.append(f"{setting}: {longest} or more, or rows are lost")
    vocabulary = found["tokenizer"]["vocab_size"]
    lines.append(f"the model needs {vocabulary:,} embedding rows (docs/other-trainers.md)")
    return "\n".join(lines)
