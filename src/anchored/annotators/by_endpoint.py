"""Annotates texts with a language model behind an OpenAI-compatible server, one text per request.

The model is asked for `key: value` lines and stopped at the first blank line. Its answer is
untrusted: it is parsed leniently and validated against the schema. It counts as failed if it was
truncated, if the model thought first, or if no tag of the schema remains. A failed request is sent
once more, with constrained decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from anchored.annotation import Annotation, Schema, annotation_of, read_pairs
from anchored.annotators.prompts import Prompt, answer_schema
from anchored.endpoint import Endpoint, EndpointConfig, Reply
from anchored.errors import RequestFailed
from anchored.journal import Row, content_key

SAMPLING = {"temperature": 0, "max_tokens": 200, "stop": ["\n\n"]}
SHOWN = 120  # characters of an unreadable answer that an error shows
_MILLION = 1_000_000

Constraint = Literal["response_format", "structured_outputs", "none"]


class AnnotatorConfig(EndpointConfig):
    """The endpoint, the sampling parameters and the token prices of the annotating model.

    `sampling` is passed to the server as it is. It overrides the defaults (temperature 0, 200
    tokens, a stop at a blank line); null removes a parameter. Prices are in any currency.
    """

    attempts: int = Field(
        default=10, ge=1, description="attempts per request; 10 bridge two minutes without a server"
    )
    sampling: dict[str, Any] = Field(default_factory=dict)
    constrain: Constraint = Field(
        default="response_format",
        description="how a second attempt is constrained; structured_outputs: vLLM",
    )
    price_in: float | None = Field(default=None, ge=0, description="price per million input tokens")
    price_out: float | None = Field(
        default=None, ge=0, description="price per million output tokens"
    )

    @property
    def request(self) -> dict[str, Any]:
        """Sampling parameters of a first attempt."""
        wanted = {**SAMPLING, **self.sampling}
        return {name: value for name, value in wanted.items() if value is not None}

    def cost(self, read: float, written: float) -> float | None:
        """Return the cost of input and output tokens, or None unless both prices are set."""
        if self.price_in is None or self.price_out is None:
            return None
        return (read * self.price_in + written * self.price_out) / _MILLION


@dataclass(frozen=True, slots=True)
class Request:
    """One text to be tagged.

    Attributes:
        text: the text.
        request: the prompt that the text answers, if it is a response.
        earlier: the tags of the preceding chunks, written out.
    """

    text: str
    request: str | None = None
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; one that the server does not report counts as zero."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def row(self) -> Row:
        """Return the counts as fields of `Answer.row`."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Usage:
        """Return the counts in a row of a journal; the inverse of `row`."""
        return cls(*(row[name] for name in cls.__slots__))

    @classmethod
    def of(cls, reply: Reply) -> Usage:
        """Return the counts of one reply."""
        return cls(reply.prompt_tokens or 0, reply.cached_tokens or 0, reply.completion_tokens or 0)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a request: an annotation, or an error that says why there is none.

    `dropped` are the keys that the model wrote and the schema rejected.
    """

    annotation: Annotation = field(default_factory=Annotation)
    error: str | None = None
    dropped: tuple[str, ...] = ()
    usage: Usage = Usage()

    def row(self) -> Row:
        """Return the form in which a journal keeps the answer."""
        dropped = {"dropped": list(self.dropped)} if self.dropped else {}
        return {"annotation": self.annotation.rows(), **dropped, **self.usage.row()}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Answer:
        """Return the answer in a row of a journal; the inverse of `row`."""
        annotation = Annotation.from_rows(row["annotation"])
        return cls(annotation, None, tuple(row.get("dropped", ())), Usage.of_row(row))


class Unreadable(Exception):
    """An answer without a usable annotation; the message says why."""


def read_answer(reply: Reply, schema: Schema) -> tuple[Annotation, tuple[str, ...]]:
    """Return the legal tags of an answer, in the schema's order, and the dropped keys.

    Raises:
        Unreadable: the answer was truncated, begins with thoughts, or has no tag of the schema.
    """
    if reply.truncated:
        raise Unreadable("ran into max_tokens")
    if reply.thinking is not None:
        raise Unreadable(
            "the model thinks first; turn it off by the server's options or `sampling`"
        )
    pairs = read_pairs(reply.text)
    annotation = schema.canonical(annotation_of(pairs, schema))
    if not annotation:
        raise Unreadable(f"no tag of the schema in {(reply.refusal or reply.text)[:SHOWN]!r}")
    written = dict.fromkeys(key for key, _ in pairs)
    return annotation, tuple(key for key in written if key not in annotation.keys)


class EndpointAnnotator:
    """Requests annotations under one schema.

    Args:
        config: the model and its parameters.
        schema: the keys to ask for.
        prompts: the beginning of a request about a text, and of one about a response.
    """

    def __init__(
        self, config: AnnotatorConfig, schema: Schema, prompts: tuple[Prompt, Prompt]
    ) -> None:
        self.config = config
        self.schema = schema
        self.prompts = prompts
        self._sampling = config.request
        self._recipes = [
            content_key(
                {
                    "prompt": prompt.id,
                    "model": config.model,
                    "sampling": self._sampling,
                    "schema": schema.model_dump(mode="json"),
                }
            )
            for prompt in prompts
        ]

    def key(self, request: Request) -> str:
        """Return a hash of what determines an answer: prompt, model, sampling, schema, texts."""
        recipe = self._recipes[request.request is not None]
        return content_key([recipe, request.text, request.request, request.earlier])

    def message(self, request: Request) -> str:
        """Return the whole message of a request."""
        prompt = self.prompts[request.request is not None]
        return prompt.about(request.text, request.request, request.earlier)

    async def annotate(self, endpoint: Endpoint, request: Request) -> Answer:
        """Request an annotation; after a failure, ask again and say what was wrong.

        Returns:
            The annotation, or the errors of both attempts.

        Raises:
            EndpointError: no request to this server can succeed.
        """
        messages = [{"role": "user", "content": self.message(request)}]
        answer, sampling = Answer(), self._sampling
        for _ in range(2):
            try:
                reply = await endpoint.chat(messages, **sampling)
            except RequestFailed as error:
                return replace(answer, error=_joined(answer.error, str(error)))
            answer = replace(answer, usage=answer.usage + Usage.of(reply))
            try:
                annotation, dropped = read_answer(reply, self.schema)
            except Unreadable as error:
                answer = replace(answer, error=_joined(answer.error, str(error)))
                messages = [*messages[:1], *_correction(reply, error)]
                sampling = self._constrained()
            else:
                return replace(answer, annotation=annotation, dropped=dropped, error=None)
        return answer

    def _constrained(self) -> dict[str, Any]:
        """Return the second attempt's parameters; a stop at a blank line would cut its JSON."""
        sampling = {name: value for name, value in self._sampling.items() if name != "stop"}
        if "max_tokens" in sampling:
            sampling["max_tokens"] *= 2
        wanted = answer_schema(self.schema)
        if self.config.constrain == "structured_outputs":
            return sampling | {"structured_outputs": {"json": wanted}}
        if self.config.constrain == "response_format":
            form = {"name": "annotation", "schema": wanted, "strict": True}
            return sampling | {"response_format": {"type": "json_schema", "json_schema": form}}
        return self._sampling


def _joined(before: str | None, error: str) -> str:
    return f"{before}; asked again: {error}" if before else error


def _correction(reply: Reply, error: Unreadable) -> list[dict[str, str]]:
    shown = reply.answer[:SHOWN] or "(nothing)"
    ask = f"That could not be used: {error}. Write the tags of the text, and nothing else."
    return [{"role": "assistant", "content": shown}, {"role": "user", "content": ask}]
