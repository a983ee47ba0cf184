"""Progress of an annotation run: counts, speed, tokens, cost and time left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from anchored.annotators.by_endpoint import AnnotatorConfig, Answer, Usage

EVERY = 60.0  # seconds between two lines if there is no terminal


@dataclass
class Meter:
    """The counts of one run over `total` texts.

    `reused` texts were answered by an earlier run or for an equal text.
    """

    total: int
    now: Callable[[], float] = monotonic
    done: int = 0
    reused: int = 0
    failed: int = 0
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self._start = self.now()

    def answered(self, usage: Usage, failed: bool) -> None:
        """Count a text that was sent to the model."""
        self.done += 1
        self.failed += failed
        self.usage += usage

    def repeated(self, failed: bool = False) -> None:
        """Count a text whose answer was known already."""
        self.done += 1
        self.failed += failed
        self.reused += not failed

    def add(self, other: Meter) -> None:
        """Add the counts of another process."""
        self.done += other.done
        self.reused += other.reused
        self.failed += other.failed
        self.usage += other.usage

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return max(self.now() - self._start, 1e-9)

    @property
    def rate(self) -> float:
        """Texts sent to the model per second."""
        return (self.done - self.reused) / self.seconds

    def line(self) -> str:
        """Return the counts, speed and time left as one line."""
        tokens = (self.usage.prompt_tokens + self.usage.completion_tokens) / self.seconds
        cached = self.usage.cached_tokens / max(1, self.usage.prompt_tokens)
        parts = [
            f"{self.done:,} of {self.total:,} chunks",
            f"{self.rate:,.0f}/s",
            f"{tokens:,.0f} tokens/s, {cached:.0%} cached",
            f"{self.reused:,} reused",
            f"{self.failed:,} failed",
            f"{duration((self.total - self.done) / self.rate)} left" if self.rate else "",
        ]
        return " · ".join(filter(None, parts))


class Display:
    """Shows a meter's line: live in a terminal, otherwise every `EVERY` seconds."""

    def __init__(self, meter: Meter, console: Console) -> None:
        self._meter, self._console = meter, console
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        hidden = not console.is_interactive
        self.progress = Progress(*columns, console=console, transient=True, disable=hidden)
        self._task = self.progress.add_task("", total=max(1, meter.total))
        self._next = meter.now() + (EVERY if hidden else 0)
        self._hidden = hidden

    def update(self) -> None:
        """Refresh the line; call this after each text."""
        if (now := self._meter.now()) < self._next:
            return
        if self._hidden:
            self._console.print(self._meter.line(), highlight=False, soft_wrap=True)
            self._next = now + EVERY
        else:
            line = self._meter.line()
            self.progress.update(self._task, completed=self._meter.done, description=line)
            self._next = now + 0.2


@dataclass(frozen=True, slots=True)
class Projection:
    """Tokens, time and cost of a whole corpus, projected from a sample of its texts.

    `seconds` assumes the rate of the sample; None if all its answers were known already.
    """

    chunks: int
    sampled: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    cost: float | None

    @classmethod
    def of(
        cls, answers: Sequence[Answer], meter: Meter, chunks: int, config: AnnotatorConfig
    ) -> Projection:
        """Scale a sample's answers to `chunks` texts."""
        scale = chunks / max(1, len(answers))
        read = round(sum(answer.usage.prompt_tokens for answer in answers) * scale)
        written = round(sum(answer.usage.completion_tokens for answer in answers) * scale)
        seconds = chunks / meter.rate if meter.rate else None
        cost = config.cost(read, written)
        return cls(chunks, len(answers), meter.failed, read, written, seconds, cost)

    def __str__(self) -> str:
        time = "" if self.seconds is None else f", {duration(self.seconds)}"
        cost = "" if self.cost is None else f", {self.cost:,.2f} at the given prices"
        return (
            f"{self.chunks:,} chunks: {self.prompt_tokens:,} input tokens, "
            f"{self.completion_tokens:,} output tokens{time}{cost} "
            f"(from {self.sampled:,} chunks, {self.failed:,} failed)"
        )


def duration(seconds: float) -> str:
    """Return a duration in the largest fitting unit: `45 s`, `12 min`, `3.5 h`, `2.0 days`."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds / size:,.{digits}f} {unit}"
    return f"{seconds:,.0f} s"
