"""`report.html` of the demo and of other studies of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anchored.data.generations import spread
from anchored.escape import shorten
from anchored.formatting import is_number
from anchored.report.collapsed import collapsed_into
from anchored.report.drawing import style_of
from anchored.report.page import (
    Figure,
    Row,
    Section,
    Table,
    configuration,
    duration,
    figures,
    report,
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
        Section("comparison", "Comparison", caption(results), _comparison(results)),
        Section(
            "diversity",
            "Diversity",
            "The same numbers as pictures: who learnt, who kept the range, and where the mass "
            "went.",
            _diversity(results),
        ),
        Section(
            "collapsed",
            "What SFT collapsed into",
            "Standard SFT's most frequent values; in brackets, how often the base writes them.",
            collapsed_into(results, "base", "standard"),
        ),
        _samples(results, samples_shown),
        Section(
            "making",
            "How each number was made",
            "What it takes to make these numbers again; results.json has them in full.",
            _making(results),
        ),
    ]
    return report(
        "demo",
        "Diversity after post-training",
        sections,
        overline="report",
        lede=finding(results),
        meta=_meta(results),
    )


def _meta(results: Results) -> str:
    parts = [f"{len(results['models'])} models"]
    parts += [f"{size} samples each" for size in sample_sizes(results)[:1]]
    if seeds := results.get("seeds"):
        parts.append("1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
    if is_number(results.get("seconds")):
        parts.append(f"made in {duration(results['seconds'])}")
    return " · ".join(parts)


def _comparison(results: Results) -> dict[str, Any]:
    shown = columns(results)
    head = ("model", *(column.replace("_", " ") for column in shown))
    rows = [
        Row(
            model_label(model),
            [cell(results, model, column) for column in shown],
            style_of(model, results["models"]).colour,
        )
        for model in results["models"]
    ]
    return {
        "table": Table("Comparison of the models", head, rows),
        "terms": [(name, COLUMNS[name]) for name in shown],
    }


def _diversity(results: Results) -> list[Figure]:
    plots = [
        (
            "Diversity against adoption",
            scatter_plot,
            "Up is diverse, right has learnt what SFT taught. A model that learnt nothing sits at "
            "the base, upper left: diversity counts only together with adoption. "
            "Bars are 95% intervals; faint marks are seeds.",
        ),
        (
            "Gap closed against adoption far from SFT",
            frontier_plot,
            "The taught form where the semantics are not SFT's own, against the diversity kept: "
            "what a method gives up of one for the other. Bars are 95% intervals.",
        ),
        (
            "Entropy of each attribute",
            entropy_plot,
            "Entropy of each attribute's values over the sampled texts, in nats.",
        ),
        (
            "Most frequent values",
            top_values_plot,
            "Each block is one value, as wide as its share of the samples; grey is the rest.",
        ),
    ]
    return figures((title, partial(plot, results), text) for title, plot, text in plots)


def _samples(results: Results, shown: int) -> Section:
    lists = {name: metrics.get("samples") or [] for name, metrics in results["models"].items()}
    lists = {name: samples for name, samples in lists.items() if samples}
    shortest = min(map(len, lists.values()), default=0)
    places = spread(shortest, shown)
    found = [
        _sample(results, {name: samples[place] for name, samples in lists.items()})
        for place in places
    ]
    intro = (
        f"{len(places)} of {shortest} a model, evenly spaced, not picked. "
        "Filled tags are the annotation the model wrote before its answer; "
        "dotted ones were read off the text afterwards."
    )
    return Section("samples", "Samples side by side", intro, found)


def _sample(results: Results, samples: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    prompts = {str(sample.get("prompt") or "(no prompt)") for sample in samples.values()}
    is_shared = len(prompts) == 1
    return {
        "title": shorten(next(iter(prompts)), 160) if is_shared else "different prompts",
        "cards": [
            _card(results, name, sample, None if is_shared else sample.get("prompt") or "")
            for name, sample in samples.items()
        ],
    }


def _card(
    results: Results, model: str, sample: Mapping[str, Any], prompt: str | None
) -> dict[str, Any]:
    """`prompt` is None where the sample's title says it."""
    tags, read = _tags(sample)
    return {
        "colour": style_of(model, results["models"]).colour,
        "label": model_label(model),
        "flags": _flags(sample),
        "prompt": prompt,
        "tags": tags,
        "read": read,
        "response": sample.get("response"),
    }


def _flags(sample: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What is said of a sample, and whether that is a fault."""
    said = []
    for name, good, bad in (
        ("adopted", "taught form", "not the taught form"),
        ("far", "far from SFT's semantics", ""),
        ("well_formed", "", "malformed"),
        ("consistent", "", "inconsistent"),
    ):
        value = sample.get(name)
        if value is True and good:
            said.append((good, False))
        elif value is False and bad:
            said.append((bad, name != "adopted"))
    return said


def _tags(sample: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The annotation's lines; for a model that wrote none, what was read off its text (True)."""
    written = sample.get("annotation")
    if written is not None:
        return written.split("\n") if written else [], False
    attributes = sample.get("attributes") or {}
    return [f"{key}: {value}" for key, value in attributes.items()], True


def _making(results: Results) -> dict[str, Any]:
    versions = results.get("versions") or {}
    facts = {
        "seeds": ", ".join(map(str, results.get("seeds") or [])),
        "N": " / ".join(map(str, sample_sizes(results))),
        "time": duration(results["seconds"]) if is_number(results.get("seconds")) else "",
        "intervals": "95%, bootstrap over seeds, prompts and samples",
        "entropy": "plug-in, natural logarithm; Miller-Madow in results.json",
        **{f"{name} version": version for name, version in versions.items()},
    }
    shown = [(name, value) for name, value in facts.items() if value]
    return {"facts": shown, "config": configuration(results)}
