"""Chooses a few texts that represent a corpus, to be labelled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from rich.console import Console
from sklearn.cluster import MiniBatchKMeans

from anchored.annotators.distilled import Floats
from anchored.config import Config
from anchored.data.readers import SourceConfig
from anchored.errors import DataError
from anchored.files import write_jsonl
from anchored.models.embedders import StaticEmbedder
from anchored.tags.observations import Part, Sample, read_parts

_BLOCK = 1024


class ChooseConfig(Config):
    """Configuration of `anchored distil --choose`."""

    source: SourceConfig
    count: int = Field(ge=1, description="number of texts to choose")
    out: Path = Field(description="the .jsonl file to write")
    pool: int = Field(
        default=20_000, ge=1, description="number of texts to choose from, drawn evenly"
    )
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """Mean cosine between a text of the pool and the nearest chosen text, or random text."""

    chosen: int
    pool: int
    nearness: float
    nearness_of_random: float


def run(config: ChooseConfig, console: Console | None = None) -> Chosen:
    """Write the chosen texts as rows to label: one chunk, or one prompt and response, per row.

    Raises:
        DataError: a row is invalid, or there are fewer than `count` texts.
    """
    console = console or Console(stderr=True)
    pool = Sample[Part](max(config.pool, config.count), config.seed)
    with console.status("reading the texts"):
        for part in read_parts(config.source):
            pool.add(part, *part.identity)
        parts = pool.items()
    if len(parts) < config.count:
        raise DataError(
            f"{config.source.path}: has {len(parts)} distinct texts, fewer than --choose "
            f"{config.count}; lower it"
        )
    with console.status(f"choosing {config.count:,} of {len(parts):,} texts"):
        vectors = StaticEmbedder().embed([part.text for part in parts])
        places = choose(vectors, config.count, config.seed)
    random = np.random.default_rng(config.seed).choice(len(parts), config.count, replace=False)
    write_jsonl(config.out, (_row(parts[at]) for at in places))
    found = Chosen(
        len(places), len(parts), nearness(vectors, places), nearness(vectors, random.tolist())
    )
    console.print(
        f"{config.out}: {found.chosen:,} of {found.pool:,} texts; mean cosine of a text to the "
        f"nearest one chosen {found.nearness:.3f}, at random {found.nearness_of_random:.3f}",
        highlight=False,
    )
    return found


def choose(vectors: Floats, count: int, seed: int = 0) -> list[int]:
    """Return the indices of `count` vectors [N, D], each the nearest left to a k-means centre."""
    fitted = MiniBatchKMeans(count, batch_size=4096, random_state=seed).fit(vectors)
    taken = np.zeros(len(vectors), bool)
    for centre in np.asarray(fitted.cluster_centers_):
        distance = ((vectors - centre) ** 2).sum(1)
        taken[np.where(taken, np.inf, distance).argmin()] = True
    return np.flatnonzero(taken).tolist()


def nearness(vectors: Floats, places: list[int]) -> float:
    """Return the mean cosine of unit vectors [N, D] with the nearest of those at `places`."""
    chosen = vectors[places]
    blocks = range(0, len(vectors), _BLOCK)
    return sum((vectors[i : i + _BLOCK] @ chosen.T).max(1).sum() for i in blocks) / len(vectors)


def _row(part: Part) -> dict[str, Any]:
    if part.prompt:
        return {"id": part.row, "prompt": part.prompt, "response": part.text}
    return {"id": part.row, "chunks": [{"text": part.text}]}
