"""The tokenizer for TRL's DPO and GRPO trainers, which encodes conversations as training does.

TRL passes messages to `apply_chat_template` and uses the ids that it returns. Here `segments` makes
these ids, as for training and sampling: control tokens are inserted by id, tags and text are
encoded separately, and a control token in a user's text is encoded as plain text. A text template
cannot guarantee that.

An annotation is part of its message. A final assistant message without content is an open
annotation: the prompt ends after it, and what TRL appends is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast, TrainingArguments

from anchored.annotation import Annotation
from anchored.config import versions
from anchored.models.record import find_record, read_record, save_beside
from anchored.segments import OBJECTIVES, Message, conversation_pieces, encode_pieces
from anchored.tokenizer import AnchoredTokenizer

Turn = Mapping[str, Any]


class ConversationTokenizer(PreTrainedTokenizerFast):
    """A stock tokenizer with its own `apply_chat_template`; use `load` to make one.

    It is saved as the stock tokenizer, with the model's record extended by the current training. So
    `anchored sample`, `evaluate`, `card` and `push` take what TRL saves like any other model.
    """

    stock: AnchoredTokenizer
    """The wrapped tokenizer."""
    _record: dict[str, Any] | None

    @classmethod
    def load(
        cls,
        model: str | Path,
        preferences: Mapping[str, Any] | None = None,
        arguments: TrainingArguments | None = None,
    ) -> ConversationTokenizer:
        """Load the tokenizer of a model folder or hub id; a missing `pad_token` becomes eos.

        Args:
            model: the model to train.
            preferences: the dataset, from `record.read_preferences`, for the saved record.
            arguments: a `DPOConfig` or `GRPOConfig`, also for the record.

        Raises:
            ConfigError: there is no tokenizer that can be loaded.
            DataError: `preferences` are given, but the model has no record to extend.
            TokenizerMismatch: the folder's tokenizer is not the one that it was saved with.
        """
        stock = AnchoredTokenizer.load(model)
        hf = stock.hf
        special = {name: value for name, value in hf.special_tokens_map.items() if value}
        special.setdefault("pad_token", str(hf.eos_token))
        found = cls(tokenizer_object=hf.backend_tokenizer, **special)
        found.chat_template = hf.chat_template
        found.stock = stock
        found._record = read_record(model) if preferences else find_record(model)
        if found._record and preferences:
            before = found._record.get("preferences", [])
            learnt = {**preferences, **_training(model, arguments)}
            found._record["preferences"] = [*before, learnt]
        return found

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conversation: Sequence[Turn] | Sequence[Sequence[Turn]],
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        **_: Any,
    ) -> Any:
        """Return `input_ids` and `attention_mask` of one conversation or several.

        Args:
            conversation: messages `{role, content}`; an assistant's message may have an
                `annotation`, a list of `{key, value}`.
            add_generation_prompt: True to end where the assistant's answer begins, which is already
                so after an open annotation.
            tokenize: False to return the text of the ids.

        Raises:
            DataError: a tag is malformed.
        """
        several = bool(conversation) and not isinstance(conversation[0], Mapping)
        batch: Any = conversation if several else [conversation]
        ids = self._ids([_messages(turns, add_generation_prompt) for turns in batch])
        if not tokenize:
            texts = [self.stock.decode(one) for one in ids]
            return texts if several else texts[0]
        columns = {"input_ids": ids, "attention_mask": [[1] * len(one) for one in ids]}
        if not several:
            columns = {name: rows[0] for name, rows in columns.items()}
        return BatchEncoding(columns)

    def _ids(self, conversations: Sequence[Sequence[Message]]) -> list[list[int]]:
        pieces = []
        for messages in conversations:
            annotated = bool(messages) and messages[-1].annotation is not None
            objective = OBJECTIVES["anchored" if annotated else "standard"]
            pieces.append(conversation_pieces(messages, objective, self.stock.chat))
        encoded = encode_pieces(pieces, self.stock)
        return [[i for segment in segments for i in segment.ids] for segments in encoded]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **_: Any
    ) -> tuple[str, ...]:
        """Save the stock tokenizer, its probe and the model's record; return the files' names."""
        folder = Path(save_directory)
        if self._record:
            save_beside(folder, self.stock, self._record)
        else:
            self.stock.save(folder)
        return tuple(str(path) for path in sorted(folder.glob("*token*")))


def _training(model: str | Path, arguments: TrainingArguments | None) -> dict[str, Any]:
    if arguments is None:
        return {}
    settings = arguments.to_dict()  # without the tokens of services
    return {
        "training": {"model": str(model), "arguments": settings, "versions": versions()},
    }


def _messages(turns: Sequence[Turn], add_generation_prompt: bool) -> list[Message]:
    """Return the turns; an answer is joined with the open annotation before it."""
    messages: list[Message] = []
    for turn in turns:
        rows = turn.get("annotation")
        annotation = None if rows is None else Annotation.from_rows(rows)
        if turn["role"] == "assistant" and messages and _is_open_annotation(messages[-1]):
            annotation = messages.pop().annotation
        messages.append(Message(turn["role"], turn["content"], annotation))
    if add_generation_prompt and not (messages and _is_open_annotation(messages[-1])):
        messages.append(Message("assistant", ""))
    return messages


def _is_open_annotation(message: Message) -> bool:
    return message.role == "assistant" and not message.content and message.annotation is not None
