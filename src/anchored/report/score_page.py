"""The reports of `anchored score` and `anchored evaluate`: tables, plots, and the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from anchored.files import atomic_write
from anchored.metrics.table import METRICS
from anchored.report import collapse_table, score_table
from anchored.report.collapsed import collapsed_into, undone
from anchored.report.page import (
    Row,
    Table,
    configuration,
    drawn,
    report,
    write_largest,
)
from anchored.report.plots import entropy_plot, top_values_plot, trade_off_plot
from anchored.report.samples import samples
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
)
from anchored.report.tables import Results, model_label
from anchored.scoring.shown import Shown

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
    for printed in score_table.rich_tables(results):
        console.print(printed)


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
        for printed in collapse_table.rich_tables(one):
            console.print(printed)
    precisions = (f"{name} {one['dtype'] or 'unknown'}" for name, one in results["models"].items())
    console.print(f"Sampled in: {', '.join(precisions)}", highlight=False)
    console.print(f"Every figure and difference: {out / 'table.md'}", highlight=False)


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
    sections = {
        "figures": _figures(results),
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
        results=results,
        version=_version(results),
        lede=finding(results),
        caption=caption(results),
        power=power_note(results).replace("`", ""),
        unfolded=_UNFOLDED,
        first=model_label(first),
        shown=shown,
        chars=chars,
    )


def _version(results: Results) -> str:
    return f"anchored {results['versions'].get('anchored', '')}".rstrip()


def _figures(results: Results) -> dict[str, Any]:
    rows = [Row(metric, cells) for metric, cells in score_table.figures(results)]
    head = ("", *map(short_name, results["models"]))
    return {
        "table": Table("Figures by set", head, rows, "figures"),
        "terms": [(name, METRICS[name].says) for name in metrics(results) if name in METRICS],
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
