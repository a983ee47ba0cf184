"""Write the token statistics of the default embedder from English prose.

    python scripts/static_tokens.py [DATA] [--check]      (default: ../shared/data)

The prose is one half public-domain books (Project Gutenberg) and one half podcasts, scripts,
debates, poems, how-tos and articles (MIT, erikhyrkas/snakes). `--check` compares with the file in
the package instead of writing it. See `anchored.models.static_vectors.token_statistics`.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.models.static_vectors import SMOOTHING, STATISTICS, load_static_model, static_ids

BOOK_STARTS = range(20_000, 300_000, 14_000)  # behind the front matter; 20 pieces of each book
PIECE, EVERY = 8_000, 6  # characters of a piece; every sixth text of the mixed prose
PASSAGE, PASSAGES = 40, 2  # words of a passage, and how many of each piece or text
LEAST = 1e-5  # rarer tokens weigh more than 0.99 without being listed


def main() -> None:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"))
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = table([books(options.data), mixed(options.data)])
    if options.check:
        same = text == STATISTICS.read_text(encoding="utf-8")
        raise SystemExit(None if same else f"{STATISTICS}: differs from what {__file__} writes")
    STATISTICS.write_text(text, encoding="utf-8")


def table(corpora: Sequence[Sequence[str]]) -> str:
    """Return the lines `token, frequency, share of the mean`, each corpus counting the same."""
    model = load_static_model()
    frequency = np.mean([_frequencies(corpus) for corpus in corpora], axis=0)
    frequency = np.where(frequency >= LEAST, np.round(frequency, 6), 0.0)
    vectors = np.asarray(model.embedding, np.float64)
    vectors = vectors * (SMOOTHING / (SMOOTHING + frequency))[:, None]
    shares = np.mean([_shares(_passages(corpus), vectors) for corpus in corpora], axis=0)
    lines = [
        f"{token}\t{1e6 * frequency[i]:.0f}\t{1e6 * shares[i]:.0f}"
        for i, token in enumerate(model.tokens)
        if frequency[i]
    ]
    return "\n".join(lines) + "\n"


def _frequencies(texts: Sequence[str]) -> NDArray[np.float64]:
    counts = np.zeros(len(load_static_model().tokens))
    for ids in static_ids(texts):
        np.add.at(counts, ids, 1)
    return counts / counts.sum()


def _shares(passages: Sequence[str], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return s [V] such that s @ vectors is the mean of the passages' unit vectors."""
    shares = np.zeros(len(vectors))
    for ids in static_ids(passages):
        if ids:
            np.add.at(shares, ids, 1 / np.linalg.norm(vectors[ids].sum(0)))
    return shares / len(passages)


def _passages(texts: Sequence[str]) -> list[str]:
    found = []
    for text in texts:
        words = text.split()
        starts = range(0, min(len(words), PASSAGE * PASSAGES) - PASSAGE + 1, PASSAGE)
        found += [" ".join(words[start : start + PASSAGE]) for start in starts]
    return found


def books(data: Path) -> list[str]:
    """Return pieces of the books, each from a word's start."""
    rows = _rows(data / "prose/books.jsonl.xz")
    pieces = [row["text"][start : start + PIECE] for row in rows for start in BOOK_STARTS]
    return [piece.partition(" ")[2] for piece in pieces if len(piece) == PIECE]


def mixed(data: Path) -> list[str]:
    """Return every sixth text of the mixed prose."""
    return [row["text"] for row in _rows(data / "prose/mixed.jsonl.xz")][::EVERY]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    main()
