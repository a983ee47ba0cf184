"""Row formats: what each becomes, what is refused, and what writers write back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchored.annotation import Annotation
from anchored.data.rows import (
    FORMATS,
    Asked,
    Conversation,
    Document,
    annotated_row,
    answers_rows,
    asked_row,
    canonical_row,
    prompt_turns,
)
from anchored.errors import DataError
from anchored.segments import Chunk, Message

DOCS = Path(__file__).parents[1] / "docs" / "cli.md"


def parse(row: dict[str, Any]) -> Document | Conversation:
    return canonical_row(row, "rows.jsonl: line 7")


TAGS = [{"key": "topic", "value": "sea"}]
PLAN = Annotation.of({"topic": "sea"})


@pytest.mark.parametrize(
    ("row", "item"),
    [
        ({"id": "a", "text": "One."}, Document("a", (Chunk("One."),))),
        ({"text": "One."}, Document("rows.jsonl: line 7", (Chunk("One."),))),
        (
            {"id": 3, "chunks": [{"text": "One.", "annotation": TAGS}, {"text": "Two."}]},
            Document("3", (Chunk("One.", PLAN), Chunk("Two."))),
        ),
        (
            {"id": "a", "text": "One.", "prompt": "Tell.", "annotation": TAGS},
            Document("a", (Chunk("One."),), "Tell.", PLAN),
        ),
        (
            {"id": "a", "prompt": "Hi.", "response": "Ho.", "annotation": TAGS},
            Conversation("a", (Message("user", "Hi."), Message("assistant", "Ho.", PLAN))),
        ),
        (
            {"id": "a", "prompt": "Hi.", "annotation": TAGS},
            Conversation("a", (Message("user", "Hi."), Message("assistant", "", PLAN))),
        ),
        (
            {"id": "a", "instruction": "Add.", "input": "1 2", "output": "3"},
            Conversation("a", (Message("user", "Add.\n\n1 2"), Message("assistant", "3"))),
        ),
        (
            {"id": "a", "instruction": "Add.", "input": "", "output": "3", "text": "Below is..."},
            Conversation("a", (Message("user", "Add."), Message("assistant", "3"))),
        ),
        (
            {
                "id": "a",
                "messages": [
                    {"role": "system", "content": ""},
                    {"role": "user", "content": "Hi."},
                    {"role": "assistant", "content": "Ho.", "annotation": TAGS},
                    {"role": "user", "content": "Bye."},
                ],
            },
            Conversation(
                "a",
                (
                    Message("system", ""),
                    Message("user", "Hi."),
                    Message("assistant", "Ho.", PLAN),
                ),
            ),
        ),
        (
            {
                "id": "a",
                "annotation": TAGS,
                "messages": [
                    {"role": "user", "content": "Hi."},
                    {"role": "assistant", "content": "Ho."},
                ],
            },
            Conversation("a", (Message("user", "Hi."), Message("assistant", "Ho.", PLAN))),
        ),
        (
            {"id": "a", "annotation": TAGS, "messages": [{"role": "user", "content": "Hi."}]},
            Conversation("a", (Message("user", "Hi."), Message("assistant", "", PLAN))),
        ),
    ],
)
def test_every_row_format_becomes_exactly_this(row, item):
    assert parse(row) == item


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " \n"}, "text: ' \\n' is empty; remove the row, or set skip_bad_rows: true"),
        ({"text": 5}, "text: '5' is int, not text; write a string"),
        ({"chunks": []}, "chunks: [] is empty; remove the row, or set skip_bad_rows: true"),
        ({"chunks": "x"}, "chunks: 'x' is not a list of objects"),
        ({"chunks": [{"annotation": []}]}, "chunks: {'annotation': []} has no text"),
        (
            {"title": "x"},
            f"has the fields title; a row needs {', '.join(one.name for one in FORMATS[:-1])} or "
            f"{FORMATS[-1].name}",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages: role 'bot' is not one of "
         "system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "messages: {'role': 'user'} has no content"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages: no assistant turn to learn; "
         "remove the row, or set skip_bad_rows: true"),
        ({"prompt": "x", "response": ""}, "response: '' is empty; remove the row, or set "
         "skip_bad_rows: true"),
        ({"text": "x", "annotation": [{"key": "a"}]}, "annotation: {'key': 'a'} is not "
         "{'key': text, 'value': text}"),
        ({"text": "x", "annotation": [{"key": "A b", "value": "c"}]}, "tag key 'A b': use 1-32 of "
         "a-z, 0-9 and _, starting with a letter"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_place_field_and_value(row, message):
    with pytest.raises(DataError) as error:
        parse(row)
    assert str(error.value) == f"rows.jsonl: line 7: {message}"


def test_the_annotation_of_a_whole_document_takes_the_most_frequent_value_of_each_key():
    tags = [("place", "sea"), ("time", "dawn")], [("place", "wood")], [("place", "wood")]
    item = Document("a", tuple(Chunk("x", Annotation.of(pairs)) for pairs in tags))
    assert item.whole_annotation == Annotation.of({"place": "wood", "time": "dawn"})
    assert Document("a", item.chunks, annotation=PLAN).whole_annotation == PLAN


def test_the_text_of_a_document_joins_chunks_as_its_sequence_does():
    assert Document("a", (Chunk("One."), Chunk("Two.\n"), Chunk("Three."))).text == (
        "One.\n\nTwo.\nThree."
    )


def test_a_field_that_is_null_is_absent_and_the_first_format_decides() -> None:
    row = {"id": None, "messages": None, "chunks": None, "text": "One.", "annotation": None}
    item = parse(row)
    assert item == Document("rows.jsonl: line 7", (Chunk("One."),))
    assert item.raw == row
    alpaca = {"instruction": "Add.", "output": "3", "text": "Below is...", "chunks": []}
    assert isinstance(parse(alpaca), Conversation)


def test_a_chunk_without_an_annotation_is_told_from_one_with_an_empty_one() -> None:
    item = parse({"chunks": [{"text": "a", "annotation": []}, {"text": "b", "annotation": None}]})
    assert isinstance(item, Document) and item.divided
    assert [chunk.annotation for chunk in item.chunks] == [Annotation(), None]
    assert Document("a", (Chunk("One."),)).whole_annotation is None
    assert Document("a", (Chunk("One.", Annotation()),)).whole_annotation == Annotation()


def test_sharegpt_turns_become_messages_and_are_written_as_such() -> None:
    row = {
        "id": "a",
        "conversations": [
            {"from": "system", "value": ""},
            {"from": "human", "value": "Hi.", "at": 1},
            {"from": "gpt", "value": "One.", "weight": 0},
            {"from": "human", "value": "Go on."},
            {"from": "gpt", "value": "Two.", "annotation": TAGS},
        ],
        "source": "hub",
    }
    turns = Message("system", ""), Message("user", "Hi."), Message("assistant", "One.")
    more = Message("user", "Go on."), Message("assistant", "Two.", PLAN)
    assert parse(row) == Conversation("a", (*turns, *more))
    written = annotated_row(parse(row), FOUND)
    assert written == {
        "id": "a",
        "source": "hub",
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "Hi.", "at": 1},
            {"role": "assistant", "content": "One.", "weight": 0, "annotation": stored("One.")},
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": "Two.", "annotation": TAGS},
        ],
    }
    again = parse(written)
    assert isinstance(again, Conversation)
    assert again.messages[2].annotation == FOUND["One."]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ("Hi.", "conversations: 'Hi.' is not a list of objects"),
        ([{"from": "bot", "value": "x"}], "conversations: from 'bot' is not one of system, human, "
         "gpt"),
        ([{"from": "gpt"}], "conversations: {'from': 'gpt'} has no value"),
        ([{"from": "human", "value": "x"}], "messages: no assistant turn to learn; remove the row, "
         "or set skip_bad_rows: true"),
    ],
)  # fmt: skip
def test_a_bad_sharegpt_row_is_named_with_its_place_field_and_value(turns, message) -> None:
    with pytest.raises(DataError) as error:
        parse({"conversations": turns})
    assert str(error.value) == f"rows.jsonl: line 7: {message}"


FOUND = {
    text: Annotation.of({"topic": text}) for text in ("One.", "Two.", "Three.", "One.\n\nTwo.")
}
GIVEN = [{"key": "topic", "value": "given"}]


def stored(text: str) -> list[dict[str, str]]:
    return FOUND[text].rows()


@pytest.mark.parametrize(
    ("row", "written"),
    [
        (
            {"id": 3, "text": "One.", "url": "u"},
            {"id": 3, "url": "u", "chunks": [{"text": "One.", "annotation": stored("One.")}]},
        ),
        (
            {
                "chunks": [{"text": "One.", "annotation": GIVEN}, {"text": "Two.", "page": 1}],
                "prompt": "Count.",
            },
            {
                "id": "line 7",
                "chunks": [
                    {"text": "One.", "annotation": GIVEN},
                    {"text": "Two.", "annotation": stored("Two.")},
                ],
                "prompt": "Count.",
                "annotation": stored("One.\n\nTwo."),
            },
        ),
        (
            {"id": "a", "instruction": "Add.", "output": "Two.", "source": {"page": 1}},
            {
                "id": "a",
                "instruction": "Add.",
                "output": "Two.",
                "source": {"page": 1},
                "annotation": stored("Two."),
            },
        ),
        (
            {
                "id": "a",
                "messages": [
                    {"role": "user", "content": "Hi.", "at": 1},
                    {"role": "assistant", "content": "One.", "at": 2, "annotation": None},
                    {"role": "assistant", "content": "Two.", "annotation": GIVEN},
                    {"role": "user", "content": "Bye."},
                ],
            },
            {
                "id": "a",
                "messages": [
                    {"role": "user", "content": "Hi.", "at": 1},
                    {"role": "assistant", "content": "One.", "at": 2, "annotation": stored("One.")},
                    {"role": "assistant", "content": "Two.", "annotation": GIVEN},
                    {"role": "user", "content": "Bye."},
                ],
            },
        ),
        (
            {"id": "a", "prompt": "Hi.", "annotation": GIVEN},
            {"id": "a", "prompt": "Hi.", "annotation": GIVEN},
        ),
    ],
)
def test_an_annotated_row_keeps_its_fields_its_turns_and_its_own_annotations(row, written):
    assert list(annotated_row(canonical_row(row, "line 7"), FOUND).items()) == list(written.items())


def test_a_prompt_to_be_answered_has_its_pair_its_annotation_and_all_other_fields() -> None:
    ask, pair = Message("user", "Hi."), ("Ho.", "Hm.")
    row = {"id": "a", "prompt": "Hi.", "chosen": "Ho.", "rejected": "Hm.", "weight": 2}
    assert asked_row(row, "x") == Asked("x", (ask,), None, pair, {"weight": 2})
    turns = [{"role": "user", "content": "Hi."}]
    answers = {
        name: [*turns, {"role": "assistant", "content": text}]
        for name, text in zip(("chosen", "rejected"), pair, strict=True)
    }
    assert asked_row({**answers, "annotation": TAGS}, "x") == Asked("x", (ask,), PLAN, pair, {})
    assert asked_row({"messages": turns, "prompt": "No."}, "x").turns == (ask,)
    with pytest.raises(DataError, match=r"^x: no prompt; give `prompt`, or `messages` that end "):
        asked_row({"text": "One."}, "x")


def test_a_benchmark_names_the_field_of_its_prompts() -> None:
    assert prompt_turns({"query": "Hi.", "prompt": "Ho."}, "x", "query")[0].content == "Hi."
    assert prompt_turns({"prompt": "Ho."}, "x", "query") == (Message("user", "Ho."),)


def test_all_rows_of_a_file_of_generations_are_in_the_format_of_the_first() -> None:
    several, one = {"prompt": "p", "generations": ["a", "b"]}, {"prompt": "p", "response": "c"}
    assert [found.texts for found in answers_rows([("1", several), ("2", several)])] == [
        ("a", "b"),
        ("a", "b"),
    ]
    with pytest.raises(DataError, match=r"^2: generations: missing \(fields: prompt, response\)"):
        answers_rows([("1", several), ("2", one)])
    with pytest.raises(DataError, match=r"^2: response: missing"):
        answers_rows([("1", one), ("2", several)])


def test_the_documentation_lists_the_formats_in_their_order() -> None:
    lines = [f"| `{one.example}` | {one.says} |" for one in FORMATS]
    assert "\n".join(["| row | is |", "|---|---|", *lines, ""]) in DOCS.read_text(encoding="utf-8")
