"""Asks a judge about whole sets of generations: the cost projection, the run and its answers.

All questions are known before the first one is sent, and equal questions are sent once. Every
verdict goes to a journal, so the same command resumes a run that was stopped or failed in part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.progress import Progress

from anchored.annotation import Annotation, Schema
from anchored.data.generations import Generations
from anchored.endpoint import Endpoint, EndpointConfig, blocking, run_all
from anchored.journal import Journal, Row
from anchored.judge.judges import (
    Question,
    ask_attributes,
    ask_groups,
    ask_quality,
    load_prompt,
    sampling_of,
    verdict,
)
from anchored.judge.values import canonical_annotation
from anchored.metrics.noveltybench import Stamp

MILLION = 1_000_000


class JudgeConfig(EndpointConfig):
    """The endpoint, the sampling parameters and the token prices of the judge.

    `sampling` is passed to the server as it is. It overrides the defaults (temperature 0 and
    each prompt's `max_tokens`); null removes a parameter. Prices are per million tokens, in any
    currency.
    """

    sampling: dict[str, Any] = Field(default_factory=dict)
    price_in: float | None = Field(default=None, ge=0)
    price_out: float | None = Field(default=None, ge=0)

    def cost(self, read: int | None, written: int | None) -> float | None:
        """Return the cost of input and output tokens, or None if a count or price is unknown."""
        if None in (read, written, self.price_in, self.price_out):
            return None
        return (read * self.price_in + written * self.price_out) / MILLION  # pyright: ignore

    def key_of(self, question: Question) -> str:
        """Return the question's key in the journal."""
        return question.key(self.model, sampling_of(question.prompt, self.sampling))


@dataclass(frozen=True)
class Inquiry:
    """The questions to ask a judge about generations.

    `schema` has the attributes to name for each text; None for none.
    """

    config: JudgeConfig
    schema: Schema | None = None
    quality: bool = False
    groups: bool = False

    def questions(self, sets: Sequence[Generations]) -> dict[str, Question]:
        """Return every question by its key; equal questions appear once."""
        return {
            self.config.key_of(question): question
            for found in sets
            for prompt, texts in zip(found.prompts, found.texts, strict=True)
            for question in self._of(prompt, texts)
        }

    def _of(self, prompt: str, texts: Sequence[str]) -> Iterator[Question]:
        if self.groups:
            yield ask_groups(prompt, texts)
        for text in texts:
            if self.schema:
                yield ask_attributes(text, self.schema)
            if self.quality:
                yield ask_quality(prompt, text)


@dataclass(frozen=True)
class Answers:
    """The journal's rows of an inquiry's questions, by key."""

    inquiry: Inquiry
    questions: Mapping[str, Question]
    rows: Mapping[str, Row]

    def attributes(self, text: str) -> Annotation | None:
        """Return a text's attributes with canonical values; None if the judge failed."""
        assert self.inquiry.schema is not None
        rows = self._value(ask_attributes(text, self.inquiry.schema))
        return None if rows is None else canonical_annotation(Annotation.from_rows(rows))

    def score(self, prompt: str, text: str) -> int | None:
        """Return the quality of a text, 1 to 10; None if the judge failed."""
        return self._value(ask_quality(prompt, text))

    def partition(self, prompt: str, texts: Sequence[str]) -> list[int] | None:
        """Return one class number per text; None if the judge failed."""
        return self._value(ask_groups(prompt, texts))

    def _value(self, question: Question) -> Any:
        return self.rows[self.inquiry.config.key_of(question)].get("value")

    @property
    def failures(self) -> list[Row]:
        """One row per question without a verdict: `{key, error, prompt, question, ...}`."""
        return [
            {"key": key, **row, "question": self.questions[key].text}
            for key, row in self.rows.items()
            if "error" in row
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the record of the judge for `results.json`: model, settings, questions, cost."""
        config = self.inquiry.config
        read, written = (self._total(name) for name in ("prompt_tokens", "completion_tokens"))
        return {
            "model": config.model,
            "url": config.url,
            "sampling": config.sampling,
            "questions": dict(Counter(row["prompt"] for row in self.rows.values())),
            "failed": len(self.failures),
            "prompt_tokens": read,
            "completion_tokens": written,
            "cost": config.cost(read, written),
        }

    def _total(self, name: str) -> int | None:
        counts = [row[name] for row in self.rows.values()]
        return None if None in counts else sum(counts)


@dataclass(frozen=True, slots=True)
class Plan:
    """The projected cost of an inquiry: questions by prompt, known answers, estimated tokens."""

    questions: Mapping[str, int]
    answered: int
    read: int
    written: int
    cost: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the form that `--dry-run --json` prints."""
        return {
            "questions": dict(self.questions),
            "answered": self.answered,
            "prompt_tokens": self.read,
            "completion_tokens": self.written,
            "cost": self.cost,
        }

    def __str__(self) -> str:
        parts = ", ".join(f"{count:,} {name}" for name, count in self.questions.items())
        line = f"{sum(self.questions.values()):,} questions ({parts}), {self.answered:,} answered "
        line += f"before; about {self.read:,} input and {self.written:,} output tokens"
        return line + ("" if self.cost is None else f", {self.cost:,.3g} at the given prices")


def plan(inquiry: Inquiry, questions: Mapping[str, Question], journal: Journal) -> Plan:
    """Return the projection; tokens are estimated from characters."""
    left = [question for key, question in questions.items() if not answered(journal, key)]
    read = sum(question.estimate[0] for question in left)
    written = sum(question.estimate[1] for question in left)
    return Plan(
        Counter(question.prompt.name for question in questions.values()),
        len(questions) - len(left),
        read,
        written,
        inquiry.config.cost(read, written),
    )


def answered(journal: Journal, key: str) -> bool:
    """Return True if the journal has a verdict, not a failure."""
    row = journal.get(key)
    return row is not None and "error" not in row


def projected(inquiry: Inquiry, sets: Sequence[Generations], journal: Path | None) -> Plan:
    """Return the projected cost of `consult`, without sending a request."""
    with Journal(journal if journal and journal.is_file() else None) as rows:
        return plan(inquiry, inquiry.questions(sets), rows)


def consult(
    inquiry: Inquiry,
    sets: Sequence[Generations],
    journal: Path | None,
    console: Console | None = None,
) -> Answers:
    """Ask the questions that the journal does not answer, and failed ones again.

    Args:
        inquiry: the questions.
        sets: the texts that they are about.
        journal: the file of verdicts; None keeps them in memory.
        console: receives the projected cost and the progress; None shows nothing.

    Raises:
        EndpointError: no request can succeed; the answers so far are in the journal.
        DataError: the journal is damaged or in use.
    """
    questions = inquiry.questions(sets)
    with Journal(journal) as rows:
        if console:
            line = f"judge {inquiry.config.model}: {plan(inquiry, questions, rows)}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        left = {key: q for key, q in questions.items() if not answered(rows, key)}
        with Progress(
            console=console, transient=True, disable=not (console and console.is_terminal)
        ) as bar:
            task = bar.add_task("judging", total=len(left))
            blocking(_ask(inquiry.config, left, rows, lambda: bar.advance(task)))
        return Answers(inquiry, questions, {key: rows[key] for key in questions})


async def _ask(
    config: JudgeConfig,
    questions: Mapping[str, Question],
    journal: Journal,
    step: Callable[[], None],
) -> None:
    def keep(item: tuple[str, Question], row: Row) -> None:
        journal.put(item[0], row)
        step()

    if not questions:
        return
    async with Endpoint(config) as endpoint:
        await run_all(
            questions.items(),
            lambda item: verdict(endpoint, item[1], sampling_of(item[1].prompt, config.sampling)),
            keep,
            at_once=2 * config.concurrency,
        )


class JudgedPartition:
    """NoveltyBench v1.1: a judge groups all texts of a prompt at once."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.stamp = Stamp("1.1", judge_name(answers, "grouping"))

    def partition(self, found: Generations, p: int) -> list[int] | None:
        """Return one class number per text of prompt `p`; None if the judge failed."""
        return self._answers.partition(found.prompts[p], found.texts[p])


def judge_name(answers: Answers, prompt: str) -> str:
    """Return the judge and its prompt, as they are shown beside a figure."""
    return f"judge {answers.inquiry.config.model} by prompt {load_prompt(prompt).id}"
