"""Questions to language models as judges, and how an answer becomes a verdict.

There are three tasks: to name the attributes of a text (by any schema; `stories` has the paper's
eight), to rate its quality from 1 to 10, and to group a prompt's texts by content, all at once, as
in NoveltyBench v1.1. The prompts are the files in `prompts/`. Every verdict records the prompt's
version and hash.
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

    `max_tokens` limits the answer; `answer_tokens` is its usual length.
    """

    name: str
    version: int
    max_tokens: int
    answer_tokens: int
    template: str
    sha256: str

    @property
    def id(self) -> str:
        """Name, version and the first digits of the hash."""
        return f"{self.name} {self.version} ({self.sha256[:12]})"

    def render(self, fields: Mapping[str, str]) -> str:
        """Return the text with its fields filled in; fields are not expanded in filled-in text."""
        return _FIELD.sub(lambda match: fields[match[1]], self.template)


@functools.cache
def load_prompt(name: str) -> Prompt:
    """Load the prompt `prompts/<name>.md` of this package."""
    text = (resources.files("anchored.judge") / f"prompts/{name}.md").read_text("utf-8")
    _, front, template = text.split("---\n", 2)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(template=template.strip(), sha256=digest, **yaml.safe_load(front))


@dataclass(frozen=True)
class Question:
    """One question to a judge.

    `read` parses an answer to JSON data or raises `Unreadable`. `schema` is the JSON schema that
    constrains a second attempt.
    """

    prompt: Prompt
    text: str
    read: Callable[[str], Any]
    schema: Mapping[str, Any]

    def key(self, model: str, sampling: Mapping[str, Any]) -> str:
        """Return a hash of all that an answer depends on: text, prompt, model and sampling."""
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
        """Estimated numbers of input and output tokens."""
        return estimated_tokens(self.text), self.prompt.answer_tokens


def ask_attributes(text: str, schema: Schema) -> Question:
    """Ask for the value of each key of the schema; the verdict is a list of `{key, value}`."""
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
    """Ask for the quality of the text as an answer; the verdict is an integer from 1 to 10."""
    words = load_prompt("quality")
    rendered = words.render({"prompt": prompt, "text": text})
    return Question(words, rendered, verdicts.read_score, verdicts.score_schema())


def ask_groups(prompt: str, texts: Sequence[str]) -> Question:
    """Ask which texts say the same; the verdict is one class number per text, from 0."""
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
    """Return the sampling parameters of a prompt: greedy and limited, overridden by `given`.

    None in `given` removes a parameter, for servers that reject it.
    """
    wanted = {"temperature": 0, "max_tokens": prompt.max_tokens, **given}
    return {name: value for name, value in wanted.items() if value is not None}


async def verdict(endpoint: Endpoint, question: Question, sampling: Mapping[str, Any]) -> Row:
    """Ask a question; if the answer is unreadable, ask again with constrained decoding.

    The second request has a `response_format` with a `json_schema`, which OpenAI, vLLM, SGLang and
    llama.cpp support. A refusal is not repeated, since a constrained answer would be invented.

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
    """Return the answer's text, which must be complete and more than thoughts."""
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
    """Add a reply's tokens to the counts; a count becomes None if the server leaves it out."""
    found = dict(spent)
    for name in ("prompt_tokens", "completion_tokens"):
        more = getattr(reply, name)
        found[name] = None if more is None or spent[name] is None else spent[name] + more
    return found
