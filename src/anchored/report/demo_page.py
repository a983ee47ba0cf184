"""`report.html` of the demo and of other studies of its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anchored.escape import escape, shorten
from anchored.formatting import is_number
from anchored.report.collapsed import collapsed_into
from anchored.report.drawing import style_of
from anchored.report.page import (
    Row,
    Section,
    configuration,
    definitions,
    duration,
    figure,
    folded,
    prose,
    report,
    spread,
    table,
    tags,
    write_largest,
)
from anchored.report.plots import (
    entropy_plot,
    frontier_plot,
    scatter_plot,
    top_values_plot,
)
from anchored.report.tables import (
    COLUMNS,
    Results,
    caption,
    cell,
    columns,
    finding,
    model_label,
    sample_sizes,
)

SAMPLES_SHOWN = 12


def write_report(results: Results, path: Path) -> None:
    """Write the self-contained report of a `results.json` dict to `path`.

    At most `SAMPLES_SHOWN` samples a model are shown, fewer where the page would be too large.

    Raises:
        OSError: `path` cannot be written.
    """
    write_largest((render_report(results, n) for n in (SAMPLES_SHOWN, 4, 1, 0)), path)


def render_report(results: Results, samples_shown: int = SAMPLES_SHOWN) -> str:
    """The page as text, with so many samples a model."""
    sections = [
        _comparison(results),
        _diversity(results),
        _collapsed(results),
        _samples(results, samples_shown),
        _making(results),
    ]
    return report("Diversity after post-training", _header(results), sections)


def _header(results: Results) -> str:
    return (
        '<p class="overline">anchored · report</p>'
        "<h1>Diversity after post-training</h1>"
        f'<p class="lede">{escape(finding(results))}</p>'
        f'<p class="meta">{escape(_meta(results))}</p>'
    )


def _meta(results: Results) -> str:
    parts = [f"{len(results['models'])} models"]
    parts += [f"{size} samples each" for size in sample_sizes(results)[:1]]
    if seeds := results.get("seeds"):
        parts.append("1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
    if is_number(results.get("seconds")):
        parts.append(f"made in {duration(results['seconds'])}")
    return " · ".join(parts)


def _comparison(results: Results) -> Section:
    shown = columns(results)
    head = ("model", *(column.replace("_", " ") for column in shown))
    rows = (_comparison_row(results, model, shown) for model in results["models"])
    terms = definitions((name, COLUMNS[name]) for name in shown)
    body = table("Comparison of the models", head, rows)
    return Section("Comparison", caption(results), body + folded("What the columns mean", terms))


def _comparison_row(results: Results, model: str, shown: Iterable[str]) -> Row:
    cells = [cell(results, model, column) for column in shown]
    return Row(model_label(model), cells, style_of(model, results["models"]).colour)


def _diversity(results: Results) -> Section:
    def drawn(title: str, plot: Callable[[Results, int], str], text: str) -> str:
        return figure(title, partial(plot, results), text)

    figures = [
        drawn(
            "Diversity against adoption",
            scatter_plot,
            "Up is diverse, right has learnt what SFT taught. A model that learnt nothing sits at "
            "the base, upper left: diversity counts only together with adoption. "
            "Bars are 95% intervals; faint marks are seeds.",
        ),
        drawn(
            "Gap closed against adoption far from SFT",
            frontier_plot,
            "The taught form where the semantics are not SFT's own, against the diversity kept: "
            "what a method gives up of one for the other. Bars are 95% intervals.",
        ),
        drawn(
            "Entropy of each attribute",
            entropy_plot,
            "Entropy of each attribute's values over the sampled texts, in nats.",
        ),
        drawn(
            "Most frequent values",
            top_values_plot,
            "Each block is one value, as wide as its share of the samples; grey is the rest.",
        ),
    ]
    intro = "The same numbers as pictures: who learnt, who kept the range, and where the mass went."
    return Section("Diversity", intro, "".join(figures))


def _collapsed(results: Results) -> Section:
    intro = "Standard SFT's most frequent values; in brackets, how often the base writes them."
    body = collapsed_into(results, "base", "standard")
    return Section("What SFT collapsed into", intro, body)


def _samples(results: Results, shown: int) -> Section:
    lists = {name: metrics.get("samples") or [] for name, metrics in results["models"].items()}
    lists = {name: samples for name, samples in lists.items() if samples}
    shortest = min(map(len, lists.values()), default=0)
    places = spread(shortest, shown)
    body = "".join(
        _sample(results, number, {name: samples[place] for name, samples in lists.items()})
        for number, place in enumerate(places, 1)
    )
    intro = (
        f"{len(places)} of {shortest} a model, evenly spaced, not picked. "
        "Filled tags are the annotation the model wrote before its answer; "
        "dotted ones were read off the text afterwards."
    )
    return Section("Samples side by side", intro, body)


def _sample(results: Results, number: int, samples: Mapping[str, Mapping[str, Any]]) -> str:
    prompts = {str(sample.get("prompt") or "(no prompt)") for sample in samples.values()}
    title = escape(shorten(next(iter(prompts)), 160)) if len(prompts) == 1 else "different prompts"
    cards = "".join(
        _card(results, name, sample, show_prompt=len(prompts) > 1)
        for name, sample in samples.items()
    )
    state = " open" if number <= 2 else ""
    return (
        f'<details class="sample"{state}><summary><b>{number}</b>{title}</summary>'
        f'<div class="cards">{cards}</div></details>'
    )


def _card(results: Results, model: str, sample: Mapping[str, Any], show_prompt: bool) -> str:
    asked = (
        f'<p class="asked" dir="auto">{prose(sample.get("prompt"), 400)}</p>' if show_prompt else ""
    )
    colour = style_of(model, results["models"]).colour
    return (
        f'<article class="card" style="--c:{colour}"><h3>{escape(model_label(model))}</h3>'
        f'<p class="flags">{_flags(sample)}</p>{asked}{_tags(sample)}'
        f'<p class="told" dir="auto">{prose(sample.get("response"))}</p></article>'
    )


def _flags(sample: Mapping[str, Any]) -> str:
    said = []
    for name, good, bad in (
        ("adopted", "taught form", "not the taught form"),
        ("far", "far from SFT's semantics", ""),
        ("well_formed", "", "malformed"),
        ("consistent", "", "inconsistent"),
    ):
        value = sample.get(name)
        if value is True and good:
            said.append(good)
        elif value is False and bad:
            said.append(bad if name == "adopted" else f'<span class="bad">{bad}</span>')
    return " · ".join(said)


def _tags(sample: Mapping[str, Any]) -> str:
    """The annotation as chips; for a model that wrote none, what was read off its text."""
    written = sample.get("annotation")
    if written is not None:
        return tags(written.split("\n") if written else [], read=False)
    attributes = sample.get("attributes") or {}
    return tags([f"{key}: {value}" for key, value in attributes.items()], read=True)


def _making(results: Results) -> Section:
    versions = results.get("versions") or {}
    facts = {
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "N": " / ".join(map(str, sample_sizes(results))),
        "time": duration(results["seconds"]) if is_number(results.get("seconds")) else "",
        "intervals": "95%, bootstrap over seeds, prompts and samples",
        "entropy": "plug-in, natural logarithm; Miller-Madow in results.json",
        **{f"{name} version": version for name, version in versions.items()},
    }
    body = definitions((name, value) for name, value in facts.items() if value)
    intro = "What it takes to make these numbers again; results.json has them in full."
    return Section("How each number was made", intro, body + configuration(results))
