"""The table of metrics: every metric is declared here once.

Measurement, intervals, adjusted p-values, and the tables and reports of `anchored score` follow
this table, so a new metric is one entry in `METRICS` and its two lines in docs/which-metric.md.
Elsewhere metrics are chosen by name: the columns of the demo's table are `report.tables.COLUMNS`,
and a benchmark's main metrics are in its entry in `benchmark.benchmarks.BENCHMARKS`.
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

ENTROPY_SAMPLES = 8  # with fewer readings per prompt, an entropy mostly reflects their number

Sampled = tuple[Statistic[Any], Runs[Any]]  # a statistic and the items to resample for it
Source = Literal["texts", "vectors", "partition", "quality", "readings"]
SOURCES: tuple[Source, ...] = ("texts", "vectors", "partition", "quality", "readings")


@dataclass(frozen=True)
class Observed:
    """Everything that was read from the texts of one prompt.

    Attributes:
        texts: the k texts.
        vectors: their embeddings [k, D].
        partition: the equivalence class of each text; None without an equivalence backend.
        scores: the quality of each text, from 1 to 10; only the first text of each class needs one.
            None if one of these is missing.
        perplexity: perplexity of the texts under a reference model; None without one.
        readings: the attributes of each text that counts for entropies.
        keys: the attributes that entropies are taken over; empty without an attribute reader.
        size: bytes to cut the texts to before they are compressed; None compresses them whole.
        tokenize: name of sacrebleu's tokenizer.
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
    """Join the texts, vectors and readings of several prompts or seeds as if of one prompt."""
    return Observed(
        texts=[text for one in observed for text in one.texts],
        vectors=np.concatenate([one.vectors for one in observed]),
        readings=[reading for one in observed for reading in one.readings],
        keys=observed[0].keys,
        tokenize=observed[0].tokenize,
    )


@dataclass(frozen=True)
class Resampling:
    """How to resample a metric text by text, which a single prompt requires.

    Attributes:
        items: returns the items to draw, one per text.
        within: statistic of the metric within each prompt, averaged over prompts.
        pooled: statistic of the metric over the texts of all prompts together; None if texts of
            different prompts must not be mixed.
    """

    items: Callable[[Observed], Sequence[Any]]
    within: Callable[[Observed], Statistic[Any]]
    pooled: Callable[[Observed], Statistic[Any]] | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of one prompt's texts.

    Attributes:
        name: its name in code, JSON, tables and documentation.
        says: what it measures, in one sentence or phrase.
        more_diverse: the sign of a change towards more diversity; 0 if it does not measure
            diversity.
        source: what it is computed from; `results.json` lists metrics in the order of `SOURCES`.
        function: computes the value from what was read from a prompt's texts; returns None if the
            value is not available.
        resampling: how to resample it text by text; None if only prompts can be resampled.
        better: the sign of a change towards better texts; 0 if it does not measure quality.
        is_ratio: True if values are compared by their ratio, not by their difference.
        least_readings: with fewer readings than this, the metric is left out.
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
        """Return the value for one prompt, or None if it is not available."""
        return self.function(observed) if self.has_readings(observed) else None

    def has_readings(self, observed: Observed) -> bool:
        """Return True if there are enough readings for this metric."""
        return len(observed.readings) >= self.least_readings

    def sampled(self, runs: Sequence[Sequence[Observed]], together: bool = False) -> Sampled:
        """Return what to resample text by text.

        Args:
            runs: what was read, by seed and prompt.
            together: compute the metric over all texts of a seed, not as the mean over prompts.
        """
        how = self.resampling
        assert how is not None, f"{self.name}: has no statistic of texts"
        statistic = how.pooled if together else how.within
        assert statistic is not None, f"{self.name}: texts of different prompts must not be mixed"
        return statistic(runs[0][0]), [[how.items(one) for one in run] for run in runs]


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


def _openings(n: int) -> tuple[Metric, Metric]:
    """Return the metrics of the texts' openings of `n` words."""

    def readings(observed: Observed) -> list[Reading]:
        return [{"opening": lexical.opening(text, n)} for text in observed.texts]

    return (
        Metric(
            f"opening_{n}_share",
            f"Share of a prompt's texts that begin with its most frequent opening of {n} words.",
            -1,
            "texts",
            lambda o: lexical.opening_share(o.texts, n),
        ),
        Metric(
            f"opening_{n}_entropy",
            f"Shannon entropy of the openings of {n} words, in nats. Plug-in: comparable only at "
            "equal numbers of texts.",
            +1,
            "texts",
            lambda o: lexical.opening_entropy(o.texts, n),
            Resampling(
                readings,
                within=lambda o: entropy_within(("opening",), corrected=False),
                pooled=lambda o: entropy_of(("opening",), corrected=False),
            ),
        ),
    )


def _mattr(texts: Sequence[str], window: int) -> float:
    """Return the moving-average type-token ratio of the joined texts (Covington and McFall 2010).

    With fewer words than the window holds, it is the type-token ratio of all words; 0 without any.
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
    """Return Vendi of order `q`, named `vendi` for 1, else `vendi_2`, `vendi_0.5`, `vendi_inf`."""
    return Metric(
        "vendi" if q == 1 else f"vendi_{q:g}",
        "Effective number of distinct texts among a prompt's k, by their embeddings.",
        +1,
        "vectors",
        lambda observed: vendi(observed.vectors, q),
    )


def _means(item: Callable[[str], float]) -> Resampling:
    """Return the resampling of a mean over texts of one number per text."""
    return Resampling(
        lambda o: [item(text) for text in o.texts], lambda o: mean_of, lambda o: mean_of
    )


# In the order in which tables show them.
METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "distinct_k",
            "Number of classes of equivalent texts among a prompt's k texts.",
            +1,
            "partition",
            _classes,
        ),
        Metric(
            "utility_k",
            "Mean value from 1 to 10 of the next answer to a reader who asks k times and gains "
            "nothing from repeats.",
            +1,
            "quality",
            _scored(noveltybench.utility_k),
        ),
        Metric(
            "effective_diversity",
            f"Number of classes among the good answers: those with a score of at least "
            f"{noveltybench.GOOD} of 10.",
            +1,
            "quality",
            _scored(lambda labels, scores: float(noveltybench.effective_diversity(labels, scores))),
        ),
        Metric(
            "good_answers",
            f"Number of a prompt's texts with a score of at least {noveltybench.GOOD} of 10.",
            0,
            "quality",
            _scored(lambda labels, scores: float(len(noveltybench.good_answers(labels, scores)))),
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
            "Perplexity of the texts under a reference model, over all tokens together: lower is "
            "more fluent, or duller.",
            0,
            "quality",
            lambda o: o.perplexity,
            better=-1,
            is_ratio=True,
        ),
        Metric(
            "semantic_entropy",
            "Shannon entropy of each attribute over the texts, averaged over attributes, in nats. "
            "Plug-in: comparable only at equal numbers of texts.",
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
            "Semantic entropy with its bias corrected to first order.",
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
            "1 - cosine of the embeddings, averaged over all pairs of a prompt's texts.",
            +1,
            "vectors",
            lambda o: dissimilarity(o.vectors),
            Resampling(lambda o: list(o.vectors), lambda o: dissimilarity_of),
        ),
        Metric(
            "nearest_distance",
            "1 - cosine to the most similar other text of the prompt, averaged over texts.",
            +1,
            "vectors",
            lambda o: nearest_distance(o.vectors),
        ),
        _vendi(1),
        *_openings(4),
        *_openings(8),
        Metric(
            "distinct_1",
            "Distinct words over all words of a prompt's texts; falls with length.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 1),
        ),
        Metric(
            "distinct_2",
            "Distinct word pairs over all word pairs.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 2),
        ),
        Metric(
            "distinct_3",
            "Distinct word triples over all word triples.",
            +1,
            "texts",
            lambda o: lexical.distinct_n(o.texts, 3),
        ),
        Metric(
            "ead",
            "Distinct words over the number expected from as many random draws.",
            +1,
            "texts",
            lambda o: lexical.ead(o.texts),
        ),
        Metric(
            "mattr_500",
            "Distinct words over words in a window of 500, averaged over all windows of a prompt's "
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
            "Bytes over compressed bytes of a prompt's texts, all sets cut to the same number of "
            "bytes: high is repetitive.",
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
            "Share of texts that contain nothing but white space.",
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

# Figures over all of a model's samples, or of a comparison of models.
OF_MODELS = {
    "gap_closed": "(D - D_sft) / (D_base - D_sft), where D is the semantic entropy unless stated "
    "otherwise: 0 is standard SFT, 1 is the base. Not learning at all also gives 1: read it "
    "beside adoption.",
    "collapse_reduction": "(D_base - D_sft) / (D_base - D): how many times smaller the loss of "
    "diversity is. ≥ marks a lower bound: the interval reaches the base.",
    "adoption": "Share of answers that show what SFT taught.",
    "adoption_far": "Adoption among the answers whose semantics are far from SFT's.",
    "annotation_entropy": "Semantic entropy of the sampled annotations.",
    "adherence": "Share of the annotation's tags that the text keeps.",
    "adherence_by_chance": "Adherence to the annotation of another sample: what common values "
    "alone give.",
    "well_formed": "Share of texts that are well formed.",
    "consistent": "Share of texts that do not contradict themselves.",
    "answer_accuracy": "Share of questions with one right answer that are answered correctly.",
    "truncation_rate": "Share of texts cut at the token limit, among those whose end is known.",
}


def measured(vendi_orders: Iterable[float] = (1.0,)) -> list[Metric]:
    """Return the metrics in the order of `results.json`, with Vendi at these orders.

    They are sorted by source, and by their order in `METRICS` within each source.
    """
    orders = [_vendi(q) for q in vendi_orders]
    every = chain.from_iterable(orders if m.name == "vendi" else [m] for m in METRICS.values())
    return sorted(every, key=lambda metric: SOURCES.index(metric.source))


def in_order(names: Iterable[str]) -> list[str]:
    """Return those of `names` that are metrics, in table order; other Vendi orders follow it."""
    places = {name: place for place, name in enumerate(METRICS)}
    known = [name for name in names if family(name) in places]
    return sorted(known, key=lambda name: (places[family(name)], name != family(name)))


def says(name: str) -> str | None:
    """Return what a figure measures, in one sentence; None for a name in neither table."""
    metric = METRICS.get(family(name))
    return metric.says if metric else OF_MODELS.get(name)


def family(name: str) -> str:
    """Return the name under which a metric is declared: `vendi` for a Vendi score of any order."""
    return "vendi" if name.startswith("vendi_") else name
