"""Implements `anchored schema suggest`: finds the keys that vary in a corpus and across prompts.

The candidates are the keys of the existing annotations or, if there are none, the keys of a schema
that the offline annotator can read on a sample. Keys are evaluated, not invented: new ones need a
reader of the corpus.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from rich.console import Console

from anchored.annotation import Annotation, Key, Schema
from anchored.annotators.offline import OfflineAnnotator
from anchored.config import Config
from anchored.data.readers import SourceConfig, load_schema
from anchored.errors import DataError
from anchored.files import atomic_write
from anchored.formatting import MISSING, Cells, number, percent, table_of
from anchored.tags.observations import Part
from anchored.tags.prompts import PromptShare, PromptShares, prompt_shares
from anchored.tags.quality import scan
from anchored.tags.statistics import KeyStatistics, TagCounter

RARE = 0.05
CONSTANT = 0.9
UNIQUE = 0.5
DECIDED = 0.5
_CLOSED = 30  # most values of a closed vocabulary
_CLOSED_COUNT, _CLOSED_SHARE = 5, 0.95


class SuggestConfig(Config):
    """Configuration of `anchored schema suggest`."""

    corpus: SourceConfig
    sft: SourceConfig | None = Field(default=None, description="rows with prompts and responses")
    schema_name: str = Field(default="general", description="keys to try on rows without tags")
    sample: int = Field(
        default=2000, ge=50, description="number of texts, and of prompted rows, to sample"
    )
    seed: int = 0


@dataclass(frozen=True)
class Candidate:
    """One key, its statistics and the verdict.

    Attributes:
        key: the key as a schema would define it.
        statistics: statistics over the sampled texts.
        top_share: share of its tags that have the most frequent value.
        once_share: share of its tags whose value occurs exactly once.
        prompt: how far prompts decide it; None without prompted rows.
        verdict: keep, or the first that applies: rare (coverage below `RARE`), constant
            (`top_share` of at least `CONSTANT`), near-unique (`once_share` of at least `UNIQUE`),
            decided by the prompt (decided, or named minus chance, of at least `DECIDED`).
    """

    key: Key
    statistics: KeyStatistics
    top_share: float
    once_share: float
    prompt: PromptShare | None
    verdict: str

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        found = {name: getattr(self.statistics, name) for name in ("coverage", "entropy")}
        found |= {"miller_madow": self.statistics.miller_madow}
        found |= {"distinct": self.statistics.distinct, "top_share": self.top_share}
        prompt = self.prompt and asdict(self.prompt)
        return {**found, "once_share": self.once_share, "prompt": prompt, "verdict": self.verdict}


@dataclass(frozen=True)
class Suggestion:
    """All candidate keys, in order of first appearance; `schema` has those to keep."""

    source: str
    texts: int
    candidates: tuple[Candidate, ...]

    @property
    def schema(self) -> Schema | None:
        """The keys to keep, or None if there are none."""
        kept = tuple(one.key for one in self.candidates if one.verdict == "keep")
        return Schema(name="suggested", keys=kept) if kept else None

    def data(self) -> dict[str, Any]:
        """Return the figures as JSON data."""
        schema = self.schema
        return {
            "corpus": self.source,
            "texts": self.texts,
            "keys": {one.key.name: one.data() for one in self.candidates},
            "schema": schema and schema.model_dump(mode="json"),
        }


def run(
    config: SuggestConfig, out: Path | None = None, console: Console | None = None
) -> Suggestion:
    """Measure the keys, print the verdicts, and write the schema to `out`.

    Raises:
        DataError: a row is invalid, the corpus has no text, or no key is worth keeping.
        ConfigError: the schema cannot be loaded or read offline.
    """
    found = suggest(config)
    (console or Console()).print(_table(found))
    if out is not None:
        if found.schema is None:
            raise DataError(f"{found.source}: no key is worth keeping; {out} is not written")
        atomic_write(out, schema_yaml(found))
    return found


def suggest(config: SuggestConfig) -> Suggestion:
    """Return the keys of a corpus with their verdicts; see `run`."""
    schema = load_schema(config.schema_name)
    parts = scan(config.corpus, config.sample, config.seed).parts.items()
    if not parts:
        raise DataError(f"{config.corpus.path}: no text")
    tagged = [part for part in parts if part.annotation is not None]
    annotator = OfflineAnnotator.fit(schema, [p.text for p in parts]) if not tagged else None
    texts = tagged or _annotated(parts, annotator)
    asked = _asked(config, annotator, [part.text for part in parts], schema)
    counter = TagCounter()
    for part in texts:
        counter.add(part.annotation or Annotation())
    keys = counter.statistics().keys
    candidates = (_candidate(name, counter, texts, schema, asked) for name in keys)
    return Suggestion(config.corpus.path, len(texts), tuple(candidates))


def _annotated(parts: Sequence[Part], annotator: OfflineAnnotator | None) -> list[Part]:
    """Return the parts, with the annotator's tags for those that have none."""
    if annotator is None or not parts:
        return [part for part in parts if part.annotation is not None]
    found = annotator.annotate_batch([part.text for part in parts])
    return [
        part if part.annotation is not None else replace(part, annotation=annotation)
        for part, annotation in zip(parts, found, strict=True)
    ]


def _asked(
    config: SuggestConfig, annotator: OfflineAnnotator | None, texts: list[str], schema: Schema
) -> PromptShares | None:
    if config.sft is None:
        return None
    parts = scan(config.sft, config.sample, config.seed).asked.items()
    if not any(part.annotation is not None for part in parts):
        annotator = annotator or OfflineAnnotator.fit(schema, texts)
    parts = _annotated(parts, annotator)
    if len({part.prompt for part in parts}) < 2:
        raise DataError(f"{config.sft.path}: fewer than two prompts with a response")
    annotations = [part.annotation or Annotation() for part in parts]
    return prompt_shares([part.prompt for part in parts], annotations, config.seed)


def _candidate(
    name: str,
    counter: TagCounter,
    texts: Sequence[Part],
    schema: Schema,
    asked: PromptShares | None,
) -> Candidate:
    statistics, counts = counter.statistics().keys[name], Counter(counter.counts(name))
    shares = statistics.top[0][1] / counts.total(), statistics.once / counts.total()
    prompt = asked.keys.get(name) if asked else None
    verdict = _verdict(statistics.coverage, *shares, prompt)
    most = max(len(part.annotation.values(name)) for part in texts if part.annotation is not None)
    return Candidate(_key(name, counts, most, schema), statistics, *shares, prompt, verdict)


def _verdict(
    coverage: float, top_share: float, once_share: float, prompt: PromptShare | None
) -> str:
    if coverage < RARE:
        return "rare"
    if top_share >= CONSTANT:
        return "constant"
    if once_share >= UNIQUE:
        return "near-unique"
    if prompt and max(prompt.decided or 0, prompt.named - prompt.named_by_chance) >= DECIDED:
        return "decided by the prompt"
    return "keep"


def _key(name: str, counts: Counter[str], most: int, schema: Schema) -> Key:
    """Return the schema's key, else a new one, closed if few values make up nearly all tags."""
    if (known := schema.key(name)) is not None:
        return known
    often = [value for value, count in counts.most_common() if count >= _CLOSED_COUNT]
    closed = sum(counts[value] for value in often) >= _CLOSED_SHARE * counts.total()
    examples = ", ".join(value for value, _ in counts.most_common(3))
    return Key(
        name=name,
        description=f"{name.replace('_', ' ')}, such as {examples}",
        values=tuple(often) if closed and len(often) <= _CLOSED else None,
        many=most > 1,
    )


def schema_yaml(found: Suggestion) -> str:
    """Return the keys to keep as a schema file, with verdicts and figures in comments on top."""
    assert found.schema is not None
    lines = [f"Suggested from {found.texts:,} texts; reword the descriptions for your annotator."]
    lines += [f"{one.key.name}: {one.verdict} ({_figures(one)})" for one in found.candidates]
    data = found.schema.model_dump(mode="json", exclude_defaults=True)
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in lines) + body


def _figures(one: Candidate) -> str:
    names = ("coverage", "entropy", "distinct", "top value", "once", "decided", "named")
    return ", ".join(f"{n} {v}" for n, v in zip(names, _cells(one)[1:-1], strict=True))


def _cells(one: Candidate) -> Cells:
    prompt = one.prompt
    decided = MISSING if prompt is None or prompt.decided is None else percent(prompt.decided)
    return (
        one.key.name,
        percent(one.statistics.coverage),
        number(one.statistics.entropy),
        f"{one.statistics.distinct:,}",
        percent(one.top_share),
        percent(one.once_share),
        decided,
        MISSING if prompt is None else percent(prompt.named),
        one.verdict,
    )


def _table(found: Suggestion) -> Any:
    head = ("key", "coverage", "entropy", "distinct", "top value", "once", "decided", "named")
    intro = (
        "Top value, once: shares of the tags. Decided, named: by the prompt; see "
        "`anchored inspect --tags`."
    )
    title = f"{Path(found.source).name}: {found.texts:,} texts"
    return table_of(title, intro, (*head, "verdict"), list(map(_cells, found.candidates)))
