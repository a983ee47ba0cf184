"""The tokenizer that TRL's DPO and GRPO trainers are given: conversations to our ids.

TRL hands messages to `apply_chat_template` and takes the ids that come back. Here these are made
by `segments`, as for training and sampling: control tokens by id, tags and text encoded apart, a
control token that a user spells encoded as plain text. No template of text can promise that.

An annotation stands in the message that it belongs to. A last assistant message without content is
a plan: the prompt ends behind its annotation, and what TRL puts after it is the answer to it.
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
    """A stock tokenizer but for `apply_chat_template`; `load` makes one.

    It is saved as the stock one, with the record of the model that it came from, to which what is
    learnt now is added: what TRL saves, `anchored sample`, `evaluate`, `card` and `push` take as
    they take that model.
    """

    stock: AnchoredTokenizer
    """The tokenizer that it wraps."""
    _record: dict[str, Any] | None

    @classmethod
    def load(
        cls,
        model: str | Path,
        preferences: Mapping[str, Any] | None = None,
        arguments: TrainingArguments | None = None,
    ) -> ConversationTokenizer:
        """That of a model folder or hub id; `pad_token` is eos where it has none.

        Args:
            model: what is trained.
            preferences: on what, of `record.read_preferences`, for the record that is saved.
            arguments: how, a `DPOConfig` or `GRPOConfig`, for the record too.

        Raises:
            ConfigError: nothing there that can be loaded.
            DataError: `preferences` for a model that is none of ours: it has no record to keep.
            TokenizerMismatch: it is not the tokenizer that the folder was saved with.
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
        """Ids of one conversation or of several, as `input_ids` beside an `attention_mask`.

        Args:
            conversation: messages `{role, content}`, an assistant's with or without `annotation`, a
                list of `{key, value}`.
            add_generation_prompt: end where the assistant's answer begins. A plan at the end is
                where it begins already.
            tokenize: False gives the text that the ids stand for.

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
            planned = bool(messages) and messages[-1].annotation is not None
            objective = OBJECTIVES["anchored" if planned else "standard"]
            pieces.append(conversation_pieces(messages, objective, self.stock.chat))
        encoded = encode_pieces(pieces, self.stock)
        return [[i for segment in segments for i in segment.ids] for segments in encoded]

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, **_: Any
    ) -> tuple[str, ...]:
        """The stock tokenizer's files, its probe and the model's record; returns their names."""
        folder = Path(save_directory)
        if self._record:
            save_beside(folder, self.stock, self._record)
        else:
            self.stock.save(folder)
        return tuple(str(path) for path in sorted(folder.glob("*token*")))


def _training(model: str | Path, arguments: TrainingArguments | None) -> dict[str, Any]:
    if arguments is None:
        return {}
    settings = arguments.to_dict()  # tokens of services are left out
    return {
        "training": {"model": str(model), "arguments": settings, "versions": versions()},
    }


def _messages(turns: Sequence[Turn], add_generation_prompt: bool) -> list[Message]:
    """The turns, an answer joined with the plan before it."""
    messages: list[Message] = []
    for turn in turns:
        rows = turn.get("annotation")
        annotation = None if rows is None else Annotation.from_rows(rows)
        if turn["role"] == "assistant" and messages and _is_plan(messages[-1]):
            annotation = messages.pop().annotation
        messages.append(Message(turn["role"], turn["content"], annotation))
    if add_generation_prompt and not (messages and _is_plan(messages[-1])):
        messages.append(Message("assistant", ""))
    return messages


def _is_plan(message: Message) -> bool:
    return message.role == "assistant" and not message.content and message.annotation is not None
