"""The table of metrics: what is measured, shown and documented is what it declares."""

from __future__ import annotations

import re

import numpy as np
import pytest

from anchored.metrics import collapse
from anchored.metrics.entropy import semantic_entropy
from anchored.metrics.table import (
    METRICS,
    OF_MODELS,
    SOURCES,
    Metric,
    Observed,
    in_order,
    joined,
    measured,
    says,
)
from anchored.report.tables import COLUMNS
from conftest import ROOT

TEXTS = ("a cat sat", "a dog ran", "a cat sat", "birds sing", "a fox", "a hen", "an owl", "a cow")
READINGS = tuple({"animal": text.split()[1]} for text in TEXTS)
SEEN = Observed(
    TEXTS,
    np.eye(8)[[0, 1, 0, 2, 3, 4, 5, 6]],
    partition=(0, 1, 0, 2, 3, 4, 5, 6),
    scores=(10, 1, None, 4, 4, 4, 4, 4),
    perplexity=9.5,
    readings=READINGS,
    keys=("animal",),
)
WAYS = {1: "higher", -1: "lower", 0: "—"}


def test_every_metric_has_a_figure_of_what_was_read() -> None:
    pytest.importorskip("sacrebleu")
    values = {metric.name: metric.value(SEEN) for metric in METRICS.values()}
    assert None not in values.values()
    assert values["distinct_k"] == 7
    assert values["quality"] == 31 / 7
    assert (values["effective_diversity"], values["good_answers"]) == (1, 2)
    assert values["perplexity"] == 9.5
    assert values["semantic_entropy"] == semantic_entropy(READINGS, ("animal",)).mean
    assert values["dissimilarity"] == pytest.approx(1 - 2 / (8 * 7), abs=1e-12)
    assert values["exact_duplicate_rate"] == 1 / 8


def test_mattr_is_the_mean_over_windows_and_of_few_words_the_plain_ratio() -> None:
    def mattr(*texts: str) -> float | None:
        return METRICS["mattr_500"].value(Observed(texts))

    assert mattr("a b a", "c") == 3 / 4
    assert mattr("", " ") == 0
    words = [f"w{i}" for i in range(200)] + ["same"] * 400 + ["w0"]
    windows = [words[i : i + 500] for i in range(102)]
    expected = np.mean([len(set(window)) / 500 for window in windows])
    found = mattr(" ".join(words[:450]), " ".join(words[450:]))
    assert found == pytest.approx(expected, abs=1e-12)
    assert mattr(" ".join(words[:500])) == 201 / 500


def test_a_figure_that_cannot_be_had_is_none() -> None:
    bare = Observed(TEXTS, SEEN.vectors, readings=READINGS[:7], keys=("animal",))
    lacking = [name for name, metric in METRICS.items() if metric.value(bare) is None]
    assert lacking == [
        "distinct_k", "utility_k", "effective_diversity", "good_answers", "quality", "perplexity",
        "semantic_entropy", "semantic_entropy_miller_madow",
    ]  # fmt: skip


def test_the_results_have_metrics_by_what_they_are_read_off_and_tables_their_own_order() -> None:
    names = [metric.name for metric in measured((0.5, 1.0, float("inf")))]
    at = names.index("vendi_0.5")
    assert names[at : at + 3] == ["vendi_0.5", "vendi", "vendi_inf"]
    places = [SOURCES.index(metric.source) for metric in measured()]
    assert places == sorted(places)
    shown = in_order([*names, "adoption"])
    assert [name for name in shown if name in METRICS] == list(METRICS)
    at = shown.index("vendi")
    assert shown[at : at + 3] == ["vendi", "vendi_0.5", "vendi_inf"]


def test_every_figure_that_a_table_shows_is_explained() -> None:
    assert METRICS.keys().isdisjoint(OF_MODELS)
    assert says("vendi_2") == says("vendi") == METRICS["vendi"].says
    assert all(says(name) for name in (*METRICS, *OF_MODELS, *COLUMNS))
    assert says("seconds") is None


@pytest.mark.parametrize(
    "metric", [m for m in METRICS.values() if m.resampling], ids=lambda metric: metric.name
)
def test_a_statistic_of_texts_gives_the_metrics_own_figure(metric: Metric) -> None:
    whole = joined([SEEN, SEEN])
    assert metric.resampling is not None
    for together, one in ((False, SEEN), (True, whole)):
        if together and metric.resampling.pooled is None:
            with pytest.raises(
                AssertionError, match="texts of different prompts must not be mixed"
            ):
                metric.sampled([[SEEN, SEEN]], together)
            continue
        statistic, runs = metric.sampled([[SEEN, SEEN]], together)
        value = collapse.interval(runs, statistic, resamples=100).mean
        assert value == pytest.approx(metric.value(one), abs=1e-12)


def test_the_documentation_describes_every_metric_in_both_tables() -> None:
    page = (ROOT / "docs" / "which-metric.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (higher|lower|—) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(m.name, WAYS[m.more_diverse], m.says) for m in METRICS.values()]
    seen = page.partition("## What each metric sees")[2].partition("## ")[0]
    cells = re.findall(r"^\| (`.*?`) \| .+ \| .+ \|$", seen, re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == list(METRICS)
