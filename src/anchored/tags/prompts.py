"""How far prompts already decide the tags. Anchoring cannot keep broad what a prompt decides.

There are two measures, because a prompt decides in two ways.

`decided` is an adjusted mutual information. G is the prompt itself if prompts recur
(`MIN_RECURRENCE` rows each on average), otherwise its cluster: k-means of the prompts' static
vectors with N / `ROWS_A_CLUSTER` clusters, at most `MAX_CLUSTERS`. V is the key's first value; a
missing key is a value too.

    decided = (I(G; V) - E) / (H(V) - E)

where I is the plug-in mutual information and E its mean over `PERMUTATIONS` permutations of V, that
is, the information shown by chance alone (Vinh, Epps and Bailey 2010, with the permutation mean). 0
is chance; at 1, the prompt leaves nothing open. Clusters carry less information than prompts, so
with clusters it is a lower bound. It is undetermined (None) if min(H(G), H(V)) - E, the largest
possible excess of I, is below `LEAST_ROOM`: hardly any value recurs, or there is only one.

`named` is the share of tags whose words all occur in the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.annotation import Annotation, fold
from anchored.metrics.entropy import first_value
from anchored.models.embedders import StaticEmbedder

MIN_RECURRENCE = 5
ROWS_A_CLUSTER = 30
MAX_CLUSTERS = 64
PERMUTATIONS = 200
LEAST_ROOM = 0.05

Ints = NDArray[np.int64]
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class PromptShare:
    """How far prompts decide the tags of one key.

    Attributes:
        information: plug-in mutual information of prompt (or cluster) and value, in nats.
        by_chance: its mean over permutations of the values.
        decided: adjusted share of the value's entropy, or None if it is undetermined.
        p: permutation p-value, (1 + permutations with at least this information) / (1 + all).
        named: share of tags whose words occur in their prompt.
        named_by_chance: the same with the prompt of another row.
    """

    information: float
    by_chance: float
    decided: float | None
    p: float
    named: float
    named_by_chance: float


@dataclass(frozen=True, slots=True)
class PromptShares:
    """The shares by key, over prompted rows in groups; `grouped_by` is prompt or cluster."""

    rows: int
    groups: int
    grouped_by: str
    keys: Mapping[str, PromptShare]

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        return asdict(self)


def prompt_shares(
    prompts: Sequence[str], annotations: Sequence[Annotation], seed: int = 0
) -> PromptShares:
    """Measure every key that occurs; the module's docstring defines the measures.

    Args:
        prompts: one prompt per row [N], at least two.
        annotations: the annotation of each response [N].
        seed: seed of the clusters and permutations.
    """
    rng = np.random.default_rng(seed)
    groups, by = _groups(prompts, seed)
    keys = dict.fromkeys(key for annotation in annotations for key in annotation.keys)
    other = (np.arange(len(prompts)) + 1 + rng.integers(len(prompts) - 1)) % len(prompts)
    words = [frozenset(_WORD.findall(fold(prompt))) for prompt in prompts]
    shares = {}
    for key in keys:
        values = _codes([first_value(annotation, key) for annotation in annotations])
        information, by_chance, decided, p = adjusted_information(groups, values, rng)
        shares[key] = PromptShare(
            information,
            by_chance,
            decided,
            p,
            named=_named(words, annotations, key),
            named_by_chance=_named([words[i] for i in other], annotations, key),
        )
    return PromptShares(len(prompts), len(np.unique(groups)), by, shares)


def adjusted_information(
    groups: Ints, values: Ints, rng: np.random.Generator
) -> tuple[float, float, float | None, float]:
    """Return I of codes [N], its mean by chance, its adjusted share of H(values) or None, and p."""
    # `p` needs the permutations, so their mean costs nothing more. It lies within 1e-4 of sklearn's
    # expected_mutual_information, which adds up to 3.6 s for a key of 50,000 tags.
    found = mutual_information(groups, values)
    dealt = [mutual_information(groups, rng.permutation(values)) for _ in range(PERMUTATIONS)]
    by_chance = float(np.mean(dealt))
    p = (1 + sum(one >= found - 1e-12 for one in dealt)) / (1 + PERMUTATIONS)
    whole = mutual_information(values, values)
    if min(whole, mutual_information(groups, groups)) - by_chance < LEAST_ROOM:
        return found, by_chance, None, p
    return found, by_chance, (found - by_chance) / (whole - by_chance), p


def mutual_information(a: Ints, b: Ints) -> float:
    """Return the plug-in mutual information, in nats, of two arrays of codes from 0 [N]."""
    # sklearn's mutual_info_score is equal but takes 10 to 40 ms instead of 1, 200 times for a key.
    joint = np.unique(a * (int(b.max()) + 1) + b, return_counts=True)[1]
    return _entropy(np.bincount(a)) + _entropy(np.bincount(b)) - _entropy(joint)


def _entropy(counts: Ints) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _groups(prompts: Sequence[str], seed: int) -> tuple[Ints, str]:
    codes = _codes(prompts)
    if len(prompts) >= MIN_RECURRENCE * (int(codes.max()) + 1):
        return codes, "prompt"
    from sklearn.cluster import KMeans

    count = max(2, min(MAX_CLUSTERS, len(prompts) // ROWS_A_CLUSTER))
    vectors = StaticEmbedder().embed(list(dict.fromkeys(prompts)))
    count = min(count, len(vectors))
    clusters = KMeans(count, random_state=seed).fit_predict(vectors)
    return np.asarray(clusters, np.int64)[codes], "cluster"


def _codes(values: Sequence[str]) -> Ints:
    """Return the index of each value among the distinct values, in order of first appearance."""
    place = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return np.array([place[value] for value in values], np.int64)


def _named(words: Sequence[frozenset[str]], annotations: Sequence[Annotation], key: str) -> float:
    told = [
        bool(said := _WORD.findall(fold(value))) and prompt.issuperset(said)
        for prompt, annotation in zip(words, annotations, strict=True)
        for value in annotation.values(key)
    ]
    return sum(told) / len(told)
