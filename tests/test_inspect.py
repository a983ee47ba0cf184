"""What `anchored inspect` shows of datasets, models and corpora."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anchored.annotation import Annotation
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.errors import AnchoredError, DataError
from anchored.inspection.inspect import Shown, run, view_of
from anchored.segments import (
    NO_LOSS,
    OBJECTIVES,
    Kind,
    Message,
    assemble,
    conversation_segments,
)
from anchored.tags.statistics import statistics
from anchored.token_view import Span, segment_view, spans
from anchored.tokenizer import AnchoredTokenizer

Row = tuple[list[int], list[int], list[int], list[int]]
PROMPT, ANSWER = "Tell me a story.", "Größe 東京 \x1b[31m‮ \n\nMara slept."


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(["Tell me a story. Mara slept. hero: Mara"] * 3, 300)


@pytest.fixture(scope="module")
def row(tokenizer: AnchoredTokenizer) -> Row:
    """Two conversations in one row, the first anchored, the second standard."""
    messages = [
        Message("user", PROMPT),
        Message("assistant", ANSWER, Annotation.of({"hero": "Mara"})),
    ]
    examples = [
        assemble(conversation_segments(messages, tokenizer, OBJECTIVES[name]))
        for name in ("anchored", "standard")
    ]
    first, second = examples
    return (
        first.input_ids + second.input_ids,
        first.labels + second.labels,
        first.kinds + second.kinds,
        [len(first.input_ids), len(second.input_ids)],
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    annotation = [{"key": "hero", "value": "Mara"}]
    rows = [
        {"id": str(i), "prompt": PROMPT, "response": f"Mara {i}.", "annotation": annotation}
        for i in range(8)
    ]
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = PrepareConfig.model_validate(
        {
            "out": str(folder / "data"),
            "sources": [{"path": str(source)}],
            "tokenizer": {"vocab_size": 300},
            "objective": "anchored",
            "format_share": 0.0,
            "max_length": 64,
        }
    )
    prepare(config)
    return folder / "data"


def shown(document: list[Span]) -> list[tuple[str, str, bool]]:
    return [(span.text, span.kind.name, span.supervised) for span in document]


VISIBLE_ANSWER = "Größe 東京 ⟨U+001B⟩[31m⟨U+202E⟩ \n\nMara slept."


def test_an_anchored_document_shows_loss_on_response_and_eos_alone(
    row: Row, tokenizer: AnchoredTokenizer
):
    anchored, _ = spans(*row, tokenizer)
    assert shown(anchored) == [
        ("‹bos›", "CONTROL", False),
        ("‹user›", "CONTROL", False),
        (PROMPT, "PROMPT", False),
        ("‹assistant›", "CONTROL", False),
        ("‹open›", "CONTROL", False),
        ("hero:", "TAG_KEY", False),
        (" Mara", "TAG_VALUE", False),
        ("‹close›", "CONTROL", False),
        (VISIBLE_ANSWER, "TEXT", True),
        ("‹eos›", "CONTROL", True),
    ]


def test_documents_of_a_packed_row_are_cut_where_seq_lengths_says(
    row: Row, tokenizer: AnchoredTokenizer
):
    first, second = spans(*row, tokenizer)
    assert [sum(span.tokens for span in document) for document in (first, second)] == row[3]
    assert second[0].text == "‹bos›"


def test_numpy_and_torch_columns_show_the_same_as_lists(row: Row, tokenizer: AnchoredTokenizer):
    expected = spans(*row, tokenizer)
    for convert in (np.asarray, torch.tensor):
        ids, labels, kinds, lengths = (cast(Any, convert(column)) for column in row)
        assert spans(ids, labels, kinds, lengths, tokenizer) == expected


def test_a_control_token_spelt_in_text_is_not_shown_as_control(tokenizer):
    example = assemble(
        conversation_segments(
            [Message("user", "<|annotation|>"), Message("assistant", "x")],
            tokenizer,
            OBJECTIVES["standard"],
        )
    )
    row = (example.input_ids, example.labels, example.kinds, [len(example.input_ids)])
    assert ("<|annotation|>", "PROMPT", False) in shown(spans(*row, tokenizer)[0])


def test_columns_that_disagree_are_refused_with_their_lengths(
    row: Row, tokenizer: AnchoredTokenizer
):
    ids, labels, kinds, lengths = row
    with pytest.raises(DataError, match=f"seq_lengths adds up to {len(ids) + 1}; prepare"):
        spans(ids, labels, kinds, [*lengths, 1], tokenizer)


def test_the_view_marks_loss_by_style_and_by_bracket(row: Row, tokenizer: AnchoredTokenizer):
    view = segment_view(*row, tokenizer)
    styles = {
        view.plain[part.start : part.end]: str(part.style)
        for part in view.spans
        if part.end > part.start
    }
    assert styles[VISIBLE_ANSWER] == "default underline"
    assert styles[PROMPT] == "cyan dim"
    assert styles[" Mara"] == "green dim"
    assert f"‹close›⟦{VISIBLE_ANSWER}‹eos›⟧" in view.plain
    assert "\x1b" not in view.plain and "\u202e" not in view.plain


def test_the_view_accounts_for_loss_by_kind(row: Row, tokenizer: AnchoredTokenizer):
    ids, labels, kinds, _ = row
    learnt = sum(label != NO_LOSS for label in labels)
    text = sum(kind == Kind.TEXT for kind in kinds)
    last = segment_view(*row, tokenizer).plain.splitlines()[-1]
    assert last.startswith(f"loss on {learnt} of {len(ids)} tokens (")
    assert last.endswith(f"text {text}/{text}")
    assert "tag value 0/" in last


def test_a_dataset_shows_its_rows_and_manifest_as_json(dataset: Path, capsys):
    run(dataset, Shown(count=1), as_json=True)
    data = json.loads(capsys.readouterr().out)
    assert data["manifest"]["objective"] == "anchored"
    assert len(data["rows"]) == 1
    texts = [span["text"] for span in data["rows"][0][0]]
    assert texts[:7] == ["‹bos›", "‹user›", PROMPT, "‹assistant›", "‹open›", "hero:", " Mara"]


def test_a_dataset_shows_its_account_in_the_terminal(dataset: Path, capsys):
    run(dataset, Shown(count=2))
    out = capsys.readouterr().out
    assert "document 1 of " in out
    assert "tag value" in out
    assert "with loss" in out


def test_the_html_of_a_dataset_is_whole_and_escaped(dataset: Path, tmp_path: Path, capsys):
    file = tmp_path / "view.html"
    run(dataset, Shown(count=1), html=file)
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert '<span class="k3 free" title="tag value, ' in page
    assert "<script" not in page
    assert capsys.readouterr().out


def test_any_row_of_any_split_can_be_seen(dataset: Path):
    prepared, _ = load_prepared(dataset)
    last = len(prepared) - 1
    rows = view_of(dataset, Shown(first=last, count=5)).data["rows"]
    everything = view_of(dataset, Shown(count=last + 1)).data["rows"]
    assert rows == everything[-1:]
    assert "Mara 7." in {span["text"] for document in rows[0] for span in document}
    with pytest.raises(DataError, match=f"no row {last + 1} in the train split"):
        view_of(dataset, Shown(first=last + 1))
    with pytest.raises(DataError, match="no validation split"):
        view_of(dataset, Shown(split="validation"))


def test_a_dataset_that_was_changed_is_refused(dataset: Path, tmp_path: Path):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    arrow = next(copy.glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes() + b"x")
    with pytest.raises(DataError, match="prepare the data again"):
        view_of(copy)


@pytest.fixture
def model(tmp_path: Path, tokenizer: AnchoredTokenizer) -> Path:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    config = {"architectures": ["Olmo2ForCausalLM"], "num_hidden_layers": 4, "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, folder / "model.safetensors")
    tokenizer.save(folder)
    record: dict[str, Any] = {
        "objective": "anchored",
        "annotated": True,
        "schema": None,
        "versions": {"torch": "2.13.0"},
    }
    (folder / "anchored.json").write_text(json.dumps(record), encoding="utf-8")
    metrics = {
        "step": 20,
        "loss": 1.25,
        "loss_by_kind": {"text": 1.25},
        "tokens": 4096,
        "tokens_per_second": 1000.4,
        "mfu": 0.31,
    }
    (folder.parent / "metrics.jsonl").write_text(json.dumps(metrics) + "\n", encoding="utf-8")
    return folder


def test_a_model_shows_size_tokenizer_and_training(model: Path, tokenizer: AnchoredTokenizer):
    data = view_of(model).data
    assert data["architecture"] == "Olmo2ForCausalLM"
    assert data["parameters"] == "22 in 1 safetensors file"
    assert data["tokenizer"] == f"{tokenizer.fingerprint}, {len(tokenizer)} entries"
    assert data["control tokens"] == ", ".join(
        f"{k} {v}" for k, v in vars(tokenizer.control).items()
    )
    assert data["objective"] == "anchored"
    assert data["trained for"] == "20 steps, 4,096 tokens"
    assert data["last loss"] == "1.250 (text 1.250)"


def test_the_folder_of_a_run_shows_its_model(model: Path):
    assert view_of(model.parent).data == view_of(model).data


def test_a_model_without_our_record_says_so(model: Path):
    (model / "anchored.json").unlink()
    assert view_of(model).data["training"] == "unknown: no anchored.json in this folder"


def test_a_damaged_config_names_the_file(model: Path):
    (model / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"config\.json: not JSON"):
        view_of(model)


def test_a_missing_path_is_one_clear_line(tmp_path: Path):
    with pytest.raises(AnchoredError, match="no such file or folder"):
        run(tmp_path / "nothing")


def corpus(path: Path, *annotations: dict[str, str] | None) -> Path:
    rows = []
    for place, tags in enumerate(annotations):
        chunk: dict[str, Any] = {"text": "Mara slept."}
        if tags is not None:
            chunk["annotation"] = [{"key": key, "value": value} for key, value in tags.items()]
        rows.append({"id": str(place), "chunks": [chunk]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_corpus_shows_coverage_entropy_and_top_values(tmp_path: Path):
    tags = [{"hero": "Mara", "place": "mill"}, {"hero": "Tom"}, {"hero": "Mara"}, {"hero": "Tom"}]
    data = view_of(corpus(tmp_path / "rows.jsonl", *tags)).data
    assert data["annotations"] == 4
    assert data["keys"]["hero"] == {
        "coverage": 1.0,
        "entropy": 0.6931,
        "miller_madow": 0.8181,  # and (2 - 1) / (2 * 4)
        "distinct": 2,
        "once": 0,
        "top": [["Mara", 2], ["Tom", 2]],
        "tail": [],
    }
    assert data["keys"]["place"]["coverage"] == 0.25


def test_the_tail_holds_the_rarest_values_that_are_not_at_the_top():
    tags = [{"key": "hero", "value": f"{n:02}"} for n in range(12) for _ in range(20 - n)]
    annotation = Annotation.from_rows([*tags, {"key": "hero", "value": "x"}])
    found = statistics([annotation]).keys["hero"]
    assert found.tail == (("10", 10), ("11", 9), ("x", 1))
    assert (found.top[0], found.top[-1], found.once) == (("00", 20), ("09", 11), 1)


def test_a_folder_of_shards_is_one_corpus(tmp_path: Path):
    corpus(tmp_path / "shard-00000.jsonl", {"hero": "Mara"})
    corpus(tmp_path / "shard-00001.jsonl", {"hero": "Tom"})
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    assert view_of(tmp_path).data["keys"]["hero"]["distinct"] == 2


def test_a_corpus_in_the_terminal_and_html_shows_hidden_characters(tmp_path: Path, capsys):
    path = corpus(tmp_path / "rows.jsonl", {"hero": "[red]Ma\u202era</td>"})
    run(path, html=tmp_path / "view.html")
    out, page = capsys.readouterr().out, (tmp_path / "view.html").read_text(encoding="utf-8")
    assert "[red]Ma⟨U+202E⟩ra" in out
    assert "Ma⟨U+202E⟩ra&lt;/td&gt; 1</td>" in page


def test_a_corpus_without_annotations_points_to_annotate(tmp_path: Path):
    with pytest.raises(DataError, match="no row has an annotation; annotate it with `anchored"):
        view_of(corpus(tmp_path / "rows.jsonl", None))


def test_a_damaged_corpus_row_is_named_by_file_and_line(tmp_path: Path):
    path = corpus(tmp_path / "rows.jsonl", {"hero": "Mara"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"text": "x", "annotation": ["hero"]}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl: line 2: "):
        view_of(path)
