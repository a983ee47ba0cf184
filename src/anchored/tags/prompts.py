"""How much of a tag the prompt decides already: what it decides, anchoring cannot keep broad.

Two measures, because a prompt decides in two ways.

`decided` is an adjusted mutual information. G is the prompt itself where prompts recur
(`MIN_RECURRENCE` rows each on average), else its cluster: k-means of the prompts' static vectors
into N / `ROWS_A_CLUSTER` clusters, at most `MAX_CLUSTERS`. V is the key's first value, a missing
key being a value too.

    decided = (I(G; V) - E) / (H(V) - E)

with I the plug-in mutual information and E its mean over `PERMUTATIONS` permutations of V, the
information that chance alone shows (Vinh, Epps and Bailey 2010 with the permutation mean). 0 is
chance, 1 is a prompt that leaves nothing open. Clusters know less than prompts, so there it is a
lower bound. It cannot be told (None) where min(H(G), H(V)) - E, the most that I could stand out by,
is below `LEAST_ROOM`: hardly a value recurs, or there is only one.

`named` is the share of tags whose words all stand in the prompt.
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
    """What prompts say of one key's tags.

    Attributes:
        information: plug-in mutual information of prompt (or cluster) and value, in nats.
        by_chance: its mean where values are dealt out anew.
        decided: the adjusted share of the value's entropy, or None where it cannot be told.
        p: share of the permutations with as much information, (1 + as much) / (1 + all).
        named: share of tags whose words stand in their prompt.
        named_by_chance: the same with another row's prompt.
    """

    information: float
    by_chance: float
    decided: float | None
    p: float
    named: float
    named_by_chance: float


@dataclass(frozen=True, slots=True)
class PromptShares:
    """By key, over `rows` prompted rows in so many groups; `grouped_by` is prompt or cluster."""

    rows: int
    groups: int
    grouped_by: str
    keys: Mapping[str, PromptShare]

    def data(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def prompt_shares(
    prompts: Sequence[str], annotations: Sequence[Annotation], seed: int = 0
) -> PromptShares:
    """Measures every key that occurs; see the module for the definitions.

    Args:
        prompts: one a row [N], at least two.
        annotations: what stands between each prompt and its response [N].
        seed: of clusters and permutations.
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
    """I, its mean by chance, the adjusted share of H(values) or None, and p; codes from 0 [N]."""
    found = mutual_information(groups, values)
    dealt = [mutual_information(groups, rng.permutation(values)) for _ in range(PERMUTATIONS)]
    by_chance = float(np.mean(dealt))
    p = (1 + sum(one >= found - 1e-12 for one in dealt)) / (1 + PERMUTATIONS)
    whole = mutual_information(values, values)
    if min(whole, mutual_information(groups, groups)) - by_chance < LEAST_ROOM:
        return found, by_chance, None, p
    return found, by_chance, (found - by_chance) / (whole - by_chance), p


def mutual_information(a: Ints, b: Ints) -> float:
    """Plug-in mutual information, in nats, of two codes from 0 [N]; of a code with itself, H."""
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
    """Each value's place among the distinct ones, in order of first appearance."""
    place = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return np.array([place[value] for value in values], np.int64)


def _named(words: Sequence[frozenset[str]], annotations: Sequence[Annotation], key: str) -> float:
    told = [
        bool(said := _WORD.findall(fold(value))) and prompt.issuperset(said)
        for prompt, annotation in zip(words, annotations, strict=True)
        for value in annotation.values(key)
    ]
    return sum(told) / len(told)
