from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from anchored.annotation import Annotation
from anchored.data.generations import read_generations, read_sets
from anchored.errors import DataError
from anchored.metrics.noveltybench import Stamp


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_with_generations_are_a_prompt_each(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a colour.", "generations": ["red", "blue"]},
        {"prompt": "Name a tree.", "generations": ["oak", "elm", "oak"]},
    ]
    found = read_generations(write(tmp_path / "a.jsonl", rows))
    assert found.prompts == ("Name a colour.", "Name a tree.")
    assert found.texts == (("red", "blue"), ("oak", "elm", "oak"))
    assert found.partitions == (None, None)
    assert found.scores == (None, None)


def test_flat_rows_are_grouped_by_prompt_in_order(tmp_path: Path) -> None:
    rows = [{"prompt": p, "response": r} for p, r in [("b", "1"), ("a", "2"), ("b", "3")]]
    found = read_generations(write(tmp_path / "a.jsonl", rows))
    assert found.prompts == ("b", "a")
    assert found.texts == (("1", "3"), ("2",))


def test_samples_without_a_prompt_are_answers_to_one(tmp_path: Path) -> None:
    sample = {"annotation": None, "attempts": 1, "malformed": False, "finished": True}
    rows = [{"prompt": None, "response": text, **sample} for text in ("one", "two")]
    found = read_generations(write(tmp_path / "a.jsonl", rows))
    assert found.prompts == ("",)
    assert found.texts == (("one", "two"),)


def test_annotations_that_a_model_wrote_stay_with_their_texts(tmp_path: Path) -> None:
    sea = [{"key": "topic", "value": "sea"}]
    rows = [
        {"prompt": p, "response": r, "annotation": a}
        for p, r, a in [("a", "1", sea), ("b", "2", None), ("a", "3", []), ("b", "4", sea)]
    ]
    other = [{"prompt": p, "response": r} for p in ("b", "a") for r in ("5", "6")]
    files = [write(tmp_path / "b.jsonl", other), write(tmp_path / "a.jsonl", rows)]
    _, found = read_sets(files)
    tagged = Annotation.of({"topic": "sea"})
    assert found.texts == (("2", "4"), ("1", "3"))
    assert [[found.annotation(p, i) for i in (0, 1)] for p in (0, 1)] == [
        [None, tagged],
        [tagged, Annotation()],
    ]
    assert found.first(1).annotations == ((None,), (tagged,))
    with_generations = write(tmp_path / "c.jsonl", [{"prompt": "a", "generations": ["x", "y"]}])
    assert read_generations(with_generations).annotation(0, 1) is None


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ("topic: sea", "annotation: 'topic: sea' is not a list of tags; write"),
        ([{"key": "topic"}], "annotation: "),
    ],
)
def test_an_annotation_of_another_form_is_refused(
    tmp_path: Path, annotation: Any, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "response": "r", "annotation": annotation}])
    with pytest.raises(DataError, match=f"a.jsonl: line 1: {message}"):
        read_generations(path)


@pytest.mark.parametrize(("ending", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_files_read_the_same(tmp_path: Path, ending: str, opener: Any) -> None:
    plain = write(tmp_path / "a.jsonl", [{"prompt": "p", "generations": ["x", "y"]}])
    packed = tmp_path / f"a.jsonl{ending}"
    with opener(packed, "wb") as file:
        file.write(plain.read_bytes())
    assert read_generations(packed).texts == read_generations(plain).texts


def test_noveltybench_rows_bring_partition_scores_and_their_version(tmp_path: Path) -> None:
    old = {
        "prompt": "p", "generations": ["x", "y"], "partition": [0, 0], "distinct": 0,
        "generation_scores": [7, 0],
    }  # fmt: skip
    new = {
        **old,
        "generation_scores": [7, None],
        "partition_config": {"stage": "partition", "version": "1.1", "alg": "llm",
                             "judge_model": "some-judge"},
        "score_config": {"stage": "score", "version": "1.1", "scorer": "llm",
                         "judge_model": "some-judge"},
    }  # fmt: skip
    first = read_generations(write(tmp_path / "a.jsonl", [old]))
    assert first.partitions == ((0, 0),)
    assert first.scores == ((7, 0),)
    assert first.partition_stamps == {Stamp("1.0", "given")}
    second = read_generations(write(tmp_path / "b.jsonl", [new]))
    assert second.scores == ((7, None),)
    assert second.partition_stamps == {Stamp("1.1", "given llm some-judge")}
    assert second.score_stamps == {Stamp("1.1", "given llm some-judge")}


GOOD = {"prompt": "p", "generations": ["x", "y"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "line 2: generations: missing (fields: text); a row has prompt and"),
        ({"prompt": "p", "response": "x"}, "line 2: generations: missing (fields: prompt, resp"),
        ({"generations": ["x"]}, "line 2: prompt: missing"),
        ({**GOOD, "prompt": 7}, "line 2: prompt: '7' is int, not text"),
        ({**GOOD, "generations": "x"}, "line 2: generations: 'x' is not a list of texts"),
        ({**GOOD, "generations": []}, "line 2: generations: '[]' is not a list of texts"),
        ({**GOOD, "generations": ["x", None]}, "line 2: generations[1]: 'None' is NoneType, not"),
        ({**GOOD, "partition": [0]}, "line 2: partition: '[0]' is not a list of 2"),
        ({**GOOD, "partition": [0, True]}, "line 2: partition[1]: True is not a class number"),
        ({**GOOD, "generation_scores": [1, "2"]}, "line 2: generation_scores[1]: '2' is not a nu"),
    ],
)
def test_a_bad_row_is_named_with_line_field_and_value(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, row])
    with pytest.raises(DataError) as caught:
        read_generations(path)
    assert f"{path}: {message}" in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: has no rows; a row has prompt and"):
        read_generations(write(tmp_path / "a.jsonl", []))


def sets_of(tmp_path: Path, *files: list[tuple[str, list[str]]]) -> list[Path]:
    return [
        write(tmp_path / f"{name}.jsonl", [{"prompt": p, "generations": g} for p, g in rows])
        for name, rows in zip("abc", files, strict=False)
    ]


def test_sets_come_in_the_order_of_the_first_ones_prompts(tmp_path: Path) -> None:
    paths = sets_of(
        tmp_path,
        [("p", ["1", "2"]), ("q", ["3", "4"]), ("p", ["5", "6"])],
        [("q", ["c", "d"]), ("p", ["a", "b"]), ("p", ["e", "f"])],
    )
    first, second = read_sets(paths)
    assert (first.name, second.name) == ("a", "b")
    assert first.prompts == second.prompts == ("p", "q", "p")
    assert second.texts == (("a", "b"), ("c", "d"), ("e", "f"))


def test_sets_are_called_by_their_model_or_file_and_by_path_where_these_clash(
    tmp_path: Path,
) -> None:
    row = {"prompt": "p", "generations": ["x"]}
    named = write(tmp_path / "a.jsonl", [{**row, "model": "owner/m-1.5"}])
    plain = write(tmp_path / "gpt-4.1.jsonl", [row])
    assert [found.name for found in read_sets([named, plain])] == ["owner/m-1.5", "gpt-4.1"]
    (tmp_path / "other").mkdir()
    twin = write(tmp_path / "other" / "gpt-4.1.jsonl", [row])
    assert [found.name for found in read_sets([plain, twin])] == [str(plain), str(twin)]


def test_unequal_numbers_are_refused_with_the_n_that_mends_it(tmp_path: Path) -> None:
    paths = sets_of(tmp_path, [("p", ["1", "2", "3"])], [("p", ["a", "b"])])
    with pytest.raises(DataError, match=r"a: prompt 'p' has 3 texts, others have 2, .*use --n 2"):
        read_sets(paths)
    assert [found.texts for found in read_sets(paths, n=2)] == [(("1", "2"),), (("a", "b"),)]
    with pytest.raises(DataError, match=r"b: prompt 'p' has 2 texts, not 3; use --n 2 or fewer"):
        read_sets(paths, n=3)


def test_sets_are_compared_on_their_common_prompts_with_a_note(tmp_path: Path) -> None:
    first = [("p", ["1"]), ("q", ["2"]), ("r", ["3"])]
    second = [("r", ["4"]), ("q", ["5"]), ("s", ["6", "7"])]  # s has more texts, and is left out
    a, b = read_sets(sets_of(tmp_path, first, second))
    assert (a.prompts, a.texts) == (("q", "r"), (("2",), ("3",)))
    assert (b.prompts, b.texts) == (("q", "r"), (("5",), ("4",)))
    lacking = "of its 3 prompts are left out, because another file lacks them."
    assert (a.notes, b.notes) == ((f"a: 1 {lacking}",), (f"b: 1 {lacking}",))


def test_sets_without_a_common_prompt_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b: has no prompt in common with a, .* 'p'"):
        read_sets(sets_of(tmp_path, [("p", ["1"])], [("q", ["1"])]))
    pairs = [
        [("p", ["1"]), ("q", ["1"])],
        [("q", ["1"]), ("r", ["1"])],
        [("r", ["1"]), ("p", [""])],
    ]
    with pytest.raises(DataError, match="a: none of its prompts is in all 3 files"):
        read_sets(sets_of(tmp_path, *pairs))


def test_a_corpus_is_one_prompt_and_equally_many_of_its_texts_are_drawn(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(9)])
    b = write(
        tmp_path / "b.jsonl", [{"chunks": [{"text": f"t{i}"}, {"text": "."}]} for i in range(5)]
    )
    sets = read_sets([a, b], seed=1)
    assert [found.prompts for found in sets] == [("",), ("",)]
    assert [found.sizes for found in sets] == [(5,), (5,)]
    assert sets[1].texts[0][0] == "t0\n\n."
    assert sets[0].notes == (
        "a: 5 of its 9 texts, drawn with seed 1, count as answers to one prompt.",
    )
    assert sets[1].notes == ()
    assert sets[0].texts == read_sets([a, b], seed=1)[0].texts
    assert sets[0].texts != read_sets([a, b], seed=2)[0].texts
    assert read_sets([a], n=3)[0].sizes == (3,)
    with pytest.raises(DataError, match="has 9 texts, not 10"):
        read_sets([a], n=10)


def test_texts_with_a_prompt_are_its_answers(tmp_path: Path) -> None:
    rows = [{"prompt": p, "text": text} for p, text in (("p", "1"), ("q", "2"), ("p", "3"))]
    (found,) = read_sets([write(tmp_path / "a.jsonl", rows)], n=1)
    assert (found.prompts, found.texts, found.corpus) == (("p", "q"), (("1",), ("2",)), False)


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        ([{"response": "1"}, {"response": "2"}], None),
        ([{"response": "1", "finished": True}, {"response": "2", "finished": False}], 0.5),
        ([{"response": "1", "finish_reason": "length"}, {"response": "2"}], 1.0),
        ([{"response": "1", "finish_reason": "stop"}], 0.0),
        ([{"generations": ["1", "2"], "finish_reason": ["MAX_TOKENS", "stop"]}], 0.5),
        ([{"generations": ["1", "2"], "finished": [True, None]}], 0.0),
    ],
)
def test_the_truncation_rate_is_over_the_texts_whose_end_is_known(
    tmp_path: Path, rows: list[dict[str, Any]], rate: float | None
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", **row} for row in rows])
    assert read_generations(path).truncation_rate == rate


def test_an_end_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "generations": ["1", "2"], "finished": [True]}
    with pytest.raises(DataError, match=r"line 1: finished: '\[True\]' is not bool for each of 2"):
        read_generations(write(tmp_path / "a.jsonl", [row]))


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    (path,) = sets_of(tmp_path, [("p", ["1"])])
    with pytest.raises(DataError, match=r"a\.jsonl: given twice"):
        read_sets([path, path])
