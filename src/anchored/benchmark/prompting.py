"""Contexts of benchmark tasks to ids: in the conversation format or as a document.

    conversation    bos  user context  assistant  (open tags close)  gen_prefix continuation
    document        bos  context  (open tags close)  continuation

Context, annotation and continuation are encoded apart and their ids joined, as in `segments`.
Without an annotation a document's context and continuation are encoded together and cut apart, as
lm-eval does it, so that a model of this format gets lm-eval's own figures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from anchored.annotation import Annotation
from anchored.sampling.sampler import LocalSampler
from anchored.segments import (
    OBJECTIVES,
    Message,
    Segment,
    annotation_pieces,
    conversation_pieces,
    encode_pieces,
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a task puts before the continuation.

    Args:
        messages: the conversation; empty where the task is put as a document.
        text: the document, or what the answer starts with (a task's `gen_prefix`).
    """

    messages: tuple[Message, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """Ids before the continuation, and those of the continuation."""

    context: list[int]
    target: list[int]


def write_context(messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """Messages as the text that lm-eval hands on as a context.

    JSON and not a rendered template, because control tokens are put by id: whatever a message
    spells stays its text. A last message of the assistant's is then what the answer starts with.
    """
    start = "" if add_generation_prompt else messages[-1]["content"]
    turns = messages if add_generation_prompt else messages[:-1]
    return json.dumps({"messages": list(turns), "gen_prefix": start}, ensure_ascii=False)


def read_context(context: str, chat: bool) -> Prompt:
    """What `write_context` wrote or, of a document, its text."""
    if not chat:
        return Prompt(text=context)
    if not context:  # lm-eval's unconditional likelihoods
        return Prompt()
    found: Any = json.loads(context)
    turns = tuple(Message(turn["role"], turn["content"]) for turn in found["messages"])
    return Prompt(turns, found["gen_prefix"])


def shared_prompt(prompts: Sequence[Prompt]) -> Prompt:
    """The prompt of one item's choices; where these differ (WinoGrande), what they share.

    That is the text up to the last space before the first difference, so that the annotation
    sampled behind it favours no choice.
    """
    first = prompts[0]
    if all(prompt == first for prompt in prompts):
        return first
    texts = [p.messages[-1].content if p.messages else p.text for p in prompts]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    common = "".join(letters[0] for letters in same)
    common = common[: common.rfind(" ") + 1]
    if not first.messages:
        return Prompt(text=common)
    return replace(first, messages=(*first.messages[:-1], Message("user", common)))


@dataclass(frozen=True)
class Encoder:
    """Prompts to ids for one model.

    Args:
        source: the model's tokenizer and chat format.
        chat: the task is put as a conversation.
        limit: the tokens that the model reads; of a longer context the beginning is cut away.
    """

    source: LocalSampler
    chat: bool
    limit: int | None = None

    def opening(self, prompt: Prompt) -> list[int]:
        """Ids up to where an annotation stands."""
        if self.chat:
            return self._conversation(prompt.messages)
        return [*self._start(), *self.source.tokenizer.encode(prompt.text)]

    def annotation(self, annotation: Annotation | None) -> list[int]:
        """Ids of an annotation with its opening and closing tokens; none for None."""
        if annotation is None:
            return []
        return self._ids(annotation_pieces(annotation, OBJECTIVES["anchored"]))

    def to_continue(self, prompt: Prompt, annotation: Annotation | None) -> list[int]:
        """Ids of all that stands before a text that the model is to write."""
        tokenizer = self.source.tokenizer
        lead = tokenizer.encode(prompt.text) if self.chat else []
        context = [*self.opening(prompt), *self.annotation(annotation), *lead]
        return context or [tokenizer.control.bos]

    def to_score(self, prompt: Prompt, continuation: str, annotation: Annotation | None) -> Row:
        """Ids of a given continuation and of all that stands before it."""
        if not self.chat and annotation is not None:
            prompt, continuation = self.with_space(prompt, continuation)
            context = [*self.opening(prompt), *self.annotation(annotation)]
            return Row(context, self.source.tokenizer.encode(continuation))
        head = self._conversation(prompt.messages) if self.chat else self._start()
        lead, target = self._pair(prompt.text, continuation)
        context = [*head, *self.annotation(annotation), *lead]
        return Row(context or [self.source.tokenizer.control.bos], target)

    def with_space(self, prompt: Prompt, continuation: str) -> tuple[Prompt, str]:
        """White space between the two stands before a document's annotation, as in training."""
        if self.chat:
            return prompt, continuation
        bare = continuation.lstrip()
        space = continuation[: len(continuation) - len(bare)]
        return replace(prompt, text=prompt.text + space), bare

    def fitted(self, context: list[int], behind: int) -> list[int]:
        """`context` with room for `behind` tokens, its beginning cut where it is too long.

        A first token that starts every sequence stays.
        """
        excess = 0 if self.limit is None else len(context) + behind - self.limit
        if excess <= 0:
            return context
        kept = context[: int(context[0] == self.source.tokenizer.control.bos)]
        return [*kept, *context[len(kept) + excess :]]

    def _conversation(self, messages: tuple[Message, ...]) -> list[int]:
        chat = self.source.tokenizer.chat
        if chat and not messages:  # no template writes one
            return self._start()
        turns = (*messages, Message("assistant", ""))
        return self._ids(conversation_pieces(turns, OBJECTIVES["standard"], chat))

    def _start(self) -> list[int]:
        """What begins a document: bos or, of a foreign model, what its tokenizer puts."""
        tokenizer = self.source.tokenizer
        if self.source.chat == "anchored":
            return [tokenizer.control.bos]
        encoded: Any = tokenizer.hf("a", return_special_tokens_mask=True)
        leading = encoded["special_tokens_mask"].index(0)
        return encoded["input_ids"][:leading]

    def _ids(self, pieces: Sequence[Segment]) -> list[int]:
        segments = encode_pieces([pieces], self.source.tokenizer)[0]
        return [i for segment in segments for i in segment.ids]

    def _pair(self, text: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, encoded together; spaces at the end of `text` go with the continuation.

        As `TemplateLM._encode_pair` of lm-eval.
        """
        bare = text.rstrip()
        lead, whole = self.source.tokenizer.encode_batch([bare, text + continuation])
        return lead, whole[len(lead) :]
