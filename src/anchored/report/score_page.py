"""The reports of `anchored score` and `anchored evaluate`: tables, plots, and the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

from anchored.files import atomic_write
from anchored.formatting import interval, number
from anchored.metrics.table import says
from anchored.report import collapse_table, score_table
from anchored.report.collapsed import collapsed_into, undone
from anchored.report.drawing import marker, style_of
from anchored.report.page import (
    Row,
    Table,
    configuration,
    drawn,
    report,
    write_largest,
)
from anchored.report.plots import course_plot, entropy_plot, top_values_plot, trade_off_plot
from anchored.report.samples import columns, samples
from anchored.report.score_table import (
    DIFFERENCE_COLUMNS,
    caption,
    described,
    differences,
    finding,
    metrics,
    pairs,
    power_note,
    short_name,
    verdicts,
)
from anchored.report.tables import Results, model_label
from anchored.scoring.falls import Fall, Falls, falls
from anchored.scoring.shown import COMPARISONS_SHOWN, Shown

_SORTED = 300  # prompts in the table of all prompts
_DIRECTIONS = (("fell", 1), ("same", 0), ("rose", -1))
_UNFOLDED = 3  # number of comparisons or pairs of sets that are not folded away
_TRADE_OFFS = (  # metrics on the horizontal and the vertical axis
    ("quality", "distinct_k"),
    ("quality", "semantic_entropy"),
    ("adoption", "semantic_entropy"),
    ("adoption", "dissimilarity"),
)


def report_score(results: Results, shown: Shown, out: Path | None, console: Console) -> None:
    """Write table.md and report.html into `out`, if given, and print the tables.

    Raises:
        OSError: `out` cannot be written.
    """
    if out is not None:
        atomic_write(out / "table.md", score_table.markdown(results))
        write_score_report(results, shown, out / "report.html")
    for printed in score_table.rich_tables(results, console.width):
        console.print(printed)
    if out is not None:
        console.print(f"The report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def report_evaluation(
    results: Results, shown: Mapping[str, Shown], out: Path, console: Console
) -> None:
    """Write table.md and one page per benchmark into `out`, and print the tables.

    Args:
        results: the results of all benchmarks.
        shown: the texts on each benchmark's page.
        out: output folder; `report.html` is the first benchmark's page, and `report-<name>.html`
            the page of each other benchmark.
        console: console to print the tables on.

    Raises:
        OSError: `out` cannot be written.
    """
    benchmarks = results["benchmarks"]
    for place, (name, one) in enumerate(benchmarks.items()):
        page = f"report-{name}.html" if place else "report.html"
        write_score_report({**results, **one}, shown[name], out / page)
    sections = (f"## {name}\n\n{collapse_table.markdown(one)}" for name, one in benchmarks.items())
    atomic_write(out / "table.md", "\n".join(sections))
    for name, one in benchmarks.items():
        console.print(f"{name}:", style="bold", highlight=False)
        for printed in collapse_table.rich_tables(one, console.width):
            console.print(printed)
    precisions = (f"{name} {one['dtype'] or 'unknown'}" for name, one in results["models"].items())
    console.print(f"Sampled in: {', '.join(precisions)}", highlight=False)
    console.print(
        f"Every figure and difference: {out / 'table.md'}", highlight=False, soft_wrap=True
    )
    console.print(f"The report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def write_score_report(results: Results, shown: Shown, path: Path) -> None:
    """Write the self-contained report of these results to `path`.

    Texts are cut shorter if the page would be too large.

    Raises:
        OSError: `path` cannot be written.
    """
    write_largest((render(results, shown, chars) for chars in (4_000, 1_000, 250, 0)), path)


def render(results: Results, shown: Shown, chars: int = 4_000) -> str:
    """Return the page, with at most `chars` characters of each text; without texts if 0."""
    first, *others = results["models"]
    fell = falls(results)
    sections = {
        "prompts": _fallen(results, shown, fell) if chars else [],
        "figures": _figures(results),
        "equal": _equal(results),
        "between": score_table.between_rows(results),
        "differences": list(_differences(results)),
        "undone": undone(results),
        "attributes": drawn(
            {"entropy": partial(entropy_plot, results), "top": partial(top_values_plot, results)}
        ),
        "collapsed": [
            (model_label(name), found)
            for name in others[:_UNFOLDED]
            if (found := collapsed_into(results, first, name))
        ],
        "trade_offs": drawn(
            {
                f"{up} against {across}": partial(trade_off_plot, results, across=across, up=up)
                for across, up in _TRADE_OFFS
            }
        ),
        "texts": samples(shown, results["models"]) if chars else [],
        "making": _making(results),
    }
    return report(
        "score",
        sections,
        cards=[
            _card(results, one, place, shown if chars else None) for place, one in enumerate(fell)
        ],
        course=drawn({"course": partial(course_plot, results)}),
        results=results,
        version=_version(results),
        lede=_lede(results, fell),
        caption=caption(results),
        power=power_note(results).replace("`", ""),
        unfolded=_UNFOLDED,
        first=model_label(first),
        shown=shown,
        chars=chars,
    )


def _lede(results: Results, fell: Sequence[Falls]) -> str:
    """Return the verdicts or, where each comparison has a card, the one on the largest fall."""
    sentences = list(verdicts(results))
    compared = [(name, other) for name, other, _ in pairs(results)]
    if len(compared) < 2 or len(sentences) != len(compared) or not fell:
        return finding(results)
    return sentences[compared.index((fell[0].name, fell[0].other or ""))]


def _card(results: Results, one: Falls, place: int, shown: Shown | None) -> dict[str, Any]:
    """Return what happened to one set, how sure that is, and to which prompts it happened.

    The prompts are links if their texts are `shown`.
    """
    linked = shown and any((f.name, f.other) == (one.name, one.other) for f in shown.fallen)
    model = results["models"][one.name]
    said = interval(model["intervals"].get(one.metric))
    if one.other:
        of = results["comparisons"][one.name]["against"][one.other].get(one.metric)
        ((_, cells),) = differences({one.metric: of}, [one.metric]) if of else [("", [])]
        said = f"difference {cells[0]}, {_sure(of)}" if of else ""
    return {
        "name": model_label(one.name),
        "other": one.other and model_label(one.other),
        "marker": Markup(marker(style_of(one.name, results["models"]), 16, 5)),
        "metric": one.metric,
        "before": number(results["models"][one.other][one.metric]) if one.other else None,
        "after": number(model[one.metric]),
        "said": said,
        "counts": [(word, one.count(sign)) for word, sign in _DIRECTIONS] if one.other else [],
        "picks": [
            {
                **_row(fall),
                "kind": _kind(kind, one.other),
                "target": _target(place, kind) if linked else "",
            }
            for kind, fall in one.picks.items()
        ],
    }


def _sure(difference: Mapping[str, Any]) -> str:
    adjusted = next((difference[n] for n in ("p_adjusted", "p_holm") if n in difference), None)
    if adjusted is None:
        return "95% interval"
    return f"adjusted p {'< 0.001' if adjusted < 0.001 else f'= {adjusted:.3f}'}"


def _row(fall: Fall) -> dict[str, Any]:
    digits = 0 if all(float(x).is_integer() for x in (fall.before or 0, fall.after)) else 2
    return {
        "prompt": fall.prompt,
        "before": None if fall.before is None else number(fall.before, digits),
        "after": number(fall.after, digits),
    }


def _kind(kind: str, other: str | None) -> str:
    return kind if other else {"worst": "least", "best": "most"}.get(kind, kind)


def _target(place: int, kind: str) -> str:
    return f"fell-{place + 1}-{kind}"


def _fallen(results: Results, shown: Shown, found: Sequence[Falls]) -> list[dict[str, Any]]:
    """Return, for each comparison shown, its prompts with their texts, and all prompts sorted."""
    parts = []
    for place, one in enumerate(found[:COMPARISONS_SHOWN]):
        mine = [f for f in shown.fallen if (f.name, f.other) == (one.name, one.other)]
        parts.append(
            {
                "title": title_of(one),
                "prompts": [
                    {
                        **_row(one.picks[fallen.kind]),
                        "kind": _kind(fallen.kind, one.other),
                        "target": _target(place, fallen.kind),
                        "columns": columns(
                            fallen.shown, _target(place, fallen.kind), results["models"]
                        ),
                    }
                    for fallen in mine
                ],
                "all": [_row(fall) for fall in one.prompts[:_SORTED]],
                "of": len(one.prompts),
            }
        )
    return parts


def title_of(one: Falls) -> str:
    """Return the heading of a comparison."""
    against = f" against {short_name(one.other)}" if one.other else ""
    return f"{short_name(one.name)}{against}"


def _equal(results: Results) -> dict[str, Any] | None:
    """Return the figures and differences of the texts' first words."""
    cut = results.get("at_equal_length")
    if not cut:
        return None
    inner = {**results, **cut}
    return {
        "words": cut["words"],
        "lede": finding(inner),
        "notes": cut["notes"],
        "tables": [_figures(inner)["table"], *_differences(inner)],
    }


def _version(results: Results) -> str:
    return f"anchored {results['versions'].get('anchored', '')}".rstrip()


def _figures(results: Results) -> dict[str, Any]:
    rows = [Row(metric, cells) for metric, cells in score_table.figures(results)]
    head = ("", *map(short_name, results["models"]))
    return {
        "table": Table("Figures by set", head, rows, "figures"),
        "terms": [(row.heading, said) for row in rows if (said := says(row.heading))],
    }


def _differences(results: Results) -> Iterator[Table]:
    order = metrics(results)
    for name, other, found in pairs(results):
        rows = [Row(metric, cells) for metric, cells in differences(found, order)]
        title = f"{short_name(name)} minus {short_name(other)}"
        yield Table(title, ("", *DIFFERENCE_COLUMNS), rows, "figures")


def _making(results: Results) -> dict[str, Any]:
    files = {
        f"{short_name(name)}": f"{model['file']}, sha256 {model['sha256']}"
        for name, model in results["models"].items()
        if "file" in model
    }
    facts = {
        **{name: described(backend) for name, backend in results["backends"].items() if backend},
        **files,
        "seeds": ", ".join(map(str, results["seeds"])),
        **{f"{name} version": version for name, version in results["versions"].items()},
    }
    return {"facts": list(facts.items()), "config": configuration(results)}
