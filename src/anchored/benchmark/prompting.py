"""Encode the contexts of benchmark tasks, in the conversation format or as documents.

    conversation    bos  user context  assistant  (open tags close)  gen_prefix continuation
    document        bos  context  (open tags close)  continuation

Context, annotation and continuation are encoded separately and their ids joined, as in `segments`.
Without an annotation, a document's context and continuation are encoded together and then split, as
in lm-eval, so that such a model gets the same figures as from lm-eval.
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
        messages: the conversation; empty if the task is put as a document.
        text: the document, or the text that the answer starts with (a task's `gen_prefix`).
    """

    messages: tuple[Message, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """The ids before the continuation, and the ids of the continuation."""

    context: list[int]
    target: list[int]


def write_context(messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
    """Return the messages as the text that lm-eval passes on as a context.

    The text is JSON, not a rendered template, because control tokens are inserted by id: whatever a
    message spells stays text. If the last message is the assistant's, the answer starts with it.
    """
    start = "" if add_generation_prompt else messages[-1]["content"]
    turns = messages if add_generation_prompt else messages[:-1]
    return json.dumps({"messages": list(turns), "gen_prefix": start}, ensure_ascii=False)


def read_context(context: str, chat: bool) -> Prompt:
    """Return the prompt that `write_context` wrote or, for a document, its text."""
    if not chat:
        return Prompt(text=context)
    if not context:  # lm-eval's unconditional likelihoods
        return Prompt()
    found: Any = json.loads(context)
    turns = tuple(Message(turn["role"], turn["content"]) for turn in found["messages"])
    return Prompt(turns, found["gen_prefix"])


def shared_prompt(prompts: Sequence[Prompt]) -> Prompt:
    """Return the prompt of one item's choices or, if they differ (WinoGrande), what they share.

    The shared part is the text up to the last space before the first difference, so that the
    annotation sampled after it favours no choice.
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
    """An encoder of prompts for one model.

    Args:
        source: the model's tokenizer and chat format.
        chat: True if tasks are put as conversations.
        limit: most tokens that the model reads; a longer context is cut at its beginning.
    """

    source: LocalSampler
    chat: bool
    limit: int | None = None

    def opening(self, prompt: Prompt) -> list[int]:
        """Return the ids up to the place of the annotation."""
        if self.chat:
            return self._conversation(prompt.messages)
        return [*self._start(), *self.source.tokenizer.encode(prompt.text)]

    def annotation(self, annotation: Annotation | None) -> list[int]:
        """Return the ids of an annotation with its opening and closing tokens; empty for None."""
        if annotation is None:
            return []
        return self._ids(annotation_pieces(annotation, OBJECTIVES["anchored"]))

    def to_continue(self, prompt: Prompt, annotation: Annotation | None) -> list[int]:
        """Return the ids of everything before a text that the model will write."""
        tokenizer = self.source.tokenizer
        lead = tokenizer.encode(prompt.text) if self.chat else []
        context = [*self.opening(prompt), *self.annotation(annotation), *lead]
        return context or [tokenizer.control.bos]

    def to_score(self, prompt: Prompt, continuation: str, annotation: Annotation | None) -> Row:
        """Return the ids of a given continuation and of everything before it."""
        if not self.chat and annotation is not None:
            prompt, continuation = self.with_space(prompt, continuation)
            context = [*self.opening(prompt), *self.annotation(annotation)]
            return Row(context, self.source.tokenizer.encode(continuation))
        head = self._conversation(prompt.messages) if self.chat else self._start()
        lead, target = self._pair(prompt.text, continuation)
        context = [*head, *self.annotation(annotation), *lead]
        return Row(context or [self.source.tokenizer.control.bos], target)

    def with_space(self, prompt: Prompt, continuation: str) -> tuple[Prompt, str]:
        """Move white space between the two before a document's annotation, as in training."""
        if self.chat:
            return prompt, continuation
        bare = continuation.lstrip()
        space = continuation[: len(continuation) - len(bare)]
        return replace(prompt, text=prompt.text + space), bare

    def fitted(self, context: list[int], behind: int) -> list[int]:
        """Return `context` with room for `behind` tokens, cut at its beginning if too long.

        A first token bos is kept.
        """
        excess = 0 if self.limit is None else len(context) + behind - self.limit
        if excess <= 0:
            return context
        kept = context[: int(context[0] == self.source.tokenizer.control.bos)]
        return [*kept, *context[len(kept) + excess :]]

    def _conversation(self, messages: tuple[Message, ...]) -> list[int]:
        chat = self.source.tokenizer.chat
        if chat and not messages:  # templates cannot render an empty conversation
            return self._start()
        turns = (*messages, Message("assistant", ""))
        return self._ids(conversation_pieces(turns, OBJECTIVES["standard"], chat))

    def _start(self) -> list[int]:
        """Return what begins a document: bos or, for a foreign model, what its tokenizer adds."""
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
        """Encode both together; spaces at the end of `text` go to the continuation.

        This is what lm-eval's `TemplateLM._encode_pair` does.
        """
        bare = text.rstrip()
        lead, whole = self.source.tokenizer.encode_batch([bare, text + continuation])
        return lead, whole[len(lead) :]
