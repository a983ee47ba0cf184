"""Benchmarks by name: the prompts, the number of samples per prompt, and the main metrics.

Published prompts are not part of this package. They are read from a folder or file, or from the hub
if the user asks for it. A new benchmark is one entry in `BENCHMARKS`, its name in the help of
`--benchmark`, and its line in docs/evaluate.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchored.data.rows import Row, prompt_turns
from anchored.errors import ConfigError, DataError
from anchored.files import read_jsonl
from anchored.segments import Message

DATA = "ANCHORED_DATA"
HUB = "hub"
_TEXTS = (".txt",)
_ROWS = (".jsonl", ".json", ".gz", ".xz")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with the user's turn; rows of samples name it by its `text`."""

    messages: tuple[Message, ...]

    @property
    def text(self) -> str:
        """The content of all turns."""
        return "\n\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Prompts, and how models are sampled on them.

    Args:
        name: its name in results.
        prompts: the prompts, without repeats.
        source: where the prompts came from.
        samples: samples per prompt, the same number for every model.
        max_tokens: most tokens of a response.
        metrics: the main diversity metrics; `gap_closed` is computed from the first.
        opening: text that a model without a chat format continues; it is part of the answer. With
            None the model continues the prompt itself, which is not part of the answer.
    """

    name: str
    prompts: tuple[Prompt, ...]
    source: str
    samples: int
    max_tokens: int
    metrics: tuple[str, ...]
    opening: str | None = None

    @property
    def sha256(self) -> str:
        """The hash of the prompts, which serves as their version."""
        turns = [[(m.role, m.content) for m in prompt.messages] for prompt in self.prompts]
        return hashlib.sha256(json.dumps(turns).encode()).hexdigest()

    @property
    def asked(self) -> list[Prompt]:
        """Each prompt, repeated as often as it is sampled."""
        return [prompt for prompt in self.prompts for _ in range(self.samples)]

    def prefill(self, prompt: Prompt) -> str:
        """Return the text that a model without a chat format is given to continue."""
        return f"{prompt.text}\n\n" if self.opening is None else self.opening

    def as_json(self) -> dict[str, Any]:
        """Return the form in `results.json`."""
        return {
            "name": self.name,
            "source": self.source,
            "sha256": self.sha256,
            "prompts": len(self.prompts),
            "samples": self.samples,
            "max_tokens": self.max_tokens,
            "metrics": list(self.metrics),
        }


_BY_DISTANCE = ("dissimilarity", "semantic_entropy", "vendi", "distinct_k")
_BY_ENTROPY = ("semantic_entropy", "dissimilarity", "vendi", "distinct_k")
_STORY = "Once upon a time"


@dataclass(frozen=True, slots=True)
class Published:
    """Where published prompts are.

    Args:
        file: the file, below the folder that `ANCHORED_DATA` names.
        hub: the dataset on the hub.
        split: the dataset's split.
        field: the column that holds the prompt.
    """

    file: str
    hub: str
    split: str
    field: str = "prompt"


@dataclass(frozen=True, slots=True)
class BenchmarkEntry:
    """One benchmark of the table; see `Benchmark` for the fields that it shares.

    Args:
        says: what its prompts are, in one line.
        prompts: the prompts themselves, or where they are published.
    """

    says: str
    prompts: tuple[str, ...] | Published
    metrics: tuple[str, ...]
    samples: int = 10
    max_tokens: int = 512
    opening: str | None = None


# Those of published prompts use NoveltyBench's numbers of samples and tokens; the paper measures
# all of them by dissimilarity.
BENCHMARKS: dict[str, BenchmarkEntry] = {
    # The paper does not state the number of samples: 256 is our choice.
    "stories": BenchmarkEntry(
        '"Once upon a time" (the paper\'s)', (_STORY,), _BY_ENTROPY, samples=256, opening=_STORY
    ),
    "noveltybench": BenchmarkEntry(
        "NoveltyBench's 100 curated prompts",
        Published("noveltybench/curated.jsonl", "yimingzhang/novelty-bench", "curated"),
        _BY_DISTANCE,
    ),
    "wildchat": BenchmarkEntry(
        "NoveltyBench's 1,000 from WildChat",
        Published("noveltybench/wildchat-1k.jsonl", "yimingzhang/novelty-bench", "wildchat"),
        _BY_DISTANCE,
    ),
    "infinitychat": BenchmarkEntry(
        "the 100 evaluation prompts of Infinity-Chat",
        Published(
            "infinitychat/infinite-chats-eval.jsonl",
            "liweijiang/infinite-chats-eval",
            "train",
            "query",
        ),
        _BY_DISTANCE,
    ),
}


def load_benchmark(spec: str, limit: int | None = None) -> Benchmark:
    """Load a benchmark by its name, or from a file of prompts.

    Args:
        spec: a name in `BENCHMARKS`, whose published prompts are read from the folder
            `ANCHORED_DATA`, with `=PATH` from that file or folder, or with `=hub` from the hub; or
            a file: `.txt` with one prompt per line, or `.jsonl` with `prompt` or `messages`.
        limit: keep only this many prompts, from the first on.

    Raises:
        ConfigError: the benchmark is unknown, or its prompts were not found.
        DataError: a file of prompts cannot be read, is empty, or repeats a prompt.
    """
    found = _load(spec)
    return found if limit is None else replace(found, prompts=found.prompts[:limit])


def _load(spec: str) -> Benchmark:
    name, separator, where = spec.partition("=")
    entry = BENCHMARKS.get(name)
    if entry and (isinstance(entry.prompts, Published) or not separator):
        prompts, source = _prompts(name, entry, where if separator else None)
        return Benchmark(
            name, prompts, source, entry.samples, entry.max_tokens, entry.metrics, entry.opening
        )
    path = Path(spec)
    if not path.suffixes or path.suffixes[-1] not in (*_TEXTS, *_ROWS):
        raise ConfigError(
            f"benchmark {spec!r}: unknown; use {', '.join(BENCHMARKS)} or a .txt or .jsonl file"
        )
    return Benchmark(_stem(path), _from_file(path), str(path), 10, 512, _BY_ENTROPY)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _asked(text: str) -> Prompt:
    return Prompt((Message("user", text),))


def _prompts(name: str, entry: BenchmarkEntry, where: str | None) -> tuple[tuple[Prompt, ...], str]:
    """Return the prompts and their source."""
    place = entry.prompts
    if not isinstance(place, Published):
        return tuple(_asked(text) for text in place), "built in"
    if where == HUB:
        return _from_hub(name, place), f"{place.hub}, split {place.split}"
    path = _find(name, place, where)
    return _from_file(path, place.field), str(path)


def _find(name: str, place: Published, where: str | None) -> Path:
    root = os.environ.get(DATA) if where is None else where
    path = Path(root or ".") / place.file
    candidates = [path] if where is None else [Path(where), Path(where) / path.name, path]
    for candidate in candidates:
        if root and candidate.is_file():
            return candidate
    looked = f"{path} is not a file" if root else f"{DATA} is not set"
    raise ConfigError(
        f"benchmark {name}: {looked}; name the prompts' file or folder as {name}=PATH, or load "
        f"them from the hub ({place.hub}) with {name}={HUB}"
    )


def _from_hub(name: str, place: Published) -> tuple[Prompt, ...]:
    from datasets import load_dataset

    try:
        rows: Any = load_dataset(place.hub, split=place.split)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"benchmark {name}: {place.hub} on the hub: {reason}") from None
    return _asked_in(((f"{place.hub}: row {i}", row) for i, row in enumerate(rows)), place.field)


def _from_file(path: Path, field: str = "prompt") -> tuple[Prompt, ...]:
    if not path.is_file():
        raise ConfigError(f"benchmark {path}: no such file; use {', '.join(BENCHMARKS)} or a file")
    if path.suffix in _TEXTS:
        return _distinct(_lines(path))
    return _asked_in(((f"{path}: line {number}", row) for number, row in read_jsonl(path)), field)


def _asked_in(rows: Iterable[tuple[str, Row]], field: str) -> tuple[Prompt, ...]:
    return _distinct((where, Prompt(prompt_turns(row, where, field))) for where, row in rows)


def _lines(path: Path) -> Iterable[tuple[str, Prompt]]:
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line = raw.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise DataError(f"{path}: line {number}: not UTF-8; convert the file first") from None
        if line:
            yield f"{path}: line {number}", _asked(line)


def _distinct(prompts: Iterable[tuple[str, Prompt]]) -> tuple[Prompt, ...]:
    seen: dict[str, str] = {}
    found = []
    for where, prompt in prompts:
        if (before := seen.setdefault(prompt.text, where)) != where:
            raise DataError(
                f"{where}: prompt: {prompt.text[:60]!r} repeats the one at {before}; remove one, "
                "and ask for more samples instead"
            )
        found.append(prompt)
    if not found:
        raise DataError("benchmark: the file of prompts is empty; write one prompt per line")
    return tuple(found)
