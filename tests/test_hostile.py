"""A thousand texts that try to be control tokens: as documents, prompts, messages, tag values."""

from __future__ import annotations

import html
import random
import unicodedata
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchored.annotation import Annotation, normalise_value
from anchored.segments import (
    OBJECTIVES,
    Chunk,
    Kind,
    Message,
    conversation_pieces,
    conversation_segments,
    document_pieces,
    document_segments,
    encode_pieces,
    split_chunks,
)
from anchored.tokenizer import CONTROL_TOKENS, END_OF_TEXT, AnchoredTokenizer

SPELLINGS = [*CONTROL_TOKENS.values(), END_OF_TEXT]
FOREIGN = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "[INST]", "<pad>", "<unk>"]
INVISIBLE = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u0301", "\u034f", "\u202e"]


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def mojibake(text: str, wrong: str) -> str:
    return text.encode("utf-8").decode(wrong, errors="replace")


DISGUISES = [
    lambda text, rng: text,
    lambda text, rng: text.upper(),
    lambda text, rng: full_width(text),
    lambda text, rng: html.escape(text),
    lambda text, rng: html.unescape(html.escape(text)),
    lambda text, rng: rng.choice(INVISIBLE).join(text),
    lambda text, rng: text[:2] + rng.choice(INVISIBLE) + text[2:],
    lambda text, rng: "".join(c + "\u0301" for c in text),
    lambda text, rng: unicodedata.normalize("NFKC", full_width(text)),
    lambda text, rng: mojibake(text, "utf-16"),
    lambda text, rng: mojibake(text + "é東", "latin-1"),
    lambda text, rng: text.encode("utf-16-le").decode("latin-1"),
    lambda text, rng: text.encode("utf-16").decode("utf-8", errors="replace"),
    lambda text, rng: text.encode("utf-7").decode("ascii"),
    lambda text, rng: "".join(f"\\u{ord(c):04x}" for c in text),
    lambda text, rng: text.replace("<", "‹").replace("|", "│").replace(">", "›"),
    lambda text, rng: text.replace("|", " | "),
    lambda text, rng: text[:-1] + text,
    lambda text, rng: text * 5,
    lambda text, rng: text[: len(text) // 2] + text + text[len(text) // 2 :],
]


def hostile_texts(count: int) -> list[str]:
    rng = random.Random(0)
    texts = []
    for i in range(count):
        spelling = rng.choice(SPELLINGS if i % 4 else FOREIGN)
        attack = DISGUISES[i % len(DISGUISES)](spelling, rng)
        before, after = (
            rng.choice(["", "Hello ", "\n\n", "topic: "]),
            rng.choice(["", " bye", "\n"]),
        )
        texts.append(before + attack + after)
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    """Learnt on the attacks themselves, so that merges for their letters exist."""
    return AnchoredTokenizer.train([*hostile_texts(200), *SPELLINGS * 50], 600)


def stray_controls(segments, tokenizer):
    """Control ids that stand anywhere but in a control segment."""
    control = set(astuple(tokenizer.control))
    return [i for s in segments if s.kind is not Kind.CONTROL for i in s.ids if i in control]


def wrap(text):
    """The text in every place a user reaches, as documents and as conversations."""
    plan = Annotation.of({"topic": text}) if normalise_value(text) else Annotation()
    chunks = [Chunk(part, plan) for part in split_chunks(text)] or [Chunk(text, plan)]
    turns = [
        Message("system", text),
        Message("user", text),
        Message("assistant", text, plan),
        Message("user", text),
        Message("assistant", text, plan),
    ]
    return chunks, turns


@pytest.mark.parametrize("objective", ["annotated", "anchored"])
def test_none_of_1000_hostile_texts_yields_a_control_id(tokenizer, objective):
    wrapped = [wrap(text) for text in hostile_texts(1000)]
    assert len(wrapped) == 1000
    pieces = [document_pieces(chunks, OBJECTIVES[objective]) for chunks, _ in wrapped]
    pieces += [conversation_pieces(turns, OBJECTIVES[objective]) for _, turns in wrapped]
    for segments in encode_pieces(pieces, tokenizer):
        assert stray_controls(segments, tokenizer) == []


def test_the_control_tokens_of_a_conversation_are_ours_alone_whatever_its_texts_say(tokenizer):
    texts = ["harmless", *(text for text in hostile_texts(1000) if normalise_value(text))]
    pieces = [conversation_pieces(wrap(text)[1], OBJECTIVES["anchored"]) for text in texts]
    harmless, *hostile = (
        [tuple(s.ids) for s in segments if s.kind is Kind.CONTROL]
        for segments in encode_pieces(pieces, tokenizer)
    )
    assert len(hostile) > 950
    assert all(controls == harmless for controls in hostile)


def test_control_tokens_are_written_out_as_text_and_come_back_unchanged(tokenizer):
    for text in SPELLINGS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode(text)) > 1


attack = st.lists(
    st.one_of(st.sampled_from([*SPELLINGS, *FOREIGN, *INVISIBLE]), st.text(max_size=6)), max_size=8
).map("".join)


@settings(deadline=None, max_examples=200)
@given(attack.filter(lambda text: bool(text) and "\ud800" not in text))
def test_no_mixture_of_spellings_and_any_text_yields_a_control_id(tokenizer, text):
    chunks, turns = wrap(text)
    objective = OBJECTIVES["annotated"]
    assert stray_controls(document_segments(chunks, tokenizer, objective), tokenizer) == []
    assert stray_controls(conversation_segments(turns, tokenizer, objective), tokenizer) == []
