"""From rows to drafts: sequences of pieces, each with its objective and split."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from anchored.annotation import Annotation, Schema, Tag
from anchored.chat import ChatTemplate
from anchored.data.rows import Conversation, Document, Item
from anchored.errors import DataError
from anchored.segments import (
    OBJECTIVES,
    Chunk,
    KeyOrder,
    Kind,
    Message,
    Objective,
    Segment,
    conversation_pieces,
    document_pieces,
    format_variant,
    order_keys,
    turns_to_learn,
)

_KNOWN_TAGS = 1 << 18


@dataclass(frozen=True, slots=True)
class Draft:
    """A sequence before encoding; a document that is too long for one sequence is split later.

    `instead` replaces a draft that is longer than a row: a document after its prompt falls back to
    the document alone.
    """

    pieces: list[Segment]
    split: str
    is_document: bool
    instead: Draft | None = None


@dataclass
class Drafter:
    """Drafts sequences from seed and row id alone: the rest of the corpus does not affect them.

    Attributes:
        seed: seed of every choice below.
        schema: tags are checked against it; None for no check.
        key_order: order of the tags in each annotation.
        prompted_share: share of the documents with a prompt that become conversations in
            pretraining; in SFT all do.
        annotated_share: share of the rows that pretraining sees with their annotations.
        validation_share: share of the rows that go to the validation split.
        chat: the model's own chat template; None for this package's format.
        counts: what was drafted, by name.
    """

    seed: int
    schema: Schema | None
    key_order: KeyOrder
    prompted_share: float
    annotated_share: float
    validation_share: float
    chat: ChatTemplate | None = None

    def __post_init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._known_tags: set[Tag] = set()

    def drafts(self, item: Item, objective: Objective) -> Iterator[Draft]:
        """Yield the draft of a document or conversation; in SFT one draft for each assistant turn.

        Replay learns only the last annotation: those of earlier turns were not sampled.
        """
        split = (
            "validation"
            if self._in_share("validation", item.id, self.validation_share)
            else "train"
        )
        if is_pretraining(objective) and not self._in_share(
            "annotated", item.id, self.annotated_share
        ):
            objective = OBJECTIVES["plain"]
        if isinstance(item, Conversation):
            self.counts["conversations"] += 1
            turns = list(turns_to_learn(item.messages))
            only_last = is_pretraining(objective) or Kind.TEXT not in objective.loss
            for i, messages in enumerate(turns[-1:] if only_last else turns):
                yield self._conversation(f"{item.id}:{i}", messages, split, objective)
            return
        self.counts["documents"] += 1
        self.counts["chunks"] += len(item.chunks)
        share = self.prompted_share if is_pretraining(objective) else 1.0
        prompted = item.prompt is not None and self._in_share("prompted", item.id, share)
        yield (self._prompted if prompted else self._document)(item, split, objective)

    def check(self, item: Item, place: str, objective: Objective) -> None:
        """Check that the chat template takes a row's turns, and the schema its annotations.

        Raises:
            DataError: either check fails; the error names `place`.
        """
        if self.chat is not None and isinstance(item, Conversation):
            self._check_turns(item, place, objective)
        if self.schema is None or not objective.annotated:
            return
        parts = item.messages if isinstance(item, Conversation) else (*item.chunks, item)
        for annotation in filter(None, (part.annotation for part in parts)):
            self._check(annotation, place, self.schema)

    def _in_share(self, what: str, name: str, share: float) -> bool:
        if share in (0, 1):
            return share == 1
        return random.Random(f"{self.seed}:{what}:{name}").random() < share

    def _conversation(
        self, name: str, messages: Sequence[Message], split: str, objective: Objective
    ) -> Draft:
        *earlier, last = messages
        response = replace(last, annotation=self._annotation(last.annotation, name, objective))
        turns = [*earlier, response]
        pieces = conversation_pieces(turns, self._variant(name, objective), self.chat)
        return Draft(pieces, split, is_document=False)

    def _prompted(self, item: Document, split: str, objective: Objective) -> Draft:
        messages = (
            Message("user", item.prompt or ""),
            Message("assistant", item.text, item.whole_annotation),
        )
        draft = self._conversation(f"{item.id}:0", messages, split, objective)
        if is_pretraining(objective):
            draft = replace(draft, instead=self._document(item, split, objective))
        return draft

    def _document(self, item: Document, split: str, objective: Objective) -> Draft:
        chunks = [
            Chunk(chunk.text, self._annotation(chunk.annotation, f"{item.id}:{i}", objective))
            for i, chunk in enumerate(item.chunks)
        ]
        pieces = document_pieces(chunks, self._variant(item.id, objective))
        return Draft(pieces, split, is_document=True)

    def _variant(self, name: str, objective: Objective) -> Objective:
        variant = format_variant(objective, self.seed, name)
        self.counts["format examples"] += variant is not objective
        return variant

    def _annotation(
        self, annotation: Annotation | None, name: str, objective: Objective
    ) -> Annotation:
        """Return it with canonical spelling, in this example's order, in SFT only anchored keys."""
        if not objective.annotated:
            return Annotation()
        self.counts["annotations" if annotation else "annotations missing"] += 1
        annotation = annotation or Annotation()
        if self.schema:
            annotation = self.schema.canonical(annotation)
            if not is_pretraining(objective):
                annotation = self.schema.anchored(annotation)
        return order_keys(annotation, self.key_order, self.seed, name)

    def _check_turns(self, item: Conversation, place: str, objective: Objective) -> None:
        for turns in turns_to_learn(item.messages):
            try:
                conversation_pieces(turns, objective, self.chat)
            except DataError as error:
                raise DataError(f"{place}: {error}") from None

    def _check(self, annotation: Annotation, place: str, schema: Schema) -> None:
        """Run `Schema.check`, which is slower than encoding, unless all tags passed it before."""
        if len(annotation.keys) == len(annotation) and self._known_tags.issuperset(annotation):
            return
        try:
            schema.check(annotation)
        except DataError as error:
            raise DataError(f"{place}: annotation: {error}; fix the row or the schema") from None
        if len(self._known_tags) < _KNOWN_TAGS:
            self._known_tags.update(annotation)


def is_pretraining(objective: Objective) -> bool:
    """True if everything carries loss, prompts included."""
    return Kind.PROMPT in objective.loss
