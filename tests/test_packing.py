from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anchored.annotation import Annotation
from anchored.data.packing import BestFit, has_loss, split_document, token_count
from anchored.data.store import to_table
from anchored.segments import (
    NO_LOSS,
    OBJECTIVES,
    Chunk,
    Kind,
    Segment,
    assemble,
    document_segments,
)
from anchored.tokenizer import AnchoredTokenizer

unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(["the sea and the wood"], 300)


def document(tokenizer, words, objective="annotated"):
    chunks = [Chunk("a" * n, Annotation.of({"n": str(i)})) for i, n in enumerate(words)]
    return document_segments(chunks, tokenizer, OBJECTIVES[objective])


def text_of(sequences):
    return [i for s in sequences for seg in s if seg.kind is Kind.TEXT for i in seg.ids]


def test_a_document_that_fits_stays_whole(tokenizer):
    whole = document(tokenizer, [5, 5])
    assert split_document(whole, token_count(whole)) == ([whole], 0)


@unhurried
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12), st.sampled_from(["plain", "annotated"])
)
def test_splitting_keeps_every_text_token_and_starts_each_sequence_with_its_annotation(
    tokenizer, words, objective
):
    whole = document(tokenizer, words, objective)
    sequences, dropped = split_document(whole, 40)
    control = tokenizer.control
    assert dropped == 0
    assert text_of(sequences) == text_of([whole])
    assert all(token_count(s) <= 40 for s in sequences)
    firsts = [s[0].ids[0] for s in sequences]
    assert firsts[0] == control.bos
    if objective == "annotated":
        assert firsts[1:] == [control.open] * (len(sequences) - 1)
    ends = [s[-1].ids[-1] == control.eos for s in sequences]
    assert ends == [False] * (len(sequences) - 1) + [True]
    assert all(has_loss(s) or token_count(s) == 1 for s in sequences)


def test_a_chunk_is_never_parted_from_its_annotation(tokenizer):
    sequences, _ = split_document(document(tokenizer, [20, 20, 20]), 40)
    opening = tokenizer.control.open
    for sequence in sequences:
        opens = [i for i, s in enumerate(sequence) if list(s.ids) == [opening]]
        texts = [i for i, s in enumerate(sequence) if s.kind is Kind.TEXT]
        assert [i + 4 for i in opens] == texts  # open, key, value, close, text


def test_a_chunk_longer_than_a_row_repeats_its_annotation_without_loss(tokenizer):
    sequences, _ = split_document(document(tokenizer, [200]), 40)
    values = [[s for s in q if s.kind is Kind.TAG_VALUE] for q in sequences]
    assert [[s.weight for s in own] for own in values] == [[1]] + [[0]] * (len(sequences) - 1)
    assert len({tuple(own[0].ids) for own in values}) == 1


def test_a_chunk_whose_annotation_takes_more_than_half_a_row_is_dropped_and_counted(tokenizer):
    long = Annotation.of({"n": "x" * 70})
    chunks = [Chunk("a" * 9, Annotation.of({"n": "1"})), Chunk("b" * 50, long), Chunk("c" * 9)]
    whole = document_segments(chunks, tokenizer, OBJECTIVES["annotated"])
    sequences, dropped = split_document(whole, 60)
    assert [tokenizer.decode(text_of([s])) for s in sequences] == ["a" * 9 + "\n\n", "c" * 9]
    assert dropped == token_count(whole) - sum(map(token_count, sequences))


def sequences_of(lengths):
    return [[Segment(Kind.TEXT, 1, ids=[n] * size)] for n, size in enumerate(lengths)]


def pack(lengths, capacity, open_rows=256):
    packer = BestFit(capacity, open_rows)
    rows = [row for sequence in sequences_of(lengths) for row in packer.add(sequence)]
    return [[token_count(s) for s in row] for row in [*rows, *packer.flush()]]


def test_a_sequence_goes_where_it_leaves_the_least_room():
    assert pack([6, 8, 2, 4], 10) == [[8, 2], [6, 4]]


@unhurried
@given(st.lists(st.integers(1, 32), max_size=80), st.integers(1, 8))
def test_packing_loses_nothing_and_fills_no_row_beyond_its_capacity(lengths, open_rows):
    rows = pack(lengths, 32, open_rows)
    assert sorted(n for row in rows for n in row) == sorted(lengths)
    assert all(sum(row) <= 32 for row in rows)


def test_rows_of_mixed_lengths_are_filled_to_99_percent():
    rng = random.Random(0)
    rows = pack([rng.randint(10, 300) for _ in range(5000)], 1024)
    filled = sum(map(sum, rows)) / (1024 * len(rows))
    assert filled > 0.99


def test_never_more_than_open_rows_are_held():
    packer = BestFit(32, open_rows=4)
    for sequence in sequences_of([20] * 50):
        list(packer.add(sequence))
        assert len(packer._rows) <= 4


segment = st.builds(
    Segment,
    st.sampled_from(Kind),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    ids=st.lists(st.integers(0, 999), min_size=1, max_size=4),
)


@unhurried
@given(
    st.lists(
        st.lists(st.lists(segment, min_size=1, max_size=3), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    )
)
def test_columns_equal_assembling_each_sequence(rows):
    table = to_table(rows, weighted=True).to_pydict()
    for i, row in enumerate(rows):
        examples = [assemble(sequence) for sequence in row]
        for column in ("input_ids", "labels", "kinds", "weights"):
            assert table[column][i] == [x for e in examples for x in getattr(e, column)]
        assert table["seq_lengths"][i] == [len(e.input_ids) for e in examples]


def test_weights_are_stored_only_where_one_is_neither_0_nor_1():
    plain = [[[Segment(Kind.TEXT, weight, ids=[1, 2]) for weight in (0, 1)]]]
    assert "weights" not in to_table(plain).column_names
    with pytest.raises(AssertionError):
        to_table([[[Segment(Kind.TEXT, 0.5, ids=[1, 2])]]])


def test_columns_have_the_written_types_and_mask_the_first_token_of_every_sequence():
    rows = [sequences_of([3, 2]), sequences_of([4])]
    table = to_table(rows)
    types = {name: str(table.schema.field(name).type.value_type) for name in table.column_names}
    assert types == {
        "input_ids": "int32",
        "labels": "int32",
        "kinds": "int8",
        "seq_lengths": "int32",
    }
    labels = np.array(table["labels"][0].as_py())
    assert np.flatnonzero(labels == NO_LOSS).tolist() == [0, 3]
