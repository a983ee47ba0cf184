"""What each row becomes: which sequences of pieces, under which objective, in which split."""

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
    """A sequence that is not encoded yet; a document becomes several where it is too long for one.

    `instead` is what to write if this one is longer than a row: a document behind its prompt falls
    back to the document alone.
    """

    pieces: list[Segment]
    split: str
    is_document: bool
    instead: Draft | None = None


@dataclass
class Drafter:
    """Drafts sequences by seed and row id alone: the rest of the corpus does not affect them.

    Args:
        seed: of every choice below.
        schema: tags are checked against it; None for no check.
        key_order: of the tags in each annotation.
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
        """One draft for a document or a conversation; in SFT one for each turn to learn.

        Replay learns the last annotation alone: earlier turns were never sampled.
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
        """Check that the chat template takes a row's turns and its annotations fit the schema.

        Raises:
            DataError: one does not; `place` is named.
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
        """Checked, in SFT without the keys that it is meant to change, in this example's order."""
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
        """`Schema.check`, left out for tags that passed it before: it is slower than encoding."""
        if len(annotation.keys) == len(annotation) and self._known_tags.issuperset(annotation):
            return
        try:
            schema.check(annotation)
        except DataError as error:
            raise DataError(f"{place}: annotation: {error}; fix the row or the schema") from None
        if len(self._known_tags) < _KNOWN_TAGS:
            self._known_tags.update(annotation)


def is_pretraining(objective: Objective) -> bool:
    """True if everything is learnt, prompts included."""
    return Kind.PROMPT in objective.loss
