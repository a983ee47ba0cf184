"""The grammar of annotations under any text, and schemas with their faults."""

from __future__ import annotations

import json
import time
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from anchored.annotation import (
    MAX_VALUE_CHARS,
    Annotation,
    Key,
    Schema,
    Tag,
    normalise_value,
    parse_annotation,
    read_annotation,
)
from anchored.errors import ConfigError, DataError

BUILT_IN = ("general", "stories", "code", "math")
EXAMPLE = Annotation.of({"topic": "love", "entity": ["Mrs. Sinclair", "Tom"], "place": "Baghdad"})

# All of unicode, lone surrogates included, with what breaks grammars drawn often.
nasty = st.sampled_from(
    "\n\r\t\v\f :=*`'\"{}[](),;|-•#<>\\\0\x1b\x1c\x85\xa0\xad\u2028\u2029\u200b\u200d\u202e\u2066"
    "\ufeff\u0301\ud83d\ude00İﬁ\u1fef\u212b\U000e0001"
)
words = st.sampled_from(
    ("topic: ", "entity", '{"key": "', "```json\n", "- **", "none", "e\u0301", "nine char" * 8)
)
# Not st.text: it leaves lone surrogates out even when its alphabet has them.
texts = st.lists(st.characters(exclude_categories=()) | nasty | words, max_size=30).map("".join)
keys = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
values = texts.filter(lambda value: normalise_value(value) != "")
annotations = st.lists(st.builds(Tag, keys, values), max_size=8).map(
    lambda tags: Annotation(tuple(tags))
)
fuzz = settings(max_examples=200, deadline=None)


@fuzz
@given(texts)
def test_a_normalised_value_is_one_short_nfc_line_and_stays_as_it_is(text):
    value = normalise_value(text)
    assert normalise_value(value) == value
    assert len(value.splitlines()) <= 1
    assert len(value) <= MAX_VALUE_CHARS
    assert unicodedata.is_normalized("NFC", value)
    value.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("  the \t old\n mill ", "the old mill"),
        ("a\u2028b\x85c\x1cd", "a b c d"),
        ("e\u0301\x00\ud83d", "é"),
        ("x" * 79 + "  yz", "x" * 79),
        ("\u00a0\u3000", ""),
        ("a\u200db", "a\u200db"),
    ],
)
def test_normal_form_of_known_values(text, value):
    assert normalise_value(text) == value


@fuzz
@given(annotations)
def test_parsing_inverts_writing_exactly(annotation):
    assert parse_annotation(str(annotation)) == annotation
    assert Annotation.from_rows(annotation.rows()) == annotation


@fuzz
@given(texts)
def test_parsing_any_text_gives_an_annotation_that_writes_it_or_a_data_error(text):
    try:
        annotation = parse_annotation(text)
    except DataError:
        return
    assert str(annotation) == text


@fuzz
@given(annotations)
def test_pieces_join_to_the_written_form_and_alternate(annotation):
    kinds, pieces = zip(*annotation.pieces(), strict=True) if len(annotation) else ((), ())
    assert "".join(pieces) == str(annotation)
    assert kinds == ("key", "value") * len(annotation)


@fuzz
@given(annotations, st.integers(0, 2**512 - 1))
def test_shuffling_keeps_the_tags_and_the_order_within_a_key(annotation, number):
    shuffled = annotation.shuffled(number)
    assert Counter(shuffled) == Counter(annotation)
    assert sorted(shuffled.keys) == sorted(annotation.keys)
    for key in annotation.keys:
        assert shuffled.values(key) == annotation.values(key)


@pytest.mark.parametrize("first", [0, 10**40])
def test_each_of_6_numbers_in_a_row_picks_another_of_the_6_orders_of_3_keys(first):
    assert len({EXAMPLE.shuffled(first + i).keys for i in range(6)}) == 6


@fuzz
@given(texts, st.sampled_from((None, *BUILT_IN)))
def test_the_tolerant_reader_never_raises_and_gives_a_legal_annotation(text, name):
    schema = Schema.load(name) if name else None
    annotation = read_annotation(text, schema)
    assert parse_annotation(str(annotation)) == annotation
    if schema:
        schema.check(annotation)


@fuzz
@given(annotations)
def test_the_tolerant_reader_takes_json_of_any_tags_without_losing_one(annotation):
    annotation = annotation.only(key for key in annotation.keys if key not in ("key", "value"))
    told = Annotation(
        tuple(
            dict.fromkeys(
                tag
                for tag in annotation
                if tag.value.lower()
                not in ("none", "n/a", "na", "null", "unknown", "unspecified", "-")
            )
        )
    )
    assert read_annotation(json.dumps(annotation.rows())) == told


@pytest.mark.parametrize(
    "text",
    [
        str(EXAMPLE),
        "The tags are:\n\n- topic: love\n- entity: Mrs. Sinclair\n- entity: Tom\n- place: Baghdad",
        "* **Topic:** love\n* **Entity:** Mrs. Sinclair\n* **entity**: Tom\n* **Place**: Baghdad",
        "1. topic = love\n2. entity = Mrs. Sinclair\n3. entity = Tom\n4. place = Baghdad",
        "```\ntopic: love\nentity: Mrs. Sinclair\nentity: Tom\nplace: Baghdad\n```",
        '```json\n{"topic": "love", "entity": ["Mrs. Sinclair", "Tom"], "place": "Baghdad"}\n```',
        'Sure! {"topic": "love", "entity": ["Mrs. Sinclair", "Tom"], "place": "Baghdad"} Done {x}.',
        '"topic": "love",\n"entity": "Mrs. Sinclair",\n"entity": "Tom",\n"place": "Baghdad"',
        "> `topic`: love\n> `entity`: Mrs. Sinclair\n> `entity`: Tom\n> `place`: Baghdad",
        "topic: love\nentity: Mrs. Sinclair, Tom\nentity: Tom\nplace: Baghdad\nplace: Rome",
        "topic: love\nmood: dark\nentity: [Mrs. Sinclair; Tom]\nplace: Baghdad\ntopic: n/a",
        json.dumps(EXAMPLE.rows()),
        json.dumps([{"topic": "love", "entity": "Mrs. Sinclair | Tom"}, {"place": "Baghdad"}]),
    ],
)
def test_the_tolerant_reader_recovers_the_tags_from_what_models_write(text):
    schema = Schema(
        name="test",
        keys=(
            Key(name="topic", description="-"),
            Key(name="entity", description="-", many=True),
            Key(name="place", description="-", values=("Baghdad",)),
        ),
    )
    assert read_annotation(text, schema) == EXAMPLE


@pytest.mark.parametrize(
    "text", ["[{" * 10**6, "{" * 10**6, "a:" + ",;" * 10**6 + "x", " " * 10**6]
)
def test_reading_a_megabyte_of_one_character_takes_less_than_a_second(text):
    start = time.process_time()
    assert len(read_annotation(text)) <= 1
    assert time.process_time() - start < 1


@pytest.mark.parametrize("key", ["", "Topic", "1a", "a b", "a" * 33, "é", "a:", "a\n"])
def test_an_illegal_key_is_refused_by_name(key):
    with pytest.raises(DataError) as caught:
        Tag(key, "x")
    rule = "use 1-32 of a-z, 0-9 and _, starting with a letter"
    assert str(caught.value) == f"tag key {key!r}: {rule}"


def test_an_empty_value_is_refused_with_the_way_out():
    with pytest.raises(DataError) as caught:
        Tag("topic", "\x00 ")
    assert str(caught.value) == "tag 'topic': value '\\x00 ' is empty; leave the tag out"


@pytest.mark.parametrize("row", [{}, {"key": "a"}, {"key": 1, "value": "x"}, "a", None, ["a", "b"]])
def test_a_row_of_another_form_is_a_data_error(row):
    with pytest.raises(DataError, match=r'write \{"key": "\.\.\.", "value": "\.\.\."\}'):
        Annotation.from_rows([row])


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: b\n", 2), ("a:b", 1), ("a: b\nA: b", 2), ("a:  b", 1), ("a: ", 1), ("a: " + "b" * 81, 1)],
)
def test_a_line_out_of_normal_form_is_named_by_its_number(text, line):
    with pytest.raises(DataError, match=rf"^annotation line {line}: "):
        parse_annotation(text)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_schemas_load_and_anchor_at_least_half_of_their_keys(name):
    schema = Schema.load(name)
    assert schema.name == name
    assert 2 * len(schema.anchored_names) >= len(schema.names)
    assert all(len(key.description) >= 10 for key in schema.keys)


def test_the_general_and_stories_schemas_have_the_papers_keys():
    general = "topic domain entity action location time sentiment style language"
    assert Schema.load("general").names == tuple(general.split())
    assert len(Schema.load("stories").names) == 8
    unanchored = set(Schema.load("general").names) - set(Schema.load("general").anchored_names)
    assert unanchored == {"style", "language"}


def test_conform_keeps_what_check_accepts_and_folds_to_the_stored_form():
    schema = Schema(
        name="s",
        keys=(
            Key(name="mood", description="-", values=("light hearted", "dark")),
            Key(name="who", description="-", many=True, anchored=False),
        ),
    )
    loose = Annotation.of([("who", "A"), ("mood", "Light-Hearted"), ("who", "B"), ("mood", "dark")])
    conformed = schema.conform(loose)
    assert conformed == Annotation.of([("who", "A"), ("mood", "light hearted"), ("who", "B")])
    schema.check(conformed)
    assert schema.canonical(conformed).keys == ("mood", "who")
    assert schema.anchored(conformed) == Annotation.of({"mood": "light hearted"})
    assert schema.conform(Annotation.of({"mood": "sad", "x": "y"})) == Annotation()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("x", "y")], "tag key 'x' is not in schema 's' (mood)"),
        ([("mood", "sad")], "tag 'mood': schema 's' has no value 'sad'"),
        (
            [("mood", "dark"), ("mood", "dark")],
            "tag 'mood': schema 's' takes at most 1; found ('dark', 'dark')",
        ),
    ],
)
def test_check_names_the_key_the_value_and_the_schema(pairs, message):
    schema = Schema(name="s", keys=(Key(name="mood", description="-", values=("dark",)),))
    with pytest.raises(DataError) as caught:
        schema.check(Annotation.of(pairs))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s", "keys: missing; add `keys: ...`"),
        (
            "name: s\nkeys: []",
            "keys: []: a schema needs at least one key, and no key twice",
        ),
        (
            "name: s\nkeys: [{name: Bad, description: d}]",
            "keys.0.name: 'Bad': use 1-32 of a-z, 0-9 and _, starting with a letter",
        ),
        (
            "name: s\nkeys: [{name: a, description: d, vals: [x]}]",
            "keys.0.vals: unknown field; did you mean 'values'?",
        ),
        (
            "name: s\nkeys: [{name: a, description: d, values: []}]",
            "keys.0.values: []: a closed vocabulary needs at least one value",
        ),
        (
            "name: s\nkeys: [{name: a, description: d, values: [x-y, X y]}]",
            "keys.0.values: ['x-y', 'X y']: two values differ only in case, spaces, - or _",
        ),
        ("- a", "holds a list; write `field: value` lines"),
        ("name: [", "not readable as YAML: "),
    ],
)
def test_a_faulty_schema_file_is_named_with_its_field(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Schema.load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_an_unknown_schema_lists_those_that_are_built_in():
    with pytest.raises(ConfigError) as caught:
        Schema.load("storys")
    known = "code, general, math, stories"
    assert str(caught.value) == f"schema 'storys': not a file and not built in ({known})"


def test_a_number_bounds_how_often_a_key_may_stand():
    schema = Schema(name="s", keys=(Key(name="entity", description="-", many=2),))
    three = Annotation.of({"entity": ["Mara", "Tom", "Ida"]})
    assert schema.conform(three) == Annotation.of({"entity": ["Mara", "Tom"]})
    schema.check(schema.conform(three))
    with pytest.raises(DataError, match="takes at most 2; found"):
        schema.check(three)


def test_many_true_is_no_bound_and_false_is_one():
    limits = [Key(name="k", description="-", many=many).limit for many in (False, True, 1, 3)]
    assert limits == [1, None, 1, 3]
    with pytest.raises(ValidationError, match="false means one"):
        Key(name="k", description="-", many=0)
