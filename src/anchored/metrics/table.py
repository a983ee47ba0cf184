"""The table of metrics: every figure is declared here once, and read from here everywhere else.

Measuring, intervals, adjusted p-values, tables, reports and documentation follow it: a new metric
is one entry in `METRICS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anchored.metrics import lexical, noveltybench
from anchored.metrics.collapse import (
    Runs,
    Statistic,
    dissimilarity_of,
    entropy_of,
    entropy_within,
    mean_of,
)
from anchored.metrics.embedding import dissimilarity, nearest_distance, vendi
from anchored.metrics.entropy import Reading, semantic_entropy

ENTROPY_SAMPLES = 8  # readings per prompt below which entropies say little more than their number

Sampled = tuple[Statistic[Any], Runs[Any]]  # a statistic, and what to resample for it
Source = Literal["texts", "vectors", "partition", "quality", "readings"]
SOURCES: tuple[Source, ...] = ("texts", "vectors", "partition", "quality", "readings")


@dataclass(frozen=True)
class Observed:
    """What was read off the texts of one prompt.

    Attributes:
        texts: k texts.
        vectors: their embeddings [k, D].
        partition: the class of each among equivalent texts; None where nobody tells them apart.
        scores: quality from 1 to 10 of each text; only those that begin a class need one. None
            where one of these is missing.
        perplexity: of the texts under a reference model; None without one.
        readings: the attributes of each text that counts for entropies.
        keys: the attributes that entropies are over; none where nobody reads attributes.
        size: bytes at which the texts are cut to be compressed; None compresses them whole.
        tokenize: sacrebleu's tokenizer.
    """

    texts: Sequence[str] = ()
    vectors: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    partition: Sequence[int] | None = None
    scores: Sequence[float | None] | None = None
    perplexity: float | None = None
    readings: Sequence[Reading] = ()
    keys: tuple[str, ...] = ()
    size: int | None = None
    tokenize: str = "13a"


def joined(observed: Sequence[Observed]) -> Observed:
    """Several prompts' or seeds' texts as those of one prompt: texts, vectors and readings."""
    return Observed(
        texts=[text for one in observed for text in one.texts],
        vectors=np.concatenate([one.vectors for one in observed]),
        readings=[reading for one in observed for reading in one.readings],
        keys=observed[0].keys,
        tokenize=observed[0].tokenize,
    )


@dataclass(frozen=True)
class Resampling:
    """How a figure is resampled text by text, which one prompt alone needs.

    Attributes:
        items: what is drawn, one item per text.
        within: statistic of the mean over prompts of each prompt's figure.
        pooled: statistic of the figure of all prompts' texts together; None where texts of
            different prompts do not mix, and it is `within` too.
    """

    items: Callable[[Observed], Sequence[Any]]
    within: Callable[[Observed], Statistic[Any]]
    pooled: Callable[[Observed], Statistic[Any]] | None = None


@dataclass(frozen=True)
class Metric:
    """One figure of a prompt's texts.

    Attributes:
        name: in code, JSON, tables and documentation.
        says: what it is, in one sentence or phrase.
        more_diverse: the sign of a change towards more diversity; 0 for what is no diversity.
        source: what it is read off; figures stand in `results.json` in the order of `SOURCES`.
        function: of what was read off a prompt's texts; None where the figure cannot be had.
        resampling: text by text; None where only prompts can be resampled.
        better: the sign of a change towards better texts; 0 for what is no quality.
        is_ratio: True if values compare by their ratio, not by their difference.
        least_readings: below so many the figure is left out.
    """

    name: str
    says: str
    more_diverse: Literal[1, -1, 0]
    source: Source
    function: Callable[[Observed], float | None]
    resampling: Resampling | None = None
    better: Literal[1, -1, 0] = 0
    is_ratio: bool = False
    least_readings: int = 0

    def value(self, observed: Observed) -> float | None:
        """The figure of one prompt, or None where it cannot be had."""
        return self.function(observed) if self.has_readings(observed) else None

    def has_readings(self, observed: Observed) -> bool:
        """True if as many attributes were read as the figure takes."""
        return len(observed.readings) >= self.least_readings

    def sampled(self, runs: Sequence[Sequence[Observed]]) -> Sampled:
        """What to resample text by text: of seeds x prompts, for the mean over prompts."""
        assert self.resampling is not None, f"{self.name}: has no statistic of texts"
        return self._sampled(self.resampling.within, runs)

    def sampled_together(self, runs: Sequence[Sequence[Observed]]) -> Sampled:
        """The same for the figure of all texts of a seed together."""
        assert self.resampling is not None, f"{self.name}: has no statistic of texts"
        return self._sampled(self.resampling.pooled or self.resampling.within, runs)

    def _sampled(
        self,
        statistic: Callable[[Observed], Statistic[Any]],
        runs: Sequence[Sequence[Observed]],
    ) -> Sampled:
        assert self.resampling is not None
        items = self.resampling.items
        return statistic(runs[0][0]), [[items(one) for one in run] for run in runs]


def _classes(observed: Observed) -> float | None:
    if observed.partition is None:
        return None
    return float(noveltybench.distinct_k(observed.partition))


def _scored(
    figure: Callable[[Sequence[int], Sequence[float | None]], float],
) -> Callable[[Observed], float | None]:
    def of(observed: Observed) -> float | None:
        if observed.partition is None or observed.scores is None:
            return None
        return figure(observed.partition, observed.scores)

    return of


def _mattr(texts: Sequence[str], window: int) -> float:
    """Moving-average type-token ratio (Covington and McFall 2010) of the texts joined in order.

    With fewer words than the window holds it is the type-token ratio of them all; 0 without words.
    """
    words = [word for text in texts for word in lexical.words(text)]
    inside = Counter(words[:window])
    ratios = [len(inside) / max(1, inside.total())]
    for left, entered in zip(words, words[window:], strict=False):
        inside[entered] += 1
        inside[left] -= 1
        if not inside[left]:
            del inside[left]
        ratios.append(len(inside) / window)
    return sum(ratios) / len(ratios)


def _self_bleu(observed: Observed) -> float:
    from anchored.metrics.self_bleu import self_bleu  # sacrebleu is an extra of its own

    return self_bleu(observed.texts, observed.tokenize)


def _vendi(q: float) -> Metric:
    """Vendi of the order `q`: `vendi` for 1, else `vendi_2`, `vendi_0.5`, `vendi_inf`."""
    return Metric(
        "vendi" if q == 1 else f"vendi_{q:g}",
        "Effective number of distinct texts among a prompt's k, by their embeddings.",
        +1,
        "vectors",
        lambda observed: vendi(observed.vectors, q),
    )


def _means(item: Callable[[str], float]) -> Resampling:
    """Of a mean over texts of one number per text."""
    return Resampling(lambda o: [item(text) for text in o.texts], lambda o: mean_of)


# In the order in which tables show them.
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "distinct_k",
            "Classes of equivalent texts among a prompt's k.",
            +1,
            "partition",
            _classes,
        ),
        Metric(
            "utility_k",
            "Mean worth from 1 to 10 of the next answer to one who asks k times and gains nothing "
            "from repeats.",
            +1,
            "quality",
            _scored(noveltybench.utility_k),
        ),
        Metric(
            "quality",
            "Mean score from 1 to 10 of the first text of each class.",
            0,
            "quality",
            _scored(noveltybench.mean_quality),
            better=+1,
        ),
        Metric(
            "perplexity",
            "Of the texts under a reference model, all tokens together: lower is more fluent, or "
            "duller.",
            0,
            "quality",
            lambda o: o.perplexity,
            better=-1,
            is_ratio=True,
        ),
        Metric(
            "semantic_entropy",
            "Shannon entropy of each attribute over the texts, averaged over attributes, in nats; "
            "plug-in: compares at equal numbers of texts only.",
            +1,
            "readings",
            lambda o: semantic_entropy(o.readings, o.keys).mean,
            Resampling(
                lambda o: o.readings,
                within=lambda o: entropy_within(o.keys, corrected=False),
                pooled=lambda o: entropy_of(o.keys, corrected=False),
            ),
            least_readings=ENTROPY_SAMPLES,
        ),
        Metric(
            "semantic_entropy_miller_madow",
            "The same with its bias corrected to first order.",
            +1,
            "readings",
            lambda o: semantic_entropy(o.readings, o.keys).mean_miller_madow,
            Resampling(
                lambda o: o.readings,
                within=lambda o: entropy_within(o.keys),
                pooled=lambda o: entropy_of(o.keys),
            ),
            least_readings=ENTROPY_SAMPLES,
        ),
        Metric(
            "dissimilarity",
            "1 - cosine of the embeddings, mean over all pairs of a prompt's texts.",
            +1,
            "vectors",
            lambda o: dissimilarity(o.vectors),
            Resampling(lambda o: list(o.vectors), lambda o: dissimilarity_of),
        ),
        Metric(
            "nearest_distance",
            "1 - cosine to the most similar other text of the prompt.",
            +1,
            "vectors",
            lambda o: nearest_distance(o.vectors),
        ),
        _vendi(1),
        Metric(
            "distinct_1",
            "Distinct words over all words of a prompt's texts; falls with length.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 1),
        ),
        Metric(
            "distinct_2",
            "The same of word pairs.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 2),
        ),
        Metric(
            "distinct_3",
            "The same of word triples.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 3),
        ),
        Metric(
            "ead",
            "Distinct words over those expected of as many random draws.",
            +1,
            "texts",
            lambda o: lexical.ead(o.texts),
        ),
        Metric(
            "mattr_500",
            "Distinct words over words in a window of 500, mean over all windows of a prompt's "
            "joined texts.",
            +1,
            "texts",
            lambda o: _mattr(o.texts, 500),
        ),
        Metric(
            "self_bleu",
            "BLEU of each text against the others of its prompt: high is repetitive.",
            -1,
            "texts",
            _self_bleu,
        ),
        Metric(
            "compression_ratio",
            "Bytes over compressed bytes of a prompt's texts, all sets cut to the same bytes: high "
            "is repetitive.",
            -1,
            "texts",
            lambda o: lexical.compression_ratio(o.texts, o.size),
        ),
        Metric(
            "exact_duplicate_rate",
            "Share of texts that repeat an earlier one of their prompt.",
            -1,
            "texts",
            lambda o: lexical.exact_duplicate_rate(o.texts),
        ),
        Metric(
            "empty_rate",
            "Share of texts that hold nothing but white space.",
            0,
            "texts",
            lambda o: lexical.empty_rate(o.texts),
            _means(lambda text: float(not text.strip())),
        ),
        Metric(
            "words",
            "Words and punctuation marks per text.",
            0,
            "texts",
            lambda o: lexical.length_statistics(o.texts)["words"]["mean"],
            _means(lambda text: float(len(lexical.words(text)))),
        ),
    )
}

# Figures of all of a model's samples, or of models held against each other.
OF_MODELS = {
    "gap_closed": "(D - D_sft) / (D_base - D_sft) with D the semantic entropy, if nothing "
    "else is said: 0 is standard SFT, 1 is the base. Not learning at all also gives 1: read it "
    "beside adoption.",
    "collapse_reduction": "(D_base - D_sft) / (D_base - D): how many times smaller the loss of "
    "diversity is. ≥ marks a lower bound, where the interval reaches the base.",
    "adoption": "Share of answers that show what SFT taught.",
    "adoption_far": "Adoption among the answers whose semantics lie far from SFT's.",
    "annotation_entropy": "Semantic entropy of the sampled annotations.",
    "adherence": "Share of the annotation's tags that the text keeps.",
    "adherence_by_chance": "The same for the annotation of another sample: what common values "
    "alone give.",
    "well_formed": "Share of texts that are well formed.",
    "consistent": "Share of texts that do not contradict themselves.",
    "answer_accuracy": "Share of questions with one right answer that are answered rightly.",
}


def measured(vendi_orders: Iterable[float] = (1.0,)) -> list[Metric]:
    """The metrics in the order of `results.json`, Vendi in these orders.

    That is by what they are read off, and as in `METRICS` within that.
    """
    orders = [_vendi(q) for q in vendi_orders]
    every = chain.from_iterable(orders if m.name == "vendi" else [m] for m in METRICS.values())
    return sorted(every, key=lambda metric: SOURCES.index(metric.source))


def in_order(names: Iterable[str]) -> list[str]:
    """Those of `names` that are metrics, as tables show them; Vendi's other orders follow it."""
    places = {name: place for place, name in enumerate(METRICS)}
    known = [name for name in names if _family(name) in places]
    return sorted(known, key=lambda name: (places[_family(name)], name != _family(name)))


def says(name: str) -> str | None:
    """What a figure is, in a sentence; None for a name that is in neither table."""
    metric = METRICS.get(_family(name))
    return metric.says if metric else OF_MODELS.get(name)


def _family(name: str) -> str:
    return "vendi" if name.startswith("vendi_") else name
