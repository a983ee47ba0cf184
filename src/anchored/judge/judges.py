"""Language models as judges: what is asked, in which words, and how one answer becomes a verdict.

Three tasks: the attributes of a text (by any schema; `stories` holds the paper's eight), its
quality from 1 to 10, and which of a prompt's texts say the same, all at once, as in NoveltyBench's
v1.1. The prompts are the files in `prompts/`; their version and hash go with every verdict.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from anchored.annotation import Schema
from anchored.endpoint import Endpoint, Reply, estimated_tokens
from anchored.errors import RequestFailed
from anchored.journal import Row, content_key
from anchored.judge import verdicts
from anchored.judge.verdicts import Unreadable

SHOWN = 300  # characters of an unreadable answer that a failure keeps
_FIELD = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file: its front matter, its text with `{{fields}}`, and the hash of both.

    `max_tokens` bounds the answer; `answer_tokens` is the length it has as a rule.
    """

    name: str
    version: int
    max_tokens: int
    answer_tokens: int
    template: str
    sha256: str

    @property
    def id(self) -> str:
        """Name, version and the start of the hash."""
        return f"{self.name} {self.version} ({self.sha256[:12]})"

    def render(self, fields: Mapping[str, str]) -> str:
        """The text with its fields filled in; a field's own text is never looked at."""
        return _FIELD.sub(lambda match: fields[match[1]], self.template)


@functools.cache
def load_prompt(name: str) -> Prompt:
    """The prompt `prompts/<name>.md` of this package."""
    text = (resources.files("anchored.judge") / f"prompts/{name}.md").read_text("utf-8")
    _, front, template = text.split("---\n", 2)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(template=template.strip(), sha256=digest, **yaml.safe_load(front))


@dataclass(frozen=True)
class Question:
    """One thing to ask a judge.

    `read` makes JSON data of an answer or raises `Unreadable`; `schema` is the JSON schema that a
    second attempt is held to.
    """

    prompt: Prompt
    text: str
    read: Callable[[str], Any]
    schema: Mapping[str, Any]

    def key(self, model: str, sampling: Mapping[str, Any]) -> str:
        """What an answer depends on, hashed: words, prompt, model and sampling."""
        return content_key(
            {
                "text": self.text,
                "prompt": self.prompt.id,
                "schema": self.schema,
                "model": model,
                "sampling": sampling,
            }
        )

    @property
    def estimate(self) -> tuple[int, int]:
        """About how many tokens go in and come out."""
        return estimated_tokens(self.text), self.prompt.answer_tokens


def ask_attributes(text: str, schema: Schema) -> Question:
    """Which value has each key of the schema? The verdict is a list of `{key, value}`."""
    prompt = load_prompt("attributes")
    described = (
        f"- {key.name}: {key.description}"
        + (f"; one of: {', '.join(key.values)}" if key.values else "")
        for key in schema.keys
    )
    fields = {
        "keys": "\n".join(described),
        "form": "\n".join(f"{name}: <value>" for name in schema.names),
        "text": text,
    }
    return Question(
        prompt,
        prompt.render(fields),
        lambda answer: verdicts.read_attributes(answer, schema).rows(),
        verdicts.attributes_schema(schema),
    )


def ask_quality(prompt: str, text: str) -> Question:
    """How good is the text as an answer? The verdict is a whole number from 1 to 10."""
    words = load_prompt("quality")
    rendered = words.render({"prompt": prompt, "text": text})
    return Question(words, rendered, verdicts.read_score, verdicts.score_schema())


def ask_groups(prompt: str, texts: Sequence[str]) -> Question:
    """Which texts say the same? The verdict is a class number a text, from 0."""
    words = load_prompt("grouping")
    answers = (f"BEGIN ANSWER {i}\n{text}\nEND ANSWER {i}" for i, text in enumerate(texts, 1))
    fields = {"prompt": prompt, "count": str(len(texts)), "answers": "\n\n".join(answers)}
    return Question(
        words,
        words.render(fields),
        lambda answer: verdicts.read_partition(answer, len(texts)),
        verdicts.partition_schema(len(texts)),
    )


def sampling_of(prompt: Prompt, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters of a prompt: greedy and bounded, unless `given` says otherwise.

    A given None takes a parameter out, for servers that refuse it.
    """
    wanted = {"temperature": 0, "max_tokens": prompt.max_tokens, **given}
    return {name: value for name, value in wanted.items() if value is not None}


async def verdict(endpoint: Endpoint, question: Question, sampling: Mapping[str, Any]) -> Row:
    """Asks, and once more with the answer constrained to JSON if the first cannot be read.

    The second request carries `response_format` with a `json_schema`, which OpenAI, vLLM, SGLang
    and llama.cpp know. A refusal is not asked again: constrained, it would become an invention.

    Returns:
        The prompt's id, tokens, and `value` with the `answer` it was read from, or `error`.

    Raises:
        EndpointError: no request to this server can succeed.
    """
    spent = {"prompt": question.prompt.id, "prompt_tokens": 0, "completion_tokens": 0}
    problems: list[str] = []
    for constraint in ({}, _constraint(question)):
        try:
            reply = await endpoint.chat(
                [{"role": "user", "content": question.text}], **sampling, **constraint
            )
        except RequestFailed as error:
            problems.append(str(error))
            break
        spent = _added(spent, reply)
        try:
            value = question.read(_answer(reply))
        except Unreadable as error:
            problems.append(f"{error}: {reply.answer[:SHOWN]!r}")
        else:
            return {**spent, "value": value, "answer": reply.answer}
        if _refused(reply):
            problems[-1] = f"refused: {(reply.refusal or reply.answer)[:SHOWN]!r}"
            break
    return {**spent, "error": "; asked again: ".join(problems)}


def _constraint(question: Question) -> dict[str, Any]:
    schema = {"name": question.prompt.name, "schema": question.schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _answer(reply: Reply) -> str:
    """What may be read: whole, and not thought only."""
    if reply.truncated:
        where = "while thinking" if reply.thinking and not reply.answer else "in its answer"
        raise Unreadable(f"ran out of tokens {where}, raise max_tokens")
    if not reply.answer.strip():
        raise Unreadable("no answer")
    return reply.answer


def _refused(reply: Reply) -> bool:
    return bool(
        reply.refusal
        or reply.finish_reason == "content_filter"
        or verdicts.is_refusal(reply.answer)
    )


def _added(spent: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
    """Tokens so far; None as soon as a server leaves a count out."""
    found = dict(spent)
    for name in ("prompt_tokens", "completion_tokens"):
        more = getattr(reply, name)
        found[name] = None if more is None or spent[name] is None else spent[name] + more
    return found
