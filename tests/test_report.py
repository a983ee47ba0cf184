"""The report: what it says, what it refuses to say, and that no text can break out of it."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anchored.data.generations import spread
from anchored.escape import cut, escape, shorten, visible
from anchored.formatting import number
from anchored.report import finding, markdown_table, rich_table, write_report
from anchored.report.collapsed import base_share
from anchored.report.demo_page import render_report
from anchored.report.drawing import style_of
from anchored.report.page import MAX_BYTES, duration, render
from anchored.report.plots import (
    entropy_plot,
    frontier_plot,
    scatter_plot,
    top_shares,
    top_values_plot,
)
from anchored.report.tables import Cell, caption, cell, columns

PLOTS = (entropy_plot, top_values_plot, scatter_plot)


def test_a_rounded_number_keeps_its_sign_unless_it_is_zero():
    found = [number(-0.0054, 3), number(-0.004, 2), number(-0.006, 2), number(-1.0, 0)]
    assert found == ["-0.005", "0.00", "-0.01", "-1"]


def model(
    entropy: float, adoption: float | None, top: list[list[Any]], **more: Any
) -> dict[str, Any]:
    sample = {
        "seed": 0,
        "prompt": "Tell me a story.",
        "annotation": None,
        "response": "Mara went to the mill.",
        "attributes": {"hero": "Mara"},
        "well_formed": True,
        "consistent": False,
        "adopted": True,
        "far": None,
    }
    return {
        "n": 100,
        "semantic_entropy": entropy,
        "adoption": adoption,
        "adoption_far": None,
        "perplexity": None,
        "adherence": None,
        "well_formed": 0.97,
        "consistent": 0.98,
        "answer_accuracy": 0.9,
        "dissimilarity": 0.41,
        "intervals": {"semantic_entropy": {"low": entropy - 0.1, "high": entropy + 0.1}},
        "by_key": {"hero": {"entropy": entropy, "miller_madow": entropy, "top": top}},
        "by_seed": [],
        "samples": [dict(sample) for _ in range(20)],
        **more,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    broad, narrow = [["Mara", 20], ["Tom", 10]], [["Ilya", 60], ["Tom", 40]]
    return {
        "config": {"regime": "broad", "sft": {"steps": 200}},
        "versions": {"torch": "2.13.0"},
        "seconds": 412.3,
        "seeds": [0],
        "models": {
            "base": model(2.0, 0.0, broad),
            "standard": model(1.0, 0.9, narrow),
            "anchored": model(1.9, 0.88, broad, adherence=0.93),
        },
        "comparisons": {
            "standard": {"gap_closed": {"mean": 0.0, "low": 0.0, "high": 0.0}},
            "anchored": {
                "gap_closed": {"mean": 0.9, "low": 0.8, "high": 0.97},
                "collapse_reduction": {
                    "mean": 10.0,
                    "low": 5.0,
                    "high": 33.0,
                    "lower_bound": False,
                },
            },
        },
    }


def test_the_markdown_table_has_a_row_a_model_with_names_of_results_json(results):
    assert markdown_table(results) == (
        "| model | semantic_entropy | gap_closed | collapse_reduction | adoption "
        "| adherence | well_formed | consistent | answer_accuracy | dissimilarity |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| Base | 2.00 [1.90, 2.10] | — | — | 0.00 | — | 0.97 | 0.98 | 0.90 | 0.41 |\n"
        "| Standard SFT | 1.00 [0.90, 1.10] | 0.00 [0.00, 0.00] | — | 0.90 | — | 0.97 | 0.98 "
        "| 0.90 | 0.41 |\n"
        "| Anchored SFT | 1.90 [1.80, 2.00] | 0.90 [0.80, 0.97] | 10.0× [5.0, 33.0] | 0.88 "
        "| 0.93 | 0.97 | 0.98 | 0.90 | 0.41 |\n\n"
        "N = 100 samples a model; seed 0; intervals: 95% bootstrap.\n"
    )


def test_a_column_appears_with_its_first_known_number(results):
    assert "perplexity" not in markdown_table(results) + render_report(results)
    results["models"]["base"]["perplexity"] = 21.5
    assert "| perplexity |" in markdown_table(results)
    assert "21.50" in render_report(results)


@pytest.mark.parametrize("column", ["gap_closed", "collapse_reduction"])
def test_a_gap_is_never_shown_where_adoption_is_missing(results, column):
    results["models"]["anchored"]["adoption"] = None
    assert cell(results, "anchored", column) == Cell("—", "")
    assert "90%" not in finding(results)


def test_a_reduction_whose_interval_holds_the_base_is_a_lower_bound(results):
    results["comparisons"]["anchored"]["collapse_reduction"] = {
        "mean": None,
        "low": 6.25,
        "high": None,
        "lower_bound": True,
    }
    assert str(cell(results, "anchored", "collapse_reduction")) == "≥ 6.2×"


def test_nan_infinity_and_null_show_as_a_dash(results):
    for value in (float("nan"), float("inf"), None):
        results["models"]["base"]["dissimilarity"] = value
        assert cell(results, "base", "dissimilarity").value == "—"


def test_the_caption_warns_where_n_differs(results):
    results["models"]["anchored"]["n"] = 200
    assert caption(results) == (
        "N = 100 / 200 samples a model; seed 0; intervals: 95% bootstrap. "
        "N differs between models: their entropies are not comparable."
    )


def test_the_terminal_table_fits_80_columns_with_six_models(results):
    for name in ("annotated_base", "anchored_replay", "tagged"):
        results["models"][name] = results["models"]["anchored"]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(rich_table(results))
    text = console.export_text()
    assert "…" not in text
    assert all(column in text for column in columns(results))


def test_the_finding_states_adoption_beside_the_gap(results):
    assert finding(results) == (
        "Standard SFT cut semantic entropy from 2.00 to 1.00 nats; anchored SFT ended at 1.90, "
        "closing 90% of the gap, with 88% of its answers in the taught form against 90%."
    )


def test_the_finding_says_but_where_anchoring_did_not_learn(results):
    results["models"]["anchored"]["adoption"] = 0.04
    assert "but with only 4% of its answers in the taught form against 90%" in finding(results)


def test_the_finding_claims_no_collapse_where_there_is_none(results):
    results["models"]["standard"]["semantic_entropy"] = 2.1
    assert finding(results) == (
        "Standard SFT did not narrow the model here: semantic entropy went from 2.00 to 2.10 nats."
    )


def test_the_finding_needs_base_and_standard(results):
    del results["models"]["standard"]
    assert "no base and standard pair" in finding(results)


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("width", [344, 1024])
def test_a_plot_is_well_formed_xml_with_title_description_and_nothing_outside(results, plot, width):
    results["models"]["standard"]["by_key"]["hero"]["top"][0][0] = "<b>&\"'\u202e\x00]]>"
    root = ElementTree.fromstring(plot(results, width))
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title") is not None
    assert "Standard SFT" in (root.findtext(f"{space}desc") or "")
    right = float(root.attrib["viewBox"].split()[2])
    assert all(0 <= float(e.attrib["x"]) <= right for e in root.iter() if "x" in e.attrib)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot_without_its_numbers_is_empty(results, plot):
    for metrics in results["models"].values():
        metrics["by_key"] = None
        metrics["adoption"] = None
    assert plot(results, 700) == ""


def test_the_frontier_shows_treatments_with_both_numbers_and_no_others(results):
    assert frontier_plot(results, 700) == ""
    results["models"]["anchored"]["adoption_far"] = 0.8
    results["models"]["base"]["adoption_far"] = 0.0
    space = "{http://www.w3.org/2000/svg}"
    described = ElementTree.fromstring(frontier_plot(results, 700)).findtext(f"{space}desc")
    assert described == (
        "Anchored SFT: gap_closed 0.90, adoption_far: adoption far from SFT's semantics 80%"
    )


def test_an_axis_that_goes_below_zero_has_round_ticks_and_zero_among_them(results):
    results["comparisons"]["anchored"]["gap_closed"] = {"mean": 0.9, "low": -0.0945, "high": 0.97}
    results["models"]["anchored"]["adoption_far"] = 0.8
    space = "{http://www.w3.org/2000/svg}"
    texts = ElementTree.fromstring(frontier_plot(results, 700)).iter(f"{space}text")
    ticks = [text.text for text in texts if text.get("text-anchor") == "end"]
    assert ticks == ["-0.2", "0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_the_most_frequent_values_are_of_all_models_where_there_is_no_standard_sft(results):
    results["models"]["mine"] = results["models"].pop("standard")
    space = "{http://www.w3.org/2000/svg}"
    described = ElementTree.fromstring(top_values_plot(results, 700)).findtext(f"{space}desc")
    assert described == "Base: hero Mara 20%; Anchored SFT: hero Mara 20%; mine: hero Ilya 60%"


def test_models_of_one_report_differ_in_marker():
    names = ["base", "annotated_base", "standard", "anchored", "anchored_replay", "tagged", "gem"]
    assert len({style_of(name, names).marker for name in names}) == len(names)


def test_shares_are_of_the_samples_not_of_the_values_listed(results):
    assert top_shares(results["models"]["base"], "hero") == [("Mara", 0.2), ("Tom", 0.1)]


def test_a_value_the_base_does_not_list_gets_a_bound(results):
    base = results["models"]["base"]
    assert base_share(base, "hero", "Tom") == "10%"
    assert base_share(base, "hero", "Ilya") == "at most 10%"
    base["by_key"]["hero"]["top"] = [["Mara", 60], ["Tom", 40]]
    assert base_share(base, "hero", "Ilya") == "never"


class Tags(HTMLParser):
    """Collects every tag, attribute name and link of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</p></article></main><h1>owned</h1>",
    "\"' onmouseover=alert(1) x='",
    "\u202egnp.exe\u202c \u2066x\u2069 \u200b\u200d\ufeff \x1b[31m\x00\x07\x7f\x9b",
    "\ud800 lone surrogate",
    "]]> --> <!-- <style>*{display:none}</style> &lt; &#x3c;",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_model_breaks_out_of_the_page(results, tmp_path: Path, text):
    plain = Tags(render_report(results)).seen
    hostile = copy.deepcopy(results)
    hostile["config"] = {"note": text.encode("utf-8", "ignore").decode()}
    for metrics in hostile["models"].values():
        metrics["by_key"] = {"hero": {"entropy": 1.0, "top": [[text, 50]]}}
        for sample in metrics["samples"]:
            sample.update(prompt=text, response=text, annotation=f"hero: {text}")
    write_report(hostile, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Tags(page)
    assert {"script", "img", "link", "iframe"}.isdisjoint(found.seen)
    assert found.seen.count("h1") == plain.count("h1") == 1
    assert not any(name.startswith("on") or name == "src" for name, _ in found.attributes)
    assert all((value or "").startswith("#") for name, value in found.attributes if name == "href")
    assert not set("\u202e\u202c\u2066\u2069\u200b\u200d\ufeff\x1b\x00\x07\x7f\x9b") & set(page)


def test_the_page_loads_nothing_and_holds_two_sizes_of_every_plot(results):
    page = render_report(results)
    assert page.count("<svg") == 6
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_a_template_escapes_what_it_is_given_and_shows_hidden_characters():
    page = render("model", title="<b>\u202e", facts=[("\x1b[2J", "<i>\x00\ud800")])
    assert "<title>&lt;b&gt;⟨U+202E⟩</title>" in page
    assert "<dt>⟨U+001B⟩[2J</dt><dd>&lt;i&gt;⟨U+0000⟩⟨U+D800⟩</dd>" in page


def test_a_dozen_samples_a_model_are_shown_evenly_spaced(results):
    assert render_report(results).count("<article") == 12 * 3
    assert spread(20, 12) == [0, 1, 3, 5, 6, 8, 10, 11, 13, 15, 16, 18]
    assert spread(3, 12) == [0, 1, 2]


def test_endless_samples_keep_the_page_below_its_limit(results, tmp_path: Path):
    for metrics in results["models"].values():
        for sample in metrics["samples"]:
            sample["response"] = "\u202e" * 100_000
    write_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < MAX_BYTES


def test_a_report_of_bare_minimum_results_is_written(tmp_path: Path):
    write_report({"models": {"base": {"n": 4}}, "comparisons": {}}, tmp_path / "report.html")
    assert "no base and standard pair" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_hidden_characters_are_written_out_and_line_feeds_kept():
    assert (
        visible("a\u202eb\x1b[0m\n\tc\u2028\ud83d") == "a⟨U+202E⟩b⟨U+001B⟩[0m\n\tc⟨U+2028⟩⟨U+D83D⟩"
    )
    assert visible("Größe 東京 مرحبا") == "Größe 東京 مرحبا"


def test_cuts_say_how_much_is_gone():
    assert cut("abcdef\nxy", line_chars=4) == "abcd … [2 more characters]\nxy"
    assert cut("ab\ncd\nef", chars=5) == "ab\ncd … [3 more characters]"
    assert cut("x" * 50, line_chars=4, chars=10) == (
        "xxxx … [6 more characters] … [40 more characters]"
    )
    assert shorten("one\n two\tthree", 9) == "one two…"


@given(st.text(), st.integers(1, 50), st.integers(1, 50))
def test_escaping_and_cutting_never_fail_and_never_let_markup_through(text, line, chars):
    shown = escape(cut(text, line, chars))
    assert not set("<>\"'") & set(shown)
    shown.encode()


def test_durations_are_said_in_two_units():
    assert [duration(s) for s in (9.4, 412.3, 7260)] == ["9 s", "6 min 52 s", "2 h 1 min"]
