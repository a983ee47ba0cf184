"""`anchored inspect --tags`: show the quality of a corpus's tags as tables, HTML and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from anchored.escape import shorten
from anchored.formatting import MISSING, Cells, number, percent, table_of
from anchored.inspection.view import COVERAGE_INTRO, TagTable, View, show, statistics_cells
from anchored.tags.quality import TagQuality, TagsConfig, measure
from anchored.tags.variants import Group, canonical_map

_GROUPS_SHOWN = 5


def run(
    config: TagsConfig,
    canonical: Path | None = None,
    html: Path | None = None,
    as_json: bool = False,
) -> None:
    """Measure and show the tags of a corpus.

    Args:
        config: what to read.
        canonical: file to write the proposed canonical values to.
        html: file to write the view to, as a page.
        as_json: print data instead of the view.

    Raises:
        DataError, ConfigError: see `measure`.
    """
    quality = measure(config, Console(stderr=True))
    if canonical is not None:
        canonical_map(quality.variants).save(canonical)
    show(view_of(quality), html, as_json)


def view_of(quality: TagQuality) -> View:
    """Return the view of the measured quality."""
    title = f"{Path(quality.source).name}: {quality.statistics.annotations:,} annotations"
    sections = list(_sections(quality))
    notes = [quality.note] if quality.note else []
    tables = [table_of(s.title, s.intro, s.head, s.rows) for s in sections]
    return View(
        title=title,
        terminal=[*tables, *map(Text, notes)],
        template="tags",
        page={"tables": sections, "notes": notes},
        data=quality.data(),
    )


def _sections(quality: TagQuality) -> Iterator[TagTable]:
    head, rows = statistics_cells(quality.statistics)
    yield TagTable("Breadth", COVERAGE_INTRO, head, rows)
    if quality.variants:
        yield _variants(quality)
    if quality.informativeness:
        yield _informativeness(quality)
    if quality.prompts:
        yield _prompts(quality)
    if quality.agreement:
        yield _agreement(quality)


def _variants(quality: TagQuality) -> TagTable:
    rows = [
        (
            key,
            f"{len(groups):,}",
            f"{sum(v.count for g in groups for v in g.variants):,}",
            "; ".join(map(_group, groups[:_GROUPS_SHOWN])),
        )
        for key, groups in quality.variants.items()
    ]
    intro = (
        "Values that may mean the same, and how many tags would change. This is a proposal: check "
        "it before you apply it."
    )
    return TagTable("Variants", intro, ("key", "groups", "tags", "most frequent groups"), rows)


def _group(group: Group) -> str:
    variants = ", ".join(f"{shorten(v.value, 40)} ({v.why})" for v in group.variants[:4])
    more = ", ..." if len(group.variants) > 4 else ""
    return f"{shorten(group.canonical, 40)} ← {variants}{more}"


def _informativeness(quality: TagQuality) -> TagTable:
    found = quality.informativeness
    assert found is not None
    rows: list[Cells] = [
        ("all keys", percent(found.r2), "tags of other texts: " + percent(found.by_chance))
    ]
    rows += [(key, percent(r2), "") for key, r2 in found.by_key.items()]
    intro = (
        f"Held-out share of the variance of {found.texts:,} texts' embeddings ({found.embedder}) "
        "that a ridge regression on the tags explains, for all keys and for each key alone."
    )
    return TagTable("Informativeness", intro, ("key", "explained", "by chance"), rows)


def _prompts(quality: TagQuality) -> TagTable:
    found = quality.prompts
    assert found is not None
    rows = [
        (
            key,
            MISSING if share.decided is None else percent(share.decided),
            number(share.p, 3),
            percent(share.named),
            percent(share.named_by_chance),
        )
        for key, share in found.keys.items()
    ]
    intro = (
        f"{found.rows:,} prompted rows, {found.groups:,} {found.grouped_by}s. Decided: share of "
        "the value's entropy that the prompt determines, corrected for chance; a lower bound if "
        "prompts were clustered. Named: tags whose words occur in the prompt."
    )
    head = ("key", "decided", "p", "named", "named by chance")
    return TagTable("What prompts decide", intro, head, rows)


def _agreement(quality: TagQuality) -> TagTable:
    found = quality.agreement
    assert found is not None
    rows = [
        (
            key,
            f"{one.pairs:,}",
            *map(percent, (*one.coverage, one.exact, one.jaccard)),
            MISSING if one.kappa is None else number(one.kappa),
        )
        for key, one in found.keys.items()
    ]
    intro = (
        f"{found.texts:,} texts that both annotators tagged. Exact: same values where either has "
        "the key. Kappa: Cohen's, with a missing key as a category; for keys that never repeat."
    )
    head = ("key", "texts", "coverage 1", "coverage 2", "exact", "Jaccard", "kappa")
    return TagTable("Agreement", intro, head, rows)
