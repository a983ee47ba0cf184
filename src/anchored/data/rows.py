"""Row formats: the one place that reads the fields of input rows.

    documents, conversations        `canonical_row`   -> `Document`, `Conversation`
    prompts, pairs of answers       `asked_row`       -> `Asked`
    prompts of a benchmark          `prompt_turns`    -> turns that end with the user
    several answers, or a corpus    `answers_rows`    -> `Answers`

A new format of documents or conversations needs one function, an entry in `FORMATS`, one test, and
a line in docs/cli.md. A format that is another one with different field names renames the fields
and calls the other's function; writers then write the renamed fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from anchored.annotation import Annotation, Tag
from anchored.errors import DataError
from anchored.metrics.noveltybench import Stamp, stored_stamp
from anchored.segments import Chunk, Message

GENERATIONS_FORMATS = (
    "prompt and generations (a list of texts), or prompt and response, or text alone"
)
_AT_THE_LIMIT = ("length", "max_tokens")  # finish reasons of a text cut at the token limit
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_ASKED = ("prompt", "messages")
_PAIR = ("chosen", "rejected")

Row = Mapping[str, Any]
Split = Callable[[str], list[str]]
Scores = tuple[float | None, ...]


def uncut(text: str) -> list[str]:
    """Return the text as one chunk."""
    return [text]


@dataclass(frozen=True, slots=True)
class Document:
    """A text in chunks.

    Attributes:
        id: id of the row, or its place without the folders.
        chunks: the text. A chunk without an annotation has None, not an empty annotation.
        prompt: prompt for the whole text.
        annotation: annotation of the whole text.
        divided: True if the row came already cut into chunks.
        raw: the row as it was read; writers copy its other fields.
    """

    id: str
    chunks: tuple[Chunk, ...]
    prompt: str | None = None
    annotation: Annotation | None = None
    divided: bool = field(default=False, compare=False)
    raw: Row = field(default_factory=dict, compare=False, repr=False)

    @property
    def text(self) -> str:
        """All chunks joined as `document_pieces` joins them."""
        *first, last = (chunk.text for chunk in self.chunks)
        return "".join(text if text[-1:].isspace() else text + "\n\n" for text in first) + last

    @property
    def whole_annotation(self) -> Annotation | None:
        """The document's own annotation or, for each key, the most frequent value of its chunks.

        None if neither the document nor any chunk of it was annotated.
        """
        if self.annotation is not None or len(self.chunks) == 1:
            first = self.chunks[0].annotation
            return self.annotation or (self.annotation if first is None else first)
        given = [chunk.annotation for chunk in self.chunks if chunk.annotation is not None]
        counts = Counter(tag for annotation in given for tag in annotation)
        best: dict[str, Tag] = {}
        for tag, count in counts.items():
            if count > counts.get(best.get(tag.key), 0):  # pyright: ignore
                best[tag.key] = tag
        return Annotation(tuple(best.values())) if given else None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that ends with an assistant turn, which is empty in a replay row.

    Attributes:
        id: id of the row, or its place without the folders.
        messages: the turns.
        raw: the row as it was read; writers copy its other fields.
    """

    id: str
    messages: tuple[Message, ...]
    raw: Row = field(default_factory=dict, compare=False, repr=False)


Item = Document | Conversation


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt whose answers are to be sampled or compared.

    Attributes:
        place: file and line, for errors.
        turns: the turns of the prompt.
        annotation: the annotation of both answers, if it is given.
        pair: the better and the worse answer, if they are given.
        fields: all other fields of the row.
    """

    place: str
    turns: tuple[Message, ...]
    annotation: Annotation | None
    pair: tuple[str, str] | None
    fields: Row

    def as_json(self) -> dict[str, Any]:
        """Return the form that identifies it in a journal."""
        return {**asdict(self), "annotation": self.annotation and self.annotation.rows()}


@dataclass(frozen=True, slots=True)
class Answers:
    """One or several texts that a model wrote for a prompt.

    Attributes:
        prompt: the prompt; empty for texts without one.
        texts: the answers.
        annotations: what the model wrote before each text, or None. None as a whole if the format
            has no annotations.
        partition: class of each text, if the row has it.
        scores: score of each text, if the row has it.
        partition_stamp, score_stamp: the protocols of these.
        model: the model that wrote the texts, if the row names it.
        truncated: True for each text cut at the token limit, None where that is not known.
        prompted: False for a row of a corpus, which is a text without a prompt.
    """

    prompt: str
    texts: tuple[str, ...]
    annotations: tuple[Annotation | None, ...] | None
    partition: tuple[int, ...] | None = None
    scores: Scores | None = None
    partition_stamp: Stamp | None = None
    score_stamp: Stamp | None = None
    model: str | None = None
    truncated: tuple[bool | None, ...] = (None,)
    prompted: bool = True


@dataclass(frozen=True, slots=True)
class Format:
    """A format of documents or conversations.

    Attributes:
        fields: a row with all of these fields has this format.
        example: the row, as docs/cli.md shows it.
        says: what the row becomes, as docs/cli.md says it.
        read: returns the canonical row, given a row, its id and a function that splits texts.
    """

    fields: tuple[str, ...]
    example: str
    says: str
    read: Callable[[Row, str, Split], Item]

    @property
    def name(self) -> str:
        """The fields, as error messages list them."""
        return " + ".join(self.fields)


def canonical_row(row: Row, place: str, split: Split = uncut) -> Item:
    """Return the canonical form of a row in the first of `FORMATS` whose fields the row has.

    A null field counts as absent, since tables have every column in every row.

    Args:
        row: the raw row.
        place: file and line, for errors. It is also the id of a row without `id`, but without the
            folders, so that a corpus may be moved.
        split: cuts a document's text into chunks.

    Raises:
        DataError: a field is missing, empty or of the wrong type, or a tag is malformed.
    """
    name = row.get("id")
    try:
        read = _format(row).read
        return read(row, Path(place).name if name is None else str(name), split)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _format(row: Row) -> Format:
    given = {name for name, value in row.items() if value is not None}
    for one in FORMATS:
        if given.issuperset(one.fields):
            return one
    *names, last = (one.name for one in FORMATS)
    has = ", ".join(str(name) for name in row if name in given) or "none"
    raise DataError(f"has the fields {has}; a row needs {', '.join(names)} or {last}")


def _read_text(row: Row, name: str, split: Split) -> Document:
    chunks = tuple(Chunk(text) for text in split(_text(row, "text")))
    return Document(name, chunks, _prompt(row), _annotation(row), raw=row)


def _read_chunks(row: Row, name: str, split: Split) -> Document:
    chunks = _objects(row, "chunks")
    if not chunks:
        raise DataError("chunks: [] is empty; remove the row, or set skip_bad_rows: true")
    for chunk in chunks:
        if "text" not in chunk:
            raise DataError(f"chunks: {str(dict(chunk))[:80]} has no text")
    found = tuple(Chunk(_text(chunk, "text"), _annotation(chunk)) for chunk in chunks)
    return Document(name, found, _prompt(row), _annotation(row), divided=True, raw=row)


def _read_messages(row: Row, name: str, split: Split) -> Conversation:
    """Parse messages up to the assistant's last one, since nothing after it can be learnt.

    Messages with an `annotation`, but without a final answer, are a row for replay.
    """
    turns = [_turn(message) for message in _objects(row, "messages")]
    annotation = _annotation(row)
    if annotation is not None and turns and turns[-1].role != "assistant":
        return Conversation(name, (*turns, Message("assistant", "", annotation)), row)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise DataError(
            "messages: no assistant turn to learn; remove the row, or set skip_bad_rows: true"
        )
    if annotation is not None:
        turns.append(Message("assistant", turns.pop().content, annotation))
    return Conversation(name, tuple(turns), row)


def _read_response(row: Row, name: str, split: Split) -> Conversation:
    return _one_turn(row, name, _text(row, "prompt"), _text(row, "response"))


def _read_output(row: Row, name: str, split: Split) -> Conversation:
    more = "" if row.get("input") is None else _text(row, "input", empty_ok=True)
    prompt = _text(row, "instruction") + (f"\n\n{more}" if more.strip() else "")
    return _one_turn(row, name, prompt, _text(row, "output"))


def _read_conversations(row: Row, name: str, split: Split) -> Conversation:
    """Parse ShareGPT's turns as messages; a turn keeps its other fields."""
    turns = []
    for turn in _objects(row, "conversations"):
        rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
        role = _SHAREGPT_ROLES.get(str(turn.get("from")))
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise DataError(f"conversations: from {turn.get('from')!r} is not one of {known}")
        if turn.get("value") is None:
            raise DataError(f"conversations: {str(dict(turn))[:80]} has no value")
        turns.append({"role": role, "content": turn["value"], **rest})
    rest = {key: value for key, value in row.items() if key != "conversations"}
    return _read_messages({**rest, "messages": turns}, name, split)


def _read_unanswered(row: Row, name: str, split: Split) -> Conversation:
    return _one_turn(row, name, _text(row, "prompt"), "")


def _one_turn(row: Row, name: str, prompt: str, answer: str) -> Conversation:
    turns = Message("user", prompt), Message("assistant", answer, _annotation(row))
    return Conversation(name, turns, row)


FORMATS = (
    Format(
        ("messages",),
        "{messages: [{role, content}]}",
        "a conversation; an optional `annotation` for its last answer",
        _read_messages,
    ),
    Format(
        ("prompt", "response"),
        "{prompt, response}",
        "the same with one turn",
        _read_response,
    ),
    Format(
        ("instruction", "output"),
        "{instruction, input, output}",
        "the same; the prompt is the instruction and, unless it is blank, the input",
        _read_output,
    ),
    Format(
        ("conversations",),
        "{conversations: [{from, value}]}",
        "ShareGPT's conversation, `from` human, gpt or system; `annotate` writes it as `messages`",
        _read_conversations,
    ),
    Format(
        ("chunks",),
        "{id, chunks: [{text, annotation: [{key, value}]}]}",
        "a document; an optional `prompt` lets a share of them be written as conversations",
        _read_chunks,
    ),
    Format(
        ("text",),
        "{id, text}",
        "the same, cut into chunks; an optional `annotation` describes the whole",
        _read_text,
    ),
    Format(
        ("prompt", "annotation"),
        "{prompt, annotation}",
        "a conversation without an answer, for replay",
        _read_unanswered,
    ),
)


def annotated_row(item: Item, found: Mapping[str, Annotation]) -> dict[str, Any]:
    """Return the row of an item with its annotations in stored form and all its other fields.

    Args:
        item: the item; its own annotations are kept.
        found: annotations by text, for all texts of the item that have none.
    """
    row = {"id": item.id, **item.raw}
    if isinstance(item, Document):
        return _annotated_document(row, item, found)
    if row.get("messages") is not None:
        return row | {"messages": [_annotated_turn(turn, found) for turn in row["messages"]]}
    last = item.messages[-1]
    annotation = found[last.content] if last.annotation is None else last.annotation
    return row | {"annotation": annotation.rows()}


def _annotated_document(
    row: dict[str, Any], item: Document, found: Mapping[str, Annotation]
) -> dict[str, Any]:
    def stored(text: str, given: Annotation | None) -> list[dict[str, str]]:
        return (found[text] if given is None else given).rows()

    row.pop("text", None)
    row["chunks"] = [
        {"text": chunk.text, "annotation": stored(chunk.text, chunk.annotation)}
        for chunk in item.chunks
    ]
    if item.annotation is not None or item.prompt is not None:
        row["annotation"] = stored(item.text, item.annotation)
    return row


def _annotated_turn(turn: Row, found: Mapping[str, Annotation]) -> dict[str, Any]:
    if turn["role"] != "assistant" or turn.get("annotation") is not None:
        return dict(turn)
    return {**turn, "annotation": found[turn["content"]].rows()}


def asked_row(row: Row, place: str) -> Asked:
    """Parse `{prompt}` or `{messages}`, with or without `annotation`, `chosen` and `rejected`.

    If there are only the two answers, as lists of messages, the prompt is all but the last message.

    Raises:
        DataError: the row has no prompt, one answer without the other, or a field of the wrong
            type.
    """
    with _named(place):
        if ("chosen" in row) != ("rejected" in row):
            raise DataError("has one of chosen and rejected; give both, or neither")
        pair = (_answer(row, "chosen"), _answer(row, "rejected")) if "chosen" in row else None
        asked = {name: row[name] for name in _ASKED if row.get(name) is not None}
        if not asked and pair and isinstance(row["chosen"], list):
            asked = {"messages": row["chosen"][:-1]}
        if not asked:
            raise _no_prompt()
        asked["annotation"] = row.get("annotation") or []  # with it, no answer is asked for
        read = _read_messages if "messages" in asked else _read_unanswered
        *turns, last = read(asked, "", uncut).messages
        if not turns:
            raise _no_prompt()
    annotation = None if row.get("annotation") is None else last.annotation
    ours = {*_ASKED, *_PAIR, "id", "annotation"}
    fields = {name: value for name, value in row.items() if name not in ours}
    return Asked(place, tuple(turns), annotation, pair, fields)


def _no_prompt() -> DataError:
    return DataError("no prompt; give `prompt`, or `messages` that end with a user's")


def _answer(row: Row, name: str) -> str:
    """Return a text field, or the last message in a list."""
    value = row[name]
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{name}: {str(value)[:60]!r} is not an answer; give text, or messages that end with it"
        )
    return value


def prompt_turns(row: Row, place: str, name: str = "prompt") -> tuple[Message, ...]:
    """Return the prompt in a row of a benchmark: its `messages`, its field `name`, or its `prompt`.

    Raises:
        DataError: there is no prompt, or it is neither text nor turns that end with the user.
    """
    with _named(place):
        if "messages" in row:
            return _prompt_messages(row["messages"])
        text = row.get(name, row.get("prompt"))
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"prompt: {text!r:.80} is not text; a row has prompt or messages")
        return (Message("user", text),)


def _prompt_messages(messages: Any) -> tuple[Message, ...]:
    try:
        turns = tuple(Message(turn["role"], turn["content"]) for turn in messages)
    except (TypeError, KeyError):
        turns = ()
    known = all(turn.role in _ROLES for turn in turns)
    texts = all(isinstance(turn.content, str) for turn in turns)
    if not turns or not known or not texts or turns[-1].role != "user":
        raise DataError(
            f"messages: {messages!r:.80} is not a conversation that ends with the user; write "
            f"[{{role, content}}, ...] with roles {', '.join(_ROLES)}"
        )
    return turns


def answers_rows(rows: Sequence[tuple[str, Row]]) -> list[Answers]:
    """Parse rows of generations; all have the format of the first one.

    They are `{prompt, generations: [...]}`, one record per prompt, optionally with NoveltyBench's
    `partition` and `generation_scores`; or `{prompt, response}`, one record per text, optionally
    with the `annotation` that the model wrote first; or `{text}` or `{chunks}`, a corpus. Whether a
    text was cut at the token limit is in `finished` or in `finish_reason`, one value per text.

    Raises:
        DataError: a field is missing or of the wrong type; the message names its place.
    """
    name, read = _answers_format(rows[0][1] if rows else {})
    found = []
    for place, row in rows:
        with _named(place):
            if name not in row:
                fields = ", ".join(row) or "none"
                raise DataError(
                    f"{name}: missing (fields: {fields}); a row has {GENERATIONS_FORMATS}"
                )
            found.append(read(row))
    return found


def _answers_format(row: Row) -> tuple[str, Callable[[Row], Answers]]:
    if "generations" in row:
        return "generations", _several_answers
    if "response" not in row and (
        of_corpus := [name for name in ("text", "chunks") if name in row]
    ):
        return of_corpus[0], _one_text
    return "response", _one_answer


def _one_answer(row: Row) -> Answers:
    text = _text(row, "response", empty_ok=True)
    return Answers(
        _answered_prompt(row),
        (text,),
        (_annotation(row),),
        model=_model(row),
        truncated=_truncated(row, 1),
    )


def _one_text(row: Row) -> Answers:
    """Parse a document, whose prompt counts if it has one."""
    read = _read_text if "text" in row else _read_chunks
    document = read(row, "", uncut)
    return Answers(
        document.prompt or "",
        (document.text,),
        (document.annotation,),
        model=_model(row),
        truncated=_truncated(row, 1),
        prompted=document.prompt is not None,
    )


def _truncated(row: Row, texts: int) -> tuple[bool | None, ...]:
    """Return what `finished` or `finish_reason` says of each text; None where it says nothing."""
    if row.get("finished") is not None:
        return tuple(
            None if done is None else not done for done in _each(row, "finished", texts, bool)
        )
    reasons = _each(row, "finish_reason", texts, str)
    return tuple(None if why is None else why.lower() in _AT_THE_LIMIT for why in reasons)


def _each(row: Row, name: str, texts: int, kind: type) -> list[Any]:
    """Return a field that is one value for all texts of the row, or a list with one for each."""
    value = row.get(name)
    values = value if isinstance(value, list) else [value] * texts
    if len(values) != texts or not all(one is None or isinstance(one, kind) for one in values):
        raise DataError(
            f"{name}: {str(value)[:80]!r} is not {kind.__name__} for each of {texts} texts; fix it "
            "or leave the field out"
        )
    return values


def _several_answers(row: Row) -> Answers:
    partition = _per_answer(row, "partition", "a class number", int)
    scores = _per_answer(row, "generation_scores", "a number", int | float | None)
    texts = _texts(row["generations"])
    return Answers(
        _answered_prompt(row),
        texts,
        None,
        partition,
        scores,
        stored_stamp(row, "partition") if "partition" in row else None,
        stored_stamp(row, "score") if "generation_scores" in row else None,
        _model(row),
        _truncated(row, len(texts)),
    )


def _model(row: Row) -> str | None:
    return str(row["model"]) if row.get("model") else None


def _answered_prompt(row: Row) -> str:
    """Return the prompt; empty if it is null, as in samples without one."""
    if "prompt" not in row:
        raise DataError(f"prompt: missing; a row has {GENERATIONS_FORMATS}")
    return "" if row["prompt"] is None else _text(row, "prompt", empty_ok=True)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"generations: {str(value)[:80]!r} is not a list of texts; write at least one"
        )
    return tuple(_as_text(f"generations[{i}]", text) for i, text in enumerate(value))


def _per_answer(row: Row, name: str, what: str, kind: Any) -> tuple[Any, ...] | None:
    """Return a field with one item per generation, or None if the row lacks it."""
    value, wanted = row.get(name), len(row["generations"])
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != wanted:
        raise DataError(
            f"{name}: {str(value)[:80]!r} is not a list of {wanted}, one item per generation; "
            "fix it or leave the field out"
        )
    for i, item in enumerate(value):
        if isinstance(item, bool) or not isinstance(item, kind):
            raise DataError(f"{name}[{i}]: {item!r} is not {what}; write one")
    return tuple(value)


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Put the place before an error message."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{place}: {error}") from None


def _as_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{name}: {str(value)[:80]!r} is {type(value).__name__}, not text; write a string"
        )
    return value


def _text(row: Row, name: str, empty_ok: bool = False) -> str:
    value = _as_text(name, row[name])
    if not empty_ok and (not value or value.isspace()):
        raise DataError(
            f"{name}: {value[:20]!r} is empty; remove the row, or set skip_bad_rows: true"
        )
    return value


def _objects(row: Row, name: str) -> Sequence[Row]:
    value = row[name]
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{name}: {str(value)[:80]!r} is not a list of objects")
    return value


def _prompt(row: Row) -> str | None:
    return None if row.get("prompt") is None else _text(row, "prompt")


def _annotation(row: Row) -> Annotation | None:
    value = row.get("annotation")
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(
            f"annotation: {str(value)[:80]!r} is not a list of tags; write "
            '[{"key": ..., "value": ...}], or leave the field out'
        )
    return Annotation(tuple([_tag(pair) for pair in value]))


def _tag(pair: Row) -> Tag:
    key, value = pair.get("key"), pair.get("value")
    if not isinstance(key, str) or not isinstance(value, str):
        raise DataError(f"annotation: {str(dict(pair))[:80]} is not {{'key': text, 'value': text}}")
    return _make_tag(key, value)


_make_tag = lru_cache(maxsize=1 << 16)(Tag)


def _turn(message: Row) -> Message:
    role = message.get("role")
    if role not in _ROLES:
        raise DataError(f"messages: role {role!r} is not one of {', '.join(_ROLES)}")
    if message.get("content") is None:
        raise DataError(f"messages: {str(dict(message))[:80]} has no content")
    content = _text(message, "content", empty_ok=role != "assistant")
    return Message(role, content, _annotation(message))
