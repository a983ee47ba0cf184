from __future__ import annotations

import pytest

from anchored.annotation import Annotation, Schema
from anchored.judge.values import canonical, canonical_annotation
from anchored.judge.verdicts import (
    Unreadable,
    attributes_schema,
    is_refusal,
    partition_schema,
    read_attributes,
    read_partition,
    read_score,
)

TALE = Schema.model_validate(
    {
        "name": "tale",
        "keys": [
            {"name": "main_character", "description": "who"},
            {"name": "genre", "description": "kind"},
            {"name": "mood", "description": "mood", "values": ["glad", "sad"]},
        ],
    }
)
ELARA = Annotation.of({"main_character": "Elara", "genre": "fairy tale", "mood": "glad"})


@pytest.mark.parametrize(
    "text",
    [
        "main_character: Elara\ngenre: fairy tale\nmood: glad",
        "Here you are:\n\n- **Main character**: Elara\n- **Genre**: fairy tale\n- **Mood**: Glad",
        '```json\n{"main_character": "Elara", "genre": "fairy tale", "mood": "glad"}\n```',
        "1. Main-Character: Elara\n2. Genre: fairy tale\n3. Mood: glad\n\nAnything else?",
        "`mood`: `glad`\n`genre`: `fairy tale`\n`main_character`: `Elara`",
        "MAIN_CHARACTER = Elara\nGENRE = fairy tale\nMOOD = GLAD",
    ],
    ids=["plain", "markdown", "json", "numbered", "code", "capitals"],
)
def test_attributes_are_read_in_any_form(text: str) -> None:
    assert read_attributes(text, TALE) == ELARA


def test_none_is_an_answer_and_silence_is_not() -> None:
    assert read_attributes("main_character: none\ngenre: N/A\nmood: sad", TALE) == Annotation.of(
        {"mood": "sad"}
    )
    with pytest.raises(Unreadable, match="genre: missing"):
        read_attributes("main_character: Elara\nmood: sad", TALE)
    with pytest.raises(Unreadable, match="mood: 'great' is not in its vocabulary"):
        read_attributes("main_character: Elara\ngenre: epic\nmood: great", TALE)


@pytest.mark.parametrize(
    "text",
    [
        "score: 8", "**Score:** 8/10", "Score: **8** / 10", "8", "8/10.", '{"score": 8}', "8.0",
        '```json\n{"score": "8"}\n```', "It is good.\nFinal score: 8", "Rating: 8 out of 10",
        "The score is 8.", "# Score\n8", "1. Score: 8", "Score: 8\nSo the score is 8.",
    ],
)  # fmt: skip
def test_a_score_is_read_in_any_form(text: str) -> None:
    assert read_score(text) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score: 8.5", "8.5 is no whole number"), ("score: 11", "11 is no whole"),
        ("score: 85/100", "out of 100"), ("score: 4/5", "out of 5"), ("-3", "-3 is no whole"),
        ("score: 7\nscore: 8", "2 different"), ("good", "no score"), ("", "no score"),
        ('{"score": "high"}', "'high' is no number"), ("Chapter 8 is good.", "no score"),
    ],
)  # fmt: skip
def test_what_is_no_score_is_never_made_one(text: str, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        read_score(text)


@pytest.mark.parametrize(
    "text",
    [
        "1: 1\n2: 2\n3: 1", "1. 1\n2. 2\n3. 1", "**1**: 5\n**2**: 6\n**3**: 5", "[4, 5, 4]",
        "Answer 1: Group 1\nAnswer 2: Group 2\nAnswer 3: Group 1", '{"classes": [1, 2, 1]}',
        '{"1": 1, "2": 2, "3": 1}', "Sure!\n- 1: 1\n- 2: 2\n- 3: 1\nDone.", "1 -> 1\n2 -> 2\n3->1",
        "| 1 | 1 |\n| 2 | 2 |\n| 3 | 1 |", "```\n3: 9\n1: 9\n2: 7\n```",
    ],
)  # fmt: skip
def test_groups_are_read_in_any_form_and_numbered_by_their_first_members(text: str) -> None:
    assert read_partition(text, 3) == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 1\n2: 1", "text 3 has no group"), ("1: 1\n2: 1\n3: 1\n4: 2", "4 texts, not 3"),
        ("1: 1\n1: 2\n2: 1\n3: 1", "text 1 is in two groups"), ("all alike", "text 1 has no"),
        ('{"a": 1}', "'a': 1 are no numbers"), ("[1, [2], 3]", "are no numbers"),
    ],
)  # fmt: skip
def test_groups_that_lack_or_double_a_text_are_unreadable(text: str, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        read_partition(text, 3)


def test_refusals_are_told_by_how_they_begin() -> None:
    for text in ("I'm sorry, but I can't help with that.", "I cannot assist.", "As an AI, I"):
        assert is_refusal(text)
    assert not is_refusal("The girl said: I'm sorry.")


def test_one_thing_spelt_in_many_ways_is_one_value() -> None:
    assert {
        canonical("main_character", v) for v in ("Elara", "elara ", "**Elara**.", "“ELARA”")
    } == {"elara"}
    assert {canonical("genre", v) for v in ("Fairytale", "a fairy-tale", "fairy_tale")} == {
        "fairy tale"
    }
    assert canonical("location", "The  Old\tForest") == "old forest"
    assert canonical("main_character", "Zoe\u0308") == canonical("main_character", "zo\u00eb")


def test_only_listed_words_are_merged_and_only_under_their_key() -> None:
    assert canonical("genre", "whodunit") == "mystery"
    assert canonical("location", "whodunit") == "whodunit"
    assert canonical("genre", "quiet comedy") == "quiet comedy"
    assert [canonical("language", v) for v in ("C#", "C++", "the", "a")] == [
        "c#",
        "c++",
        "the",
        "a",
    ]


def test_a_value_of_punctuation_alone_is_none() -> None:
    assert canonical_annotation(Annotation.of({"genre": "...", "mood": "Glad!"})) == Annotation.of(
        {"mood": "glad"}
    )


def test_constrained_answers_are_readable() -> None:
    schema = attributes_schema(TALE)
    assert schema["required"] == ["main_character", "genre", "mood"]
    assert schema["properties"]["mood"] == {"type": "string", "enum": ["glad", "sad", "none"]}
    assert list(partition_schema(2)["properties"]) == ["1", "2"]
