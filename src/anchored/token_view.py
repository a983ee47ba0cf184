"""A coloured view of tokens, their kinds and their loss mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import NamedTuple

from rich.text import Text

from anchored.errors import DataError
from anchored.escape import visible
from anchored.formatting import percent
from anchored.segments import NO_LOSS, Kind
from anchored.tokenizer import AnchoredTokenizer

_BRACKETS = ("⟦", "⟧")
COLOURS = {
    Kind.CONTROL: "magenta",
    Kind.PROMPT: "cyan",
    Kind.TAG_KEY: "yellow",
    Kind.TAG_VALUE: "green",
    Kind.TEXT: "default",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens with the same kind and loss mask; a control token is its own span."""

    text: str
    kind: Kind
    supervised: bool
    tokens: int


def spans(
    input_ids: Sequence[int],
    labels: Sequence[int],
    kinds: Sequence[int],
    seq_lengths: Sequence[int],
    tokenizer: AnchoredTokenizer,
) -> list[list[Span]]:
    """Return the spans of each document packed into one row of a prepared dataset.

    Raises:
        DataError: the columns differ in length, or `seq_lengths` does not add up to that length.
    """
    total = sum(map(int, seq_lengths))
    if {len(input_ids), len(labels), len(kinds)} != {total}:
        raise DataError(
            f"row: {len(input_ids)} input_ids, {len(labels)} labels, {len(kinds)} kinds, and "
            f"seq_lengths adds up to {total}; prepare the data again"
        )
    tokens = [
        _Token(int(token), Kind(int(kind)), int(label) != NO_LOSS)
        for token, label, kind in zip(input_ids, labels, kinds, strict=True)
    ]
    edges = [0, *accumulate(map(int, seq_lengths))]
    return [list(_document_spans(tokens[a:b], tokenizer)) for a, b in pairwise(edges)]


class _Token(NamedTuple):
    token: int
    kind: Kind
    supervised: bool


def _document_spans(tokens: Sequence[_Token], tokenizer: AnchoredTokenizer) -> Iterator[Span]:
    for (kind, supervised, place), group in groupby(enumerate(tokens), key=_span_key):
        ids = [token.token for _, token in group]
        if kind is Kind.CONTROL:
            text = f"‹{_control_name(ids[0], place == 0, tokenizer)}›"
        else:
            text = visible(tokenizer.decode(ids))
        yield Span(text, kind, supervised, len(ids))


def _span_key(placed: tuple[int, _Token]) -> tuple[Kind, bool, int]:
    place, (_, kind, supervised) = placed
    return kind, supervised, place if kind is Kind.CONTROL else -1


def _control_name(token: int, is_first: bool, tokenizer: AnchoredTokenizer) -> str:
    """Name a control token; special tokens of a chat template keep their spelling.

    bos, eos and pad may share an id: at the start of a document it is bos, elsewhere eos.
    """
    control = tokenizer.control
    if token == control.bos and is_first:
        return "bos"
    if token == control.eos:
        return "eos"
    names = {number: name for name, number in reversed(control.named().items())}
    return names.get(token) or str(tokenizer.hf.convert_ids_to_tokens(token))


def segment_view(
    input_ids: Sequence[int],
    labels: Sequence[int],
    kinds: Sequence[int],
    seq_lengths: Sequence[int],
    tokenizer: AnchoredTokenizer,
    legend: bool = True,
) -> Text:
    """Render one row: one colour per kind, underlined with loss, dim without, by document.

    Raises:
        DataError: see `spans`.
    """
    documents = spans(input_ids, labels, kinds, seq_lengths, tokenizer)
    view = Text()
    for place, document in enumerate(documents, 1):
        view.append(f"{document_title(place, documents)}\n", style="dim italic")
        view.append_text(_document_text(document)).append("\n")
    view.append(loss_account(documents), style="italic")
    return Text.assemble(legend_line(), "\n", view) if legend else view


def _document_text(document: Sequence[Span]) -> Text:
    """Render a document; tokens with loss also get brackets, since log files lose the colours."""
    text = Text()
    for supervised, stretch in groupby(document, key=lambda span: span.supervised):
        opening, closing = _BRACKETS if supervised else ("", "")
        text.append(opening, style="bold")
        for span in stretch:
            text.append(span.text, style=_style(span.kind, supervised))
        text.append(closing, style="bold")
    return text


def document_title(place: int, documents: Sequence[Sequence[Span]]) -> str:
    """Return the title of a document: its position in the row, its tokens, those with loss."""
    spans_here = documents[place - 1]
    tokens = sum(span.tokens for span in spans_here)
    learnt = sum(span.tokens for span in spans_here if span.supervised)
    return f"document {place} of {len(documents)}: {tokens:,} tokens, {learnt:,} with loss"


def _style(kind: Kind, supervised: bool) -> str:
    return f"{COLOURS[kind]} {'underline' if supervised else 'dim'}"


def legend_line() -> Text:
    """Explain the colours and marks in one line."""
    text = Text()
    for kind in Kind:
        text.append(kind_name(kind), style=COLOURS[kind]).append("  ")
    text.append("with loss".join(_BRACKETS), style="underline")
    return text.append("  ").append("without", style="dim")


def kind_name(kind: Kind) -> str:
    """Return the name of a kind as shown to readers."""
    return kind.name.lower().replace("_", " ")


def loss_account(documents: Iterable[Sequence[Span]]) -> str:
    """Say in one line how many tokens carry loss, in total and by kind."""
    tokens, learnt = _counts(documents)
    by_kind = ", ".join(
        f"{kind_name(kind)} {learnt[kind]:,}/{tokens[kind]:,}" for kind in Kind if tokens[kind]
    )
    share = percent(learnt.total() / tokens.total()) if tokens else "0%"
    return f"loss on {learnt.total():,} of {tokens.total():,} tokens ({share}): {by_kind}"


def _counts(documents: Iterable[Sequence[Span]]) -> tuple[Counter[Kind], Counter[Kind]]:
    tokens: Counter[Kind] = Counter()
    learnt: Counter[Kind] = Counter()
    for span in (span for document in documents for span in document):
        tokens[span.kind] += span.tokens
        learnt[span.kind] += span.tokens if span.supervised else 0
    return tokens, learnt
