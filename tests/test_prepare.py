from __future__ import annotations

import io
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from rich.console import Console

from anchored import cli
from anchored.annotation import Schema
from anchored.data.prepare import (
    NewTokenizer,
    PrepareConfig,
    SourceConfig,
    account_table,
    load_prepared,
    prepare,
)
from anchored.data.store import MANIFEST, SplitWriter
from anchored.errors import ConfigError, DataError, TokenizerMismatch
from anchored.files import write_json
from anchored.segments import NO_LOSS, OBJECTIVES, Kind
from anchored.tokenizer import AnchoredTokenizer
from conftest import line_breaks_lost

QUIET = Console(quiet=True)
load_tokenizer = lru_cache(AnchoredTokenizer.load)


def tags(**pairs):
    return [{"key": key, "value": value} for key, value in pairs.items()]


STORY = {
    "id": "story",
    "chunks": [
        {"text": "The sea was calm.", "annotation": tags(topic="sea", mood="calm")},
        {"text": "Then it rained.", "annotation": tags(topic="rain")},
    ],
}
CHAT = {
    "id": "chat",
    "prompt": "Tell me a story.",
    "response": "Once there was rain.",
    "annotation": tags(topic="rain", mood="calm"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    AnchoredTokenizer.train(["Once there was rain. The sea was calm. Tell me"], 320).save(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, tokenizer):
    """Prepares rows and returns dataset and manifest; every call has a folder of its own."""

    def go(rows, split="train", name="out", **options):
        corpus = tmp_path / f"{name}.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        config = PrepareConfig(
            **{
                "out": tmp_path / name,
                "sources": [SourceConfig(path=str(corpus))],
                "tokenizer": tokenizer,
                "packing": False,
                **options,
            }
        )
        return load_prepared(prepare(config, QUIET), split=split)

    return go


def written(row, tokenizer, learnt_only=False):
    """The row as text; with `learnt_only`, what carries loss."""
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    ids = [i for i, label in pairs if not learnt_only or label != NO_LOSS]
    return load_tokenizer(tokenizer).decode(ids)


CHAT_TEXT = (
    "<|endoftext|><|user|>Tell me a story.<|assistant|>"
    "<|annotation|>topic: rain\nmood: calm<|/annotation|>Once there was rain.<|endoftext|>"
)


@pytest.mark.parametrize(
    ("objective", "text", "learnt"),
    [
        ("annotated", CHAT_TEXT, CHAT_TEXT.removeprefix("<|endoftext|>")),
        ("anchored", CHAT_TEXT, "Once there was rain.<|endoftext|>"),
        (
            "tagged",
            CHAT_TEXT,
            "<|annotation|>topic: rain\nmood: calm<|/annotation|>Once there was rain.<|endoftext|>",
        ),
        (
            "standard",
            "<|endoftext|><|user|>Tell me a story.<|assistant|>Once there was rain.<|endoftext|>",
            "Once there was rain.<|endoftext|>",
        ),
        (
            "plain",
            "<|endoftext|><|user|>Tell me a story.<|assistant|>Once there was rain.<|endoftext|>",
            "<|user|>Tell me a story.<|assistant|>Once there was rain.<|endoftext|>",
        ),
    ],
)
def test_what_is_written_and_what_is_learnt_under_each_objective(
    run, tokenizer, objective, text, learnt
):
    dataset, _ = run([CHAT], objective=objective, key_order="canonical", format_share=0)
    assert written(dataset[0], tokenizer) == text
    assert written(dataset[0], tokenizer, learnt_only=True) == learnt


def test_with_a_format_share_of_one_the_keys_are_learnt_and_the_values_are_not(run, tokenizer):
    dataset, manifest = run([CHAT], objective="anchored", key_order="canonical", format_share=1.0)
    assert written(dataset[0], tokenizer, learnt_only=True) == (
        "<|annotation|>topic:\nmood:<|/annotation|>Once there was rain.<|endoftext|>"
    )
    assert manifest["read"]["format examples"] == 1


def test_the_format_examples_are_0_3_percent_of_anchored_ones(run):
    rows = [{**CHAT, "id": str(i)} for i in range(4000)]
    _, manifest = run(rows, objective="anchored")
    assert 5 <= manifest["read"]["format examples"] <= 20


def test_replay_rows_under_their_own_objective_are_learnt_in_the_annotation_alone(
    run, tokenizer, tmp_path
):
    replay = tmp_path / "replay.jsonl"
    row = {"prompt": CHAT["prompt"], "annotation": CHAT["annotation"]}
    replay.write_text(json.dumps(row), encoding="utf-8")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps(CHAT), encoding="utf-8")
    sources = [
        SourceConfig(path=str(replay), objective="replay"),
        SourceConfig(path=str(chats)),
    ]
    dataset, _ = run([], sources=sources, objective="anchored", key_order="canonical")
    assert [written(row, tokenizer, learnt_only=True) for row in dataset] == [
        "<|annotation|>topic: rain\nmood: calm<|/annotation|>",
        "Once there was rain.<|endoftext|>",
    ]


def test_of_a_replayed_conversation_only_the_last_annotation_is_learnt(run, tokenizer):
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", CHAT["prompt"])]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": messages, "annotation": CHAT["annotation"]}
    dataset, _ = run([row], objective="replay", key_order="canonical")
    assert [written(row, tokenizer, learnt_only=True) for row in dataset] == [
        "<|annotation|>topic: rain\nmood: calm<|/annotation|>"
    ]


def test_documents_stand_behind_their_annotations_chunk_by_chunk(run, tokenizer):
    dataset, manifest = run([STORY], key_order="canonical")
    assert written(dataset[0], tokenizer) == (
        "<|endoftext|><|annotation|>topic: sea\nmood: calm<|/annotation|>The sea was calm.\n\n"
        "<|annotation|>topic: rain<|/annotation|>Then it rained.<|endoftext|>"
    )
    assert manifest["read"]["chunks"] == 2


def test_keys_are_shuffled_by_seed_and_row_and_the_same_in_every_run(run):
    rows = [{**CHAT, "id": str(i)} for i in range(40)]
    first, again, other = (
        run(rows, name=f"out{i}", seed=seed)[0] for i, seed in enumerate((0, 0, 1))
    )
    assert first["input_ids"][:] == again["input_ids"][:]
    assert first["input_ids"][:] != other["input_ids"][:]
    assert len(set(map(tuple, first["input_ids"]))) == 2


def test_three_assistant_turns_give_three_examples_and_only_the_last_has_an_annotation(
    run, tokenizer
):
    turns = [
        {"role": role, "content": f"{role[0]}{i}", "annotation": tags(topic=f"t{i}")}
        for i in range(3)
        for role in ("user", "assistant")
    ]
    dataset, _ = run([{"messages": turns}], objective="anchored")
    texts = [written(row, tokenizer) for row in dataset]
    assert len(texts) == 3
    assert texts[2] == (
        "<|endoftext|><|user|>u0<|assistant|>a0<|endoftext|><|user|>u1<|assistant|>a1<|endoftext|>"
        "<|user|>u2<|assistant|><|annotation|>topic: t2<|/annotation|>a2<|endoftext|>"
    )
    assert [written(row, tokenizer, True) for row in dataset] == [
        f"a{i}<|endoftext|>" for i in range(3)
    ]


def test_in_pretraining_a_conversation_is_one_example(run):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant") * 3]
    assert len(run([{"messages": turns}], objective="plain")[0]) == 1


PROMPTED = [{**STORY, "id": str(i), "prompt": "Tell me"} for i in range(300)]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.15, 25, 65), (1.0, 300, 300)])
def test_prompted_documents_are_a_dial(run, share, low, high):
    dataset, manifest = run(PROMPTED, prompted_share=share)
    user = load_tokenizer(manifest["config"]["tokenizer"]).control.user
    count = sum(user in ids for ids in dataset["input_ids"])
    assert low <= count <= high
    assert manifest["read"]["documents behind their prompt"] == count


def test_in_sft_every_document_with_a_prompt_is_a_conversation(run, tokenizer):
    dataset, _ = run(PROMPTED[:1], objective="anchored", prompted_share=0.0)
    assert written(dataset[0], tokenizer, learnt_only=True) == (
        "The sea was calm.\n\nThen it rained.<|endoftext|>"
    )


def test_annotated_share_writes_the_other_rows_plain(run):
    rows = [{**STORY, "id": f"{n}"} for n in range(200)]
    dataset, manifest = run(rows, prompted_share=0.0, annotated_share=0.3)
    annotated = [Kind.TAG_VALUE in kinds for kinds in dataset["kinds"]]
    assert manifest["read"]["annotations"] == 2 * sum(annotated)
    assert 40 <= sum(annotated) <= 80
    plain, _ = run(rows[:1], prompted_share=0.0, objective="plain", name="plain")
    written = [ids for ids, tags in zip(dataset["input_ids"], annotated, strict=True) if not tags]
    assert set(map(tuple, written)) == {tuple(plain[0]["input_ids"])}


def test_what_other_tools_derive_and_keep_beside_the_rows_changes_nothing(run, tokenizer):
    dataset, manifest = run([STORY])
    folder = Path(manifest["config"]["out"])
    dataset.map(lambda row: {"length": len(row["input_ids"])})
    assert list(folder.glob("cache-*.arrow"))
    assert load_prepared(folder, load_tokenizer(tokenizer))[0]["input_ids"] == dataset["input_ids"]


def test_annotated_share_is_of_pretraining_and_leaves_sft_alone(run):
    dataset, _ = run([CHAT], objective="anchored", annotated_share=0.0)
    assert Kind.TAG_VALUE in dataset[0]["kinds"]


def test_a_prompted_document_longer_than_a_row_falls_back_to_the_document(run, tokenizer):
    dataset, manifest = run(PROMPTED[:1], prompted_share=1.0, max_length=32)
    assert "<|user|>" not in "".join(written(row, tokenizer) for row in dataset)
    assert manifest["dropped"] == {}


def test_keys_that_sft_is_to_change_are_left_out_of_its_plan_but_stay_in_pretraining(
    run, tokenizer, tmp_path
):
    schema = tmp_path / "schema.yaml"
    schema.write_text(
        "name: s\nkeys:\n- {name: topic, description: t}\n"
        "- {name: mood, description: m, anchored: false}\n"
    )
    options = {"schema_name": str(schema), "key_order": "canonical"}
    sft, manifest = run([CHAT], objective="anchored", **options)
    assert "<|annotation|>topic: rain<|/annotation|>" in written(sft[0], tokenizer)
    assert manifest["schema"] == Schema.load(schema).model_dump(mode="json")
    pretraining, _ = run([CHAT], name="pre", objective="annotated", **options)
    assert "topic: rain\nmood: calm<|/annotation|>" in written(pretraining[0], tokenizer)


def test_a_row_that_breaks_the_schema_is_named_by_its_place_or_skipped_as_a_whole(run, tmp_path):
    schema = tmp_path / "schema.yaml"
    schema.write_text("name: s\nkeys:\n- {name: topic, description: t}\n")
    good, bad = (tags(topic="a"), tags(mood="b"))
    chunks = [{"text": "One.", "annotation": good}, {"text": "Two.", "annotation": bad}]
    turns = [
        {"role": role, "content": "x", **more}
        for more in ({"annotation": good}, {"annotation": bad})
        for role in ("user", "assistant")
    ]
    whole = {"text": "Three.", "prompt": "Tell.", "annotation": bad}
    for row in ({"chunks": chunks}, {"messages": turns}, whole):
        rows = [{"id": "mine", "prompt": "a", "response": "b", "annotation": good}, row]
        message = r"out.jsonl: line 2: annotation: tag key 'mood' is not in schema 's' \(topic\)"
        with pytest.raises(DataError, match=message):
            run(rows, schema_name=str(schema), objective="anchored")
        assert not (tmp_path / "out").exists()
    assert run(rows, schema_name=str(schema), objective="standard", name="std")[1]["dropped"] == {}
    for objective in ("annotated", "anchored"):
        options = {"schema_name": str(schema), "objective": objective, "skip_bad_rows": True}
        dataset, manifest = run(rows, name=objective, **options)
        assert len(dataset) == 1
        assert manifest["dropped"] == {"bad row": {"examples": 1, "tokens": 0}}


def test_a_source_without_a_row_is_named(run, tmp_path):
    with pytest.raises(DataError) as caught:
        run([], objective="plain")
    place = f"{tmp_path / 'out.jsonl'}: no rows"
    assert str(caught.value) == f"{place}; check the file and the source's where, skip and limit"
    with pytest.raises(DataError, match="no row"):
        run([], objective="plain", tokenizer=NewTokenizer(vocab_size=300))


def stories(count):
    """Documents of different lengths, annotated."""
    return [
        {"id": str(i), "chunks": [{"text": "rain " * (5 + i % 9), "annotation": tags(topic="a")}]}
        for i in range(count)
    ]


def test_annotated_and_plain_runs_of_a_budget_hold_the_same_number_of_tokens(run):
    budget, length = 3000, 64
    kept, text = {}, {}
    for objective in ("plain", "annotated"):
        _, manifest = run(
            stories(400),
            name=objective,
            objective=objective,
            token_budget=budget,
            max_length=length,
            packing=True,
        )
        kept[objective] = manifest["tokens"]["kept"]
        text[objective] = manifest["splits"]["train"]["by_kind"]["text"]
    assert all(budget - length < tokens <= budget for tokens in kept.values())
    assert text["annotated"] < text["plain"]


def test_a_budget_beyond_the_corpus_is_refused(run):
    with pytest.raises(DataError, match=r"token_budget: 99999 tokens asked for, but the sources"):
        run(stories(5), token_budget=99999)


def test_sources_are_mixed_by_the_weight_of_their_text_while_they_last(tmp_path, tokenizer, run):
    for name in "ab":
        rows = [{"id": f"{name}{i}", "text": name * 100} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    sources = [
        SourceConfig(path=str(tmp_path / f"{name}.jsonl"), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    ]
    dataset, _ = run([], sources=sources, objective="plain")
    order = "".join(written(row, tokenizer)[-20] for row in dataset)
    assert order[:24].count("a") == 18
    assert (order.count("a"), order.count("b")) == (30, 30)


def test_validation_rows_are_chosen_by_id_alone_and_are_in_no_other_split(run):
    rows = stories(300)
    options = {"objective": "plain", "validation_share": 0.1, "split": "validation"}
    held, manifest = run(rows, name="all", **options)
    assert 15 <= len(held) <= 50
    assert manifest["splits"]["train"]["rows"] + len(held) == 300
    half, _ = run(rows[:150], name="half", **options)
    assert half["input_ids"][:] == held["input_ids"][: len(half)]


def test_a_corpus_without_ids_that_is_moved_is_prepared_to_the_same_bytes(tmp_path, tokenizer, run):
    rows = "".join(
        json.dumps({name: value for name, value in row.items() if name != "id"}) + "\n"
        for row in stories(60)
    )
    options = {"format_share": 0.5, "validation_share": 0.2, "objective": "anchored"}
    found = []
    for folder in ("here", "there"):
        path = tmp_path / folder / "rows.jsonl"
        path.parent.mkdir()
        path.write_text(rows, encoding="utf-8")
        sources = [SourceConfig(path=str(path))]
        found.append(run([], name=f"of {folder}", sources=sources, **options)[0])
    for name in ("input_ids", "labels"):
        assert found[0][name][:] == found[1][name][:]


def test_the_folder_is_a_plain_dataset_with_these_columns_and_its_account_adds_up(run, tmp_path):
    _, manifest = run(stories(200), packing=True, max_length=96)
    dataset = load_from_disk(str(tmp_path / "out"))
    assert isinstance(dataset, Dataset)
    assert {name: str(f.feature.dtype) for name, f in dataset.features.items()} == {
        "input_ids": "int32",
        "labels": "int32",
        "kinds": "int8",
        "seq_lengths": "int32",
    }
    columns = [dataset[name][:] for name in ("input_ids", "labels", "kinds", "seq_lengths")]
    tokens = supervised = 0
    for ids, labels, kinds, lengths in zip(*columns, strict=True):
        assert len(ids) == len(labels) == len(kinds) == sum(lengths) <= 96
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        assert all(labels[start] == NO_LOSS for start in starts)
        assert all(label in (NO_LOSS, i) for i, label in zip(ids, labels, strict=True))
        assert set(kinds) <= set(Kind)
        tokens += len(ids)
        supervised += sum(label != NO_LOSS for label in labels)
    assert manifest["tokens"] == {
        "kept": tokens,
        "supervised": supervised,
        "masked": tokens - supervised,
        "dropped": 0,
    }
    split = manifest["splits"]["train"]
    assert sum(split["by_kind"].values()) == tokens
    assert sum(split["supervised_by_kind"].values()) == supervised
    assert split["sequences"] == 200
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.yaml",
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "manifest.json",
        "state.json",
        "tokenizer",
    }


def test_packing_changes_the_rows_and_not_one_sequence(run):
    packed, _ = run(stories(100), name="packed", packing=True, max_length=96)
    separate, _ = run(stories(100), name="separate", max_length=96)
    cut = []
    for row in packed:
        for length in row["seq_lengths"]:
            cut.append((row["input_ids"][:length], row["labels"][:length]))
            row = {name: row[name][length:] for name in ("input_ids", "labels")}
    assert sorted(cut) == sorted((row["input_ids"], row["labels"]) for row in separate)
    assert len(packed) < len(separate)


def test_a_conversation_longer_than_a_row_is_dropped_whole_and_counted(run):
    long = {**CHAT, "id": "long", "response": "rain " * 500}
    dataset, manifest = run([CHAT, long], objective="anchored", max_length=200)
    assert len(dataset) == 1
    dropped = manifest["dropped"]["conversation longer than max_length"]
    assert dropped["examples"] == 1
    assert manifest["tokens"]["dropped"] == dropped["tokens"] > 500


def test_data_without_a_token_to_learn_is_refused_and_nothing_is_left(run, tmp_path):
    row = {"prompt": "Hi.", "annotation": tags(topic="a")}
    with pytest.raises(DataError) as error:
        run([row], objective="anchored", format_share=0)
    assert str(error.value) == (
        "sources: no token of the train split carries loss under objective 'anchored'; "
        "left out: 1 no token with loss"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


def test_annotated_objectives_refuse_a_corpus_without_annotations(run):
    with pytest.raises(DataError, match=r"needs annotations and no row has one; run `anchored ann"):
        run([{"text": "Plain."}], objective="annotated")


def test_bad_rows_stop_the_run_unless_they_are_to_be_skipped_and_counted(run, tmp_path):
    rows = [CHAT, {"id": "x", "prompt": "Hi.", "response": ""}]
    with pytest.raises(DataError, match=r"out.jsonl: line 2: response: '' is empty"):
        run(rows, objective="standard")
    assert not (tmp_path / "out").exists()
    dataset, manifest = run(rows, objective="standard", skip_bad_rows=True)
    assert len(dataset) == 1
    assert manifest["dropped"] == {"bad row": {"examples": 1, "tokens": 0}}


def test_a_folder_that_holds_something_is_left_alone(run, tmp_path):
    run([CHAT])
    before = (tmp_path / "out" / MANIFEST).read_text()
    with pytest.raises(DataError, match="out: already exists; remove it or choose another output"):
        run([STORY])
    assert (tmp_path / "out" / MANIFEST).read_text() == before


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SplitWriter, "close", full)
    with pytest.raises(OSError, match="No space left"):
        run([CHAT])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


def test_a_tokenizer_that_loses_line_breaks_is_refused_for_annotations_alone(run, tmp_path):
    folder = str(tmp_path / "words")
    line_breaks_lost().save_pretrained(folder)
    message = rf"tokenizer '{folder}': annotations do not survive .* 'topic : topic topic : topic'"
    for objective in ("annotated", "anchored"):
        with pytest.raises(ConfigError, match=message):
            run([CHAT], tokenizer=folder, objective=objective)
        assert not (tmp_path / "out").exists()
    run([CHAT], tokenizer=folder, objective="standard")


@pytest.mark.parametrize("field", ["out", "tokenizer"])
def test_out_and_tokenizer_must_be_given_to_prepare(run, field):
    with pytest.raises(ConfigError, match=f"{field}: missing"):
        run([CHAT], **{field: None})


def test_a_tokenizer_can_be_learnt_from_the_sources_themselves(run, tmp_path):
    _, manifest = run(stories(50), tokenizer=NewTokenizer(vocab_size=300))
    learnt = AnchoredTokenizer.load(tmp_path / "out" / "tokenizer")
    assert manifest["tokenizer"]["vocab_size"] == len(learnt)
    assert len(learnt.encode("rain rain")) == 2


def test_another_tokenizer_is_refused_at_load(run, tmp_path):
    run([CHAT])
    other = AnchoredTokenizer.train(["quite other words"], 300)
    with pytest.raises(TokenizerMismatch, match="made with tokenizer"):
        load_prepared(tmp_path / "out", other)


def test_a_changed_file_is_refused_at_load(run, tmp_path):
    run([CHAT])
    data = tmp_path / "out" / "data-00000-of-00001.arrow"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(DataError, match=r"data-00000-of-00001.arrow: digest .* prepare the data"):
        load_prepared(tmp_path / "out")


def test_an_added_file_is_refused_at_load(run, tmp_path):
    run([CHAT])
    (tmp_path / "out" / "data-00001-of-00002.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match="data-00001-of-00002"):
        load_prepared(tmp_path / "out")


def test_an_annotated_folder_is_told_from_a_prepared_one(tmp_path):
    write_json(tmp_path / MANIFEST, {"annotator": "offline-1"})
    with pytest.raises(DataError) as caught:
        load_prepared(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: annotated text, not a prepared dataset; run `anchored prepare` with it as a "
        "source"
    )


def test_a_folder_without_a_manifest_is_refused_at_load(tmp_path):
    with pytest.raises(DataError, match=r"not a prepared dataset \(manifest\.json is missing"):
        load_prepared(tmp_path)


def test_a_split_that_was_not_asked_for_is_refused_at_load(run):
    with pytest.raises(DataError, match="no validation split; prepare the data again with"):
        run([CHAT], split="validation")


def test_the_printed_account_names_tokens_kept_masked_and_dropped(run):
    long = {**CHAT, "id": "long", "response": "rain " * 500}
    _, manifest = run([CHAT, long], objective="anchored", max_length=200)
    console = Console(file=io.StringIO(), width=160)
    console.print(account_table(manifest))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    kept, masked = (f"{manifest['tokens'][name]:,}" for name in ("kept", "masked"))
    (train,) = [line for line in text.splitlines() if "train" in line]
    assert kept in train and masked in train
    assert "left out: conversation longer than max_length" in text


@pytest.mark.parametrize(
    ("objective", "words"),
    [("annotated", "missing, learnt as empty"), ("anchored", "missing, empty")],
)
def test_the_printed_account_says_how_many_annotations_are_missing(run, objective, words):
    bare = {"prompt": "Hi.", "response": "Hello."}
    _, manifest = run([CHAT, bare, {**bare, "annotation": []}], objective=objective)
    table = account_table(manifest)
    names, counts = (list(column.cells) for column in table.columns[:2])
    assert counts[names.index(f"annotations {words}")] == "2"
    _, manifest = run([CHAT], name="whole", objective=objective)
    assert not any("missing" in str(cell) for cell in account_table(manifest).columns[0].cells)


def test_prompt_loss_is_what_tells_pretraining_from_sft():
    pretraining = {name for name, o in OBJECTIVES.items() if Kind.PROMPT in o.loss}
    assert pretraining == {"plain", "annotated"}


def test_real_books_become_rows_of_exactly_bounded_length(run, shared_data: Path):
    path = shared_data / "prose" / "books.jsonl.xz"
    dataset, manifest = run(
        [],
        sources=[SourceConfig(path=str(path), limit=1)],
        objective="plain",
        packing=True,
        max_length=256,
    )
    split = manifest["splits"]["train"]
    assert split["longest_row"] <= 256
    assert split["tokens"] / (256 * len(dataset)) > 0.95
    # A chunk cut one token before its end leaves a sequence of one token, which nothing predicts.
    assert set(manifest["dropped"]) <= {"no token with loss"}
    assert manifest["tokens"]["dropped"] < 10


@pytest.mark.parametrize("size", [4, 8, 40, 64, 80])
def test_a_real_full_disk_is_one_line_that_names_the_output(
    tokenizer, tmp_path, tiny_disk, capsys, size
):
    """Wherever it fills up: at the first folder, in the tokenizer, in the rows."""
    out, rows, config = tiny_disk(size) / "out", tmp_path / "a.jsonl", tmp_path / "prepare.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in stories(400)), encoding="utf-8")
    fields = {"out": str(out), "sources": [{"path": str(rows)}], "tokenizer": str(tokenizer)}
    config.write_text(json.dumps(fields), encoding="utf-8")
    assert cli.main(["prepare", str(config)]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"anchored: error: {out}[\w/.-]*: No space left on device\n", error)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "rows.jsonl: line 2: not JSON"),
        ("rows.jsonl", b'{"text": "  "}\n', "rows.jsonl: line 1: text: ' ' is empty"),
        ("rows.jsonl", b'{"text": "\xff"}\n', "rows.jsonl: line 1: not UTF-8 at byte"),
        ("rows.jsonl", b'{"txt": "a"}\n', "rows.jsonl: line 1: has the fields txt"),
        ("rows.parquet", b"PAR1 and no more", "rows.parquet: not readable as parquet"),
        (
            "rows.txt.gz",
            b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x07\xff",
            "rows.txt.gz: damaged",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2_and_leaves_nothing(
    tokenizer, tmp_path, capsys, name, content, message
):
    (tmp_path / name).write_bytes(content)
    config = tmp_path / "prepare.yaml"
    fields = {
        "out": str(tmp_path / "out"),
        "sources": [{"path": str(tmp_path / name)}],
        "tokenizer": str(tokenizer),
        "objective": "plain",
    }
    config.write_text(json.dumps(fields), encoding="utf-8")
    assert cli.main(["prepare", str(config)]) == 2
    (error,) = capsys.readouterr().err.split("\n")[:-1]
    assert error.startswith("anchored: error: ")
    assert message in error
    assert {path.name for path in tmp_path.iterdir()} == {name, "prepare.yaml"}
