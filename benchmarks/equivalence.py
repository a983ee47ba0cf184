"""Compare equivalence backends with NoveltyBench's v1.0 classifier, on its published runs.

    python benchmarks/equivalence.py [DATA] [EMBEDDER...]      (default: static)

The classifier's partitions are the reference. Each threshold is the one with the best pair F1 on
the first two runs; all figures are measured on the other three. `F1` is over pairs of texts judged
equivalent; `ARI` is the adjusted Rand index, averaged over prompts; errors are those of each run's
mean distinct_k. Kendall's tau compares rankings of the five models and the humans by mean
distinct_k: at eight texts each (the humans wrote eight) with the classifier's ranking, and with the
published means, which are of ten texts for the models and of eight for the humans.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau
from sklearn.metrics import adjusted_rand_score

from anchored.data.generations import Generations, read_generations
from anchored.metrics.equivalence import EmbeddingThreshold, Exact, WordOverlap
from anchored.models.embedders import load_embedder

GRID = [round(0.02 * i, 2) for i in range(1, 50)]
CHOSEN_ON = 2
HUMAN_TEXTS = 8
HUMANS_PUBLISHED = 6.58

Partitions = list[list[int]]  # one partition per prompt
Backend = Callable[[Generations], Partitions]
Family = Callable[[float], Backend]


def overlap_at(threshold: float) -> Backend:
    """Return a backend that partitions by word overlap."""
    backend = WordOverlap(threshold)
    return lambda found: [backend.partition(texts) for texts in found.texts]


def embedding(name: str) -> Family:
    """Return backends by the cosine of an embedder; each text is embedded once."""
    embedder = load_embedder(name)
    known: dict[tuple[str, ...], np.ndarray] = {}

    def vectors(texts: tuple[str, ...]) -> np.ndarray:
        if texts not in known:
            known[texts] = embedder.embed(texts)
        return known[texts]

    def at(threshold: float) -> Backend:
        backend = EmbeddingThreshold(embedder, threshold)
        return lambda found: [
            backend.partition_vectors(texts, vectors(texts)) for texts in found.texts
        ]

    return at


def reference(found: Generations) -> Partitions:
    """Return the classifier's own partitions."""
    return [list(partition or ()) for partition in found.partitions]


def pairs(partition: Sequence[int]) -> np.ndarray:
    """Return which of the pairs i < j are judged equivalent."""
    labels = np.array(partition)
    return (labels[:, None] == labels)[np.triu_indices(len(labels), 1)]


def pair_f1(backend: Backend, runs: Sequence[Generations]) -> float:
    """Return F1 over all pairs of all prompts of all runs together."""
    right = called = true = 0
    for found in runs:
        for one, other in zip(backend(found), reference(found), strict=True):
            a, b = pairs(one), pairs(other)
            right, called, true = right + (a & b).sum(), called + a.sum(), true + b.sum()
    return float(2 * right / (called + true))


def rand(backend: Backend, runs: Sequence[Generations]) -> float:
    """Return the adjusted Rand index, averaged over prompts."""
    return float(
        np.mean(
            [
                adjusted_rand_score(other, one)
                for found in runs
                for one, other in zip(backend(found), reference(found), strict=True)
            ]
        )
    )


def mean_distinct(partitions: Partitions) -> float:
    """Return distinct_k, averaged over prompts."""
    return float(np.mean([len(set(partition)) for partition in partitions]))


def taus(
    backend: Backend, sets: Sequence[Generations], published: Sequence[float]
) -> tuple[float, float]:
    """Return Kendall's tau at eight texts, and against the published means."""
    cut = [found.first(HUMAN_TEXTS) for found in sets]
    ours = [mean_distinct(backend(found)) for found in cut]
    theirs = [mean_distinct(reference(found)) for found in cut]
    return _tau(ours, theirs), _tau(ours, published)


def _tau(ours: Sequence[float], others: Sequence[float]) -> float:
    found: Any = kendalltau(ours, others)
    return float(found.statistic)


def backends(
    embedders: Sequence[str], runs: Sequence[Generations]
) -> Iterator[tuple[str, Backend]]:
    """Return all backends, with thresholds chosen on `runs`."""
    exact = Exact()
    yield "exact", lambda found: [exact.partition(texts) for texts in found.texts]
    yield "overlap, 0.5", overlap_at(0.5)
    families = {"overlap": overlap_at} | {f"embedding, {n}": embedding(n) for n in embedders}
    for name, family in families.items():
        best = max(GRID, key=lambda threshold: pair_f1(family(threshold), runs))
        yield f"{name}, {best:g}", family(best)


def main(data: Path, embedders: Sequence[str]) -> None:
    """Print the table."""
    folders = sorted((data / "noveltybench/runs").iterdir())
    runs = [read_generations(folder / "scores.jsonl.gz") for folder in folders]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    humans = read_generations(data / "noveltybench/humans.jsonl")
    published = [*(summary["mean_distinct"] for summary in summaries), HUMANS_PUBLISHED]
    chosen, shown = runs[:CHOSEN_ON], runs[CHOSEN_ON:]
    names = [folder.name for folder in folders]
    print(f"Thresholds chosen on {' and '.join(names[:CHOSEN_ON])}.\n")
    errors = [f"error, {name}" for name in names[CHOSEN_ON:]]
    head = ["backend, threshold", "F1 there", "F1", "ARI", *errors, "tau, k = 8", "tau, published"]
    print("| " + " | ".join(head) + " |\n|---" + "|---:" * (len(head) - 1) + "|")
    for name, backend in backends(embedders, chosen):
        figures = [
            pair_f1(backend, chosen),
            pair_f1(backend, shown),
            rand(backend, shown),
            *(mean_distinct(backend(run)) - mean_distinct(reference(run)) for run in shown),
            *taus(backend, [*runs, humans], published),
        ]
        print(f"| {name} | " + " | ".join(f"{x:.2f}" for x in figures) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data"), sys.argv[2:] or ["static"])
