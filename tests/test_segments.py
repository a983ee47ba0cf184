"""What stands where in a sequence and what of it carries loss: exact ids for each objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchored.annotation import Annotation, Tag
from anchored.segments import (
    NO_LOSS,
    OBJECTIVES,
    Chunk,
    Kind,
    Message,
    Objective,
    Segment,
    annotation_pieces,
    assemble,
    conversation_segments,
    document_segments,
    format_variant,
    order_keys,
    split_chunks,
    turns_to_learn,
)
from anchored.tokenizer import AnchoredTokenizer

TAGS = Annotation((Tag("hero", "Mara"), Tag("place", "mill")))
DOCUMENT = (Chunk("Mara slept.\n\n", TAGS), Chunk("The end."))
ASKED = (
    Message("system", "Be brief."),
    Message("user", "Tell me."),
    Message("assistant", "Mara slept.", TAGS),
)
KEYS, VALUES = ("hero:", "\nplace:"), (" Mara", " mill")


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    texts = ["Be brief. Tell me. Mara slept.\n\nThe end. hero: Mara\nplace: mill"] * 3
    return AnchoredTokenizer.train(texts, 320)


def expected(tokenizer: AnchoredTokenizer, *parts: tuple[str, bool]) -> tuple[list[int], list[int]]:
    """Ids and labels of `(text or control name in angle brackets, supervised)` parts."""
    ids, labels = [], []
    for text, supervised in parts:
        name = text[1:-1]
        control = text.startswith("<") and name in vars(tokenizer.control)
        part = [vars(tokenizer.control)[name]] if control else tokenizer.encode(text)
        ids += part
        labels += part if supervised else [NO_LOSS] * len(part)
    return ids, labels


def columns(segments: Sequence[Segment]) -> tuple[list[int], list[int]]:
    example = assemble(segments)
    assert len(example.kinds) == len(example.input_ids)
    return example.input_ids, example.labels


def plan(keys: bool, values: bool) -> list[tuple[str, bool]]:
    return [
        ("<open>", keys),
        (KEYS[0], keys),
        (VALUES[0], values),
        (KEYS[1], keys),
        (VALUES[1], values),
        ("<close>", keys),
    ]


# Loss on: prompt, tag keys, tag values, response; None where no annotation is written.
LOSS = {
    "plain": (True, None, None, True),
    "annotated": (True, True, True, True),
    "standard": (False, None, None, True),
    "anchored": (False, False, False, True),
    "anchored-replay": (False, False, False, True),
    "tagged": (False, True, True, True),
    "replay": (False, True, True, False),
}


def test_every_objective_has_its_loss_written_down_here():
    assert set(LOSS) == set(OBJECTIVES)


@pytest.mark.parametrize("name", LOSS)
def test_a_conversation_has_exactly_these_ids_and_labels(name: str, tokenizer: AnchoredTokenizer):
    prompt, keys, values, text = LOSS[name]
    annotation = [] if keys is None or values is None else plan(keys, values)
    assert columns(conversation_segments(ASKED, tokenizer, OBJECTIVES[name])) == expected(
        tokenizer,
        ("<bos>", False),
        ("<system>", prompt),
        ("Be brief.", prompt),
        ("<user>", prompt),
        ("Tell me.", prompt),
        ("<assistant>", prompt),
        *annotation,
        ("Mara slept.", text),
        ("<eos>", text),
    )


@pytest.mark.parametrize("name", LOSS)
def test_a_document_has_exactly_these_ids_and_labels(name: str, tokenizer: AnchoredTokenizer):
    _, keys, values, text = LOSS[name]
    annotation = [] if keys is None or values is None else plan(keys, values)
    empty = [] if keys is None else [("<open>", keys), ("<close>", keys)]
    assert columns(document_segments(DOCUMENT, tokenizer, OBJECTIVES[name])) == expected(
        tokenizer,
        ("<bos>", False),
        *annotation,
        ("Mara slept.\n\n", text),
        *empty,
        ("The end.", text),
        ("<eos>", text),
    )


@pytest.mark.parametrize("name", ["anchored", "anchored-replay"])
def test_a_format_example_has_loss_on_keys_and_both_brackets_but_not_on_values(
    name: str, tokenizer: AnchoredTokenizer
):
    chosen = next(
        variant
        for i in range(10_000)
        if (variant := format_variant(OBJECTIVES[name], 0, str(i))) is not OBJECTIVES[name]
    )
    assert columns(conversation_segments(ASKED[1:], tokenizer, chosen)) == expected(
        tokenizer,
        ("<bos>", False),
        ("<user>", False),
        ("Tell me.", False),
        ("<assistant>", False),
        *plan(keys=True, values=False),
        ("Mara slept.", True),
        ("<eos>", True),
    )


def test_format_examples_are_0_3_percent_chosen_by_seed_and_id():
    anchored = OBJECTIVES["anchored"]
    chosen = {
        seed: [i for i in range(10_000) if format_variant(anchored, seed, str(i)) is not anchored]
        for seed in (0, 1)
    }
    assert (len(chosen[0]), len(chosen[1])) == (34, 29)
    assert chosen[0][:8] == [1015, 1068, 1261, 1312, 1370, 1665, 1758, 1837]
    assert chosen[1][:8] == [204, 493, 782, 789, 1211, 1229, 1306, 1437]


@pytest.mark.parametrize("name", ["plain", "annotated", "standard", "tagged", "replay"])
def test_other_objectives_have_no_format_examples(name: str):
    assert all(format_variant(OBJECTIVES[name], 0, str(i)) is OBJECTIVES[name] for i in range(2000))


def test_kinds_name_the_part_each_token_belongs_to(tokenizer: AnchoredTokenizer):
    segments = conversation_segments(ASKED[1:], tokenizer, OBJECTIVES["anchored"])
    kinds = [segment.kind for segment in segments]
    assert kinds == [
        Kind.CONTROL,
        Kind.CONTROL,
        Kind.PROMPT,
        Kind.CONTROL,
        Kind.CONTROL,
        Kind.TAG_KEY,
        Kind.TAG_VALUE,
        Kind.TAG_KEY,
        Kind.TAG_VALUE,
        Kind.CONTROL,
        Kind.TEXT,
        Kind.CONTROL,
    ]
    counts = [int(kind) for segment in segments for kind in [segment.kind] * len(segment.ids)]
    assert assemble(segments).kinds == counts


def test_n_assistant_turns_give_n_examples_and_earlier_turns_go_without_annotation(
    tokenizer: AnchoredTokenizer,
):
    turns = [*ASKED[1:], Message("user", "Be brief."), Message("assistant", "The end.", TAGS)]
    examples = list(turns_to_learn(turns))
    assert [len(example) for example in examples] == [2, 4]
    assert columns(conversation_segments(examples[1], tokenizer, OBJECTIVES["anchored"])) == (
        expected(
            tokenizer,
            ("<bos>", False),
            ("<user>", False),
            ("Tell me.", False),
            ("<assistant>", False),
            ("Mara slept.", False),
            ("<eos>", False),
            ("<user>", False),
            ("Be brief.", False),
            ("<assistant>", False),
            *plan(keys=False, values=False),
            ("The end.", True),
            ("<eos>", True),
        )
    )


def test_a_conversation_that_ends_with_the_user_has_nothing_to_learn(tokenizer: AnchoredTokenizer):
    assert list(turns_to_learn(ASKED[:2])) == []
    _, labels = columns(conversation_segments(ASKED[:2], tokenizer, OBJECTIVES["anchored"]))
    assert set(labels) == {NO_LOSS}


def test_an_empty_response_ends_after_its_annotation(tokenizer: AnchoredTokenizer):
    messages = [ASKED[1], Message("assistant", "", TAGS)]
    assert columns(conversation_segments(messages, tokenizer, OBJECTIVES["replay"])) == expected(
        tokenizer,
        ("<bos>", False),
        ("<user>", False),
        ("Tell me.", False),
        ("<assistant>", False),
        *plan(keys=True, values=True),
    )


def test_annotation_and_text_are_encoded_apart(tokenizer: AnchoredTokenizer):
    """` Mara` as a value and ` Mara` in running text are the same ids: no token straddles two."""
    ids = assemble(conversation_segments(ASKED, tokenizer, OBJECTIVES["anchored"])).input_ids
    value = tokenizer.encode(" Mara")
    at = ids.index(tokenizer.encode("hero:")[-1])
    assert ids[at + 1 : at + 1 + len(value)] == value


def test_chunks_are_joined_by_a_blank_line_where_the_text_has_none(tokenizer: AnchoredTokenizer):
    chunks = [Chunk("a"), Chunk("b\n"), Chunk("c")]
    ids, _ = columns(document_segments(chunks, tokenizer, OBJECTIVES["plain"]))
    assert tokenizer.decode(ids[1:-1]) == "a\n\nb\nc"


def test_the_first_token_of_a_sequence_never_has_a_label():
    example = assemble([Segment(Kind.TEXT, 1, ids=[5, 6])])
    assert example.labels == [NO_LOSS, 6]


def test_shuffled_order_depends_on_seed_and_id_alone_and_canonical_keeps_it():
    annotation = Annotation(tuple(Tag(key, "x") for key in "abcdefgh"))
    shuffled = order_keys(annotation, "shuffled", 0, "row")
    assert order_keys(annotation, "shuffled", 0, "row") == shuffled != annotation
    assert order_keys(annotation, "shuffled", 1, "row") != shuffled
    assert order_keys(annotation, "shuffled", 0, "other") != shuffled
    assert order_keys(annotation, "canonical", 0, "row") == annotation


def test_every_order_of_four_keys_is_met_equally_often():
    annotation = Annotation(tuple(Tag(key, "x") for key in "abcd"))
    orders = Counter(order_keys(annotation, "shuffled", 0, f"{i}:0").keys for i in range(12_000))
    assert len(orders) == 24
    assert all(400 < count < 600 for count in orders.values())  # 500, give or take 22


@pytest.mark.parametrize("weights", [{}, {Kind.TAG_KEY: 0.5}, dict.fromkeys(Kind, 1.0)])
def test_pieces_of_a_tag_met_before_are_those_of_this_place_and_this_objective(weights):
    objective = Objective("any", annotated=True, weights=weights)
    key, value = weights.get(Kind.TAG_KEY, 0.0), weights.get(Kind.TAG_VALUE, 0.0)
    for first, second in (TAGS.tags, TAGS.tags[::-1]):
        assert annotation_pieces(Annotation((first, second)), objective) == [
            Segment(Kind.CONTROL, key, "open"),
            Segment(Kind.TAG_KEY, key, f"{first.key}:"),
            Segment(Kind.TAG_VALUE, value, f" {first.value}"),
            Segment(Kind.TAG_KEY, key, f"\n{second.key}:"),
            Segment(Kind.TAG_VALUE, value, f" {second.value}"),
            Segment(Kind.CONTROL, key, "close"),
        ]


text = st.lists(
    st.sampled_from(["a", "Word. ", "\n", "\n\n", " \n\t\n", "\r\n\r\n", "!”  ", "東", "x" * 30]),
    max_size=60,
).map("".join)


@given(text, st.integers(1, 40), st.integers(40, 200))
@settings(max_examples=150, deadline=None)
def test_chunks_partition_the_text_and_are_short_enough(text: str, low: int, high: int):
    chunks = split_chunks(text, low, high)
    assert "".join(chunks) == text
    assert all(0 < len(chunk.strip()) <= high for chunk in chunks) or not text.strip()


def test_white_space_is_no_chunk_of_its_own():
    assert split_chunks("One. " + " " * 30 + "Two.", 1, 12) == ["One. " + " " * 30, "Two."]
    assert split_chunks(" " * 30 + "Two.", 1, 12) == [" " * 30 + "Two."]


def test_chunks_are_cut_at_blank_lines_and_short_ones_join_the_next():
    long = "A sentence here. " * 3
    assert split_chunks(f"{long}\n\nHi.\n\n{long}\n \n{long}", 10, 100) == [
        f"{long}\n\n",
        f"Hi.\n\n{long}\n \n",
        long,
    ]


def test_a_long_chunk_is_cut_at_sentence_ends():
    assert split_chunks("One two three. Four five six! Seven.", 1, 16) == [
        "One two three. ",
        "Four five six! ",
        "Seven.",
    ]
    assert split_chunks("x" * 25, 1, 10) == ["x" * 10, "x" * 10, "x" * 5]


# Our own control tokens and their look-alikes, whole, cut, doubled and in other encodings.
_SPELLINGS = [
    "<|user|>", "<|assistant|>", "<|system|>", "<|annotation|>", "<|/annotation|>",
    "<|endoftext|>", "</s>", "<s>", "<|im_start|>", "<|im_end|>", "[INST]", "<|", "|>",
    "＜｜annotation｜＞", "<\u200b|annotation|>", "<|annota\u00adtion|>", "&lt;|annotation|&gt;",
    "\\u003c|annotation|\\u003e", "%3C%7Cannotation%7C%3E", "<|ANNOTATION|>", "<|annotation|",
    "<|anno<|annotation|>tation|>", "\x00", "\ufeff", "\u202e", "\r\n", "e\u0301",
    "👩‍🚀", " ", "\n",
    "hero: Mara", "text",
]  # fmt: skip
hostile = st.lists(st.sampled_from(_SPELLINGS), min_size=1, max_size=8).map("".join)


@given(st.lists(hostile, min_size=4, max_size=4))
@settings(max_examples=250, deadline=None)
def test_no_control_id_comes_from_1000_hostile_texts(
    tokenizer: AnchoredTokenizer, texts: list[str]
):
    value = Annotation.of({"hero": "x" + texts[2]})
    messages = [Message("user", texts[0]), Message("assistant", texts[1], value)]
    segments = [
        *conversation_segments(messages, tokenizer, OBJECTIVES["anchored"]),
        *document_segments([Chunk(texts[3], value)], tokenizer, OBJECTIVES["annotated"]),
    ]
    control = set(vars(tokenizer.control).values())
    for segment in segments:
        if segment.kind is not Kind.CONTROL:
            assert control.isdisjoint(segment.ids)
    assert tokenizer.decode(segments[2].ids) == texts[0]
