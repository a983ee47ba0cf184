"""`report.html` of `anchored score`: the tables, what they look like, and the texts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from anchored.escape import escape
from anchored.metrics.table import METRICS
from anchored.report.collapsed import collapsed_into, undone
from anchored.report.page import (
    Row,
    Section,
    configuration,
    definitions,
    figure,
    folded,
    report,
    table,
    write_largest,
)
from anchored.report.plots import entropy_plot, top_values_plot, trade_off_plot
from anchored.report.samples import samples
from anchored.report.score_table import (
    DIFFERENCE_COLUMNS,
    caption,
    described,
    differences,
    figures,
    finding,
    metrics,
    pairs,
    power_note,
    short_name,
)
from anchored.report.tables import Results, model_label
from anchored.scoring.shown import Shown

TITLE = "How diverse are these texts?"
_UNFOLDED = 3  # comparisons, or pairs of sets, that are shown at once
_TRADE_OFFS = (  # what is given up across, what is won up
    ("quality", "distinct_k"),
    ("quality", "semantic_entropy"),
    ("adoption", "semantic_entropy"),
    ("adoption", "dissimilarity"),
)


def write_score_report(results: Results, shown: Shown, path: Path) -> None:
    """Write the self-contained report of these results to `path`.

    Texts are cut shorter where the page would be too large.

    Raises:
        OSError: `path` cannot be written.
    """
    write_largest((render(results, shown, chars) for chars in (4_000, 1_000, 250, 0)), path)


def render(results: Results, shown: Shown, chars: int = 4_000) -> str:
    """The page as text, with so many characters of each text."""
    sections = [
        _figures(results),
        _differences(results),
        _undone(results),
        _attributes(results),
        _collapsed(results),
        _trade_offs(results),
        samples(shown, results["models"], chars),
        _making(results),
    ]
    return report(TITLE, _header(results), sections)


def _header(results: Results) -> str:
    count = len(results["models"])
    meta = f"{count} set{'s' if count > 1 else ''} of texts · made by {_version(results)}"
    said = finding(results)
    lede = f'<p class="lede">{escape(said)}</p>' if said else ""
    return (
        f'<p class="overline">anchored · {escape(results["command"])}</p><h1>{TITLE}</h1>'
        f'{lede}<p class="meta">{escape(meta)}</p>'
    )


def _version(results: Results) -> str:
    return f"anchored {results['versions'].get('anchored', '')}".rstrip()


def _figures(results: Results) -> Section:
    rows = (Row(metric, cells) for metric, cells in figures(results))
    head = ("", *map(short_name, results["models"]))
    terms = definitions((name, METRICS[name].says) for name in metrics(results) if name in METRICS)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in results["notes"])
    body = table("Figures by set", head, rows, "figures")
    body += notes + folded("What the figures mean", terms)
    return Section("Figures", caption(results), body)


def _differences(results: Results) -> Section:
    found = list(_difference_tables(results))
    rest = "".join(found[_UNFOLDED:])
    body = "".join(found[:_UNFOLDED])
    if rest:
        body += folded(f"{len(found) - _UNFOLDED} more", rest)
    return Section("Differences", power_note(results).replace("`", ""), body)


def _difference_tables(results: Results) -> Iterator[str]:
    order = metrics(results)
    for name, other, found in pairs(results):
        title = f"{short_name(name)} minus {short_name(other)}"
        rows = (Row(metric, cells) for metric, cells in differences(found, order))
        shown = table(title, ("", *DIFFERENCE_COLUMNS), rows, "figures")
        yield f"<h3>{escape(title)}</h3>{shown}"


def _undone(results: Results) -> Section:
    intro = (
        "How much of the diversity that SFT lost each method keeps. One that falls short of SFT in "
        "what was taught, or in quality, is marked and not ranked: not learning keeps everything."
    )
    return Section("Collapse undone", intro, undone(results))


def _attributes(results: Results) -> Section:
    body = figure(
        "Entropy of each attribute",
        partial(entropy_plot, results),
        "Plug-in entropy of each attribute's values, in nats; bars are 95% intervals.",
    )
    body += figure(
        "Most frequent values",
        partial(top_values_plot, results),
        "Each block is one value, as wide as its share of all texts; grey is the rest. (none): no "
        "value was read.",
    )
    return Section("Attributes", "What the texts are about, as the annotator reads them.", body)


def _collapsed(results: Results) -> Section:
    first, *others = results["models"]
    tables = [
        f"<h3>{escape(model_label(name))}</h3>{found}"
        for name in others[:_UNFOLDED]
        if (found := collapsed_into(results, first, name))
    ]
    intro = (
        f"The most frequent values of each attribute; in brackets, how often {model_label(first)} "
        "has them."
    )
    return Section("What each fell back on", intro, "".join(tables))


def _trade_offs(results: Results) -> Section:
    plots = (
        figure(
            f"{up} against {across}",
            lambda width, pair=(across, up): trade_off_plot(results, width, *pair),
            "Up is more diverse, right is better. Bars are 95% intervals; a line joins one model's "
            "temperatures.",
        )
        for across, up in _TRADE_OFFS
    )
    intro = "A model that answers nonsense is diverse, and so is one that learnt nothing."
    return Section("Diversity against quality", intro, "".join(plots))


def _making(results: Results) -> Section:
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
    intro = "What it takes to make these figures again; results.json has them in full."
    body = definitions(facts.items()) + configuration(results)
    return Section("How each number was made", intro, body)
