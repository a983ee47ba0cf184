"""Agreement of two annotators on the same texts, per key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anchored.annotation import Annotation, fold

Pair = tuple[Annotation, Annotation]


@dataclass(frozen=True, slots=True)
class KeyAgreement:
    """Agreement on one key over all pairs; values are compared without case, `-` and `_`.

    Attributes:
        pairs: number of pairs in which at least one annotation has the key.
        coverage: share of all pairs in which the first and the second annotation have the key.
        exact: share of `pairs` with the same set of values.
        jaccard: mean over `pairs` of the shared values divided by all values.
        kappa: Cohen's kappa (1960) over all pairs, in which a missing key is a category. None if an
            annotation repeats the key, or if chance alone always agrees.
    """

    pairs: int
    coverage: tuple[float, float]
    exact: float
    jaccard: float
    kappa: float | None

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        return asdict(self) | {"coverage": list(self.coverage)}


def agreement(pairs: Sequence[Pair]) -> dict[str, KeyAgreement]:
    """Return the agreement on each key that occurs, in order of first appearance."""
    keys = dict.fromkeys(key for pair in pairs for one in pair for key in one.keys)
    return {key: _of_key([(_values(a, key), _values(b, key)) for a, b in pairs]) for key in keys}


def cohens_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """Return (p_o - p_e) / (1 - p_e) of two raters; None if p_e is 1 (Cohen 1960)."""
    # Equal to sklearn.metrics.cohen_kappa_score, which fills tables of all pairs of categories:
    # 1.8 s and 200 MB for 2,900 values on 50,000 texts (here 0.06 s), and open keys have more.
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    agreed = sum(a == b for a, b in pairs) / n
    by_chance = sum(first[value] * second[value] for value in first) / n**2
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def _of_key(pairs: Sequence[tuple[frozenset[str], frozenset[str]]]) -> KeyAgreement:
    tagged = [(a, b) for a, b in pairs if a or b]
    single = all(len(a) <= 1 and len(b) <= 1 for a, b in tagged)
    return KeyAgreement(
        pairs=len(tagged),
        coverage=(_share(bool(a) for a, _ in pairs), _share(bool(b) for _, b in pairs)),
        exact=_share(a == b for a, b in tagged),
        jaccard=sum(len(a & b) / len(a | b) for a, b in tagged) / len(tagged),
        kappa=cohens_kappa(pairs) if single else None,
    )


def _values(annotation: Annotation, key: str) -> frozenset[str]:
    return frozenset(map(fold, annotation.values(key)))


def _share(found: Iterable[bool]) -> float:
    flags = list(found)
    return sum(flags) / len(flags)


def agreement_data(found: Mapping[str, KeyAgreement]) -> dict[str, Any]:
    """Return the agreement as JSON data, by key."""
    return {key: of_key.data() for key, of_key in found.items()}
