"""Benchmarks by name, files of prompts, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from anchored.benchmark.benchmarks import (
    BENCHMARKS,
    Benchmark,
    BenchmarkEntry,
    Prompt,
    Published,
    load_benchmark,
)
from anchored.cli import main
from anchored.errors import ConfigError, DataError
from anchored.metrics.table import METRICS
from anchored.segments import Message
from conftest import ROOT


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(found: Benchmark) -> list[str]:
    return [prompt.text for prompt in found.prompts]


def test_stories_is_the_papers_prompt_and_the_opening_belongs_to_the_story() -> None:
    found = load_benchmark("stories")
    assert texts(found) == ["Once upon a time"]
    assert found.prefill(found.prompts[0]) == "Once upon a time"
    assert found.metrics[0] == "semantic_entropy"


def test_noveltybench_lies_in_the_data_folder_or_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "noveltybench" / "curated.jsonl", {"id": 1, "prompt": "Name a dish."})
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    for spec in (f"noveltybench={path}", f"noveltybench={tmp_path}", "noveltybench",
                 f"noveltybench={tmp_path}/noveltybench"):  # fmt: skip
        found = load_benchmark(spec)
        assert (found.name, texts(found), found.samples) == ("noveltybench", ["Name a dish."], 10)
    assert found.prefill(found.prompts[0]) == "Name a dish.\n\n"


def test_the_real_prompts_of_noveltybench(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANCHORED_DATA", str(shared_data))
    assert len(load_benchmark("noveltybench").prompts) == 100
    assert len(load_benchmark("wildchat").prompts) == 1000
    assert len(load_benchmark("noveltybench", 7).prompts) == 7


def test_without_data_the_error_names_the_ways_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANCHORED_DATA", raising=False)
    with pytest.raises(ConfigError) as error:
        load_benchmark("infinitychat")
    assert str(error.value) == (
        "benchmark infinitychat: ANCHORED_DATA is not set; name the prompts' file or folder as "
        "infinitychat=PATH, or load them from the hub (liweijiang/infinite-chats-eval) with "
        "infinitychat=hub"
    )
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"curated.jsonl is not a file; name the prompts' file"):
        load_benchmark("noveltybench")


def test_the_hub_is_asked_only_by_name_and_its_errors_are_one_line() -> None:
    with pytest.raises(ConfigError, match="benchmark noveltybench: yimingzhang/novelty-bench on"):
        load_benchmark("noveltybench=hub")


def test_rows_of_the_hub_are_read_by_the_benchmarks_own_column(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked = []

    def stored(hub: str, split: str) -> list[dict[str, str]]:
        asked.append((hub, split))
        return [{"query": "Why?"}]

    monkeypatch.setattr(datasets, "load_dataset", stored)
    assert texts(load_benchmark("infinitychat=hub")) == ["Why?"]
    assert asked == [("liweijiang/infinite-chats-eval", "train")]


def test_an_unknown_benchmark_is_refused_with_what_there_is() -> None:
    with pytest.raises(ConfigError) as error:
        load_benchmark("noveltybanch")
    assert str(error.value) == (
        f"benchmark 'noveltybanch': unknown; use {', '.join(BENCHMARKS)} or a .txt or .jsonl file"
    )


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("A\u2028b?\r\n\n  C?\n".encode())
    found = load_benchmark(str(path))
    assert (found.name, texts(found)) == ("mine", ["A\u2028b?", "C?"])


def test_a_file_of_conversations_keeps_their_turns(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    found = load_benchmark(write(tmp_path / "a.jsonl", {"messages": turns}, {"prompt": "Yo"}))
    first = Prompt((Message("system", "Be brief."), Message("user", "Hi")))
    assert found.prompts == (first, Prompt((Message("user", "Yo"),)))
    assert first.text == "Be brief.\n\nHi"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "A"}, {"prompt": "A"}], r"line 2: prompt: 'A' repeats the one at .*: line 1"),
        ([{"prompt": 3}], "line 1: prompt: 3 is not text"),
        (
            [{"messages": [{"role": "assistant", "content": "A"}]}],
            "not a conversation that ends",
        ),
        ([{"messages": "A"}], "not a conversation that ends"),
        ([], "the file of prompts is empty"),
    ],
)
def test_wrong_files_are_refused_by_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_benchmark(write(tmp_path / "a.jsonl", *rows))


def test_the_version_of_the_prompts_is_their_digest(tmp_path: Path) -> None:
    one, same, other = (
        load_benchmark(write(tmp_path / name / "a.jsonl", {"prompt": prompt}))
        for name, prompt in (("1", "A"), ("2", "A"), ("3", "B"))
    )
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize("name", BENCHMARKS)
def test_an_entry_gives_the_benchmark_its_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BENCHMARKS[name]
    if isinstance(entry.prompts, Published):
        write(tmp_path / entry.prompts.file, {entry.prompts.field: "Why?"})
    monkeypatch.setenv("ANCHORED_DATA", str(tmp_path))
    found = load_benchmark(name)
    assert (found.name, found.samples, found.max_tokens, found.metrics, found.opening) == (
        name, entry.samples, entry.max_tokens, entry.metrics, entry.opening
    )  # fmt: skip
    assert set(entry.metrics) <= METRICS.keys()


def test_a_new_entry_with_its_own_prompts_is_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BenchmarkEntry("two questions", ("Why?", "Who?"), ("vendi",), samples=3, max_tokens=9)
    monkeypatch.setitem(BENCHMARKS, "questions", entry)
    found = load_benchmark("questions")
    assert (texts(found), found.source) == (["Why?", "Who?"], "built in")
    assert (found.samples, found.max_tokens, found.metrics) == (3, 9, ("vendi",))
    with pytest.raises(ConfigError, match=r"unknown; use .*, questions or a \.txt"):
        load_benchmark("questions=hub")  # nothing is published


def test_the_prompts_of_stories_keep_their_digest() -> None:
    assert (
        load_benchmark("stories").sha256
        == "a0446e31d11be64a79d1ca9cddc5417a1bc0546fdb7121078673e9d533b9b9df"
    )


def test_the_documentation_has_the_table() -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (\d+)[^|]* \| `(\w+)` \|$", page, re.MULTILINE)
    assert rows == [
        (name, entry.says, str(entry.samples), entry.metrics[0])
        for name, entry in BENCHMARKS.items()
    ]
    files = [e.prompts.file for e in BENCHMARKS.values() if isinstance(e.prompts, Published)]
    assert all(f"`{file}`" in page for file in files)


def test_the_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = re.findall(r"\w+", capsys.readouterr().out)
    assert set(BENCHMARKS) <= set(shown)
