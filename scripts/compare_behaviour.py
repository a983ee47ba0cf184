"""Records what the package does, and compares two records: for changes that must keep behaviour.

    python scripts/compare_behaviour.py record CHECKOUT OUT     # some minutes on one core
    python scripts/compare_behaviour.py compare BEFORE AFTER    # exit status 1 if anything differs

The package is driven by its command line alone, so that modules may move between the two. All
inputs are made here, and the same each time. OUT keeps every file that a command wrote, `log.txt`
with what each printed, and `record.json` with what is compared. Two records compare only if they
were made on one machine with one set of installed packages: sums of floats depend on both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

Json = Any
Row = Mapping[str, Any]

RECORD = "record.json"
LOSSES = "losses/"  # items of this name are compared with a tolerance of their own
LOSS_TOLERANCE = 1e-6
TOLERANCE = 1e-12
STEPS = 50

_UNSET = ("ANCHORED_DATA", "PYTHONHASHSEED", "PYTHONSTARTUP")
_ENVIRONMENT = {
    # One thread a library: sums are then taken in one order.
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
}
_VERSIONS = frozenset({"versions"})
_ADDED = ": only after"
# Bits of weights: what a tolerance of losses lets pass would differ here.
_WEIGHTS = frozenset({"weights"})
# Measured anew by every run, in its metrics and in what shows them.
_TIMED = frozenset(
    {"tokens_per_second", "supervised_tokens_per_second", "mfu", "peak_tflops", "speed", "seconds"}
)

# --- Inputs: what the configurations below are of ---

WORLD = "storyworld://small"
PROMPTS = (
    "Tell me a story.",
    "Write a story.",
    "Please write a short story.",
    "Can you tell me a story?",
    "I would like to hear a story.",
    "Make up a story for me.",
    "Tell a short tale.",
    "Write a little story for a child.",
    "What is the forest known for?",
    "What does the fox eat?",
)
_TAGS = {  # values of the story world, so that its schema takes them
    "hero": ("Mara", "Tom", "Lina", "Felix", "Rosa"),
    "place": ("forest", "harbour", "castle", "market"),
    "time": ("morning", "winter", "night"),
    "mood": ("calm", "hopeful", "weary", "merry"),
}
_STORY = (
    "{hero} came to the {place} before anyone else was awake.",
    "It was {time}, and {hero} felt {mood} without knowing why.",
    "At the {place} nobody had seen such a {time} for years.",
    "“Stay a while,” somebody called, and {hero} stayed, {mood} as ever.",
)
_REPORT = (
    "{who} arrived in {city} in {when} and began to work on {what} at once.",
    "The first months were difficult, and {who} often felt {feeling} in the evenings.",
    "Newspapers in {city} wrote about {what} nearly every week, not always kindly.",
    "“We had no money, but we had time,” {who} told a visitor years later.",
    "When the work on {what} was done, everybody in the street came out to look at it.",
)
_REPORTED = {
    "who": ("Anna Schmidt", "Omar Haddad", "Grace Miller", "Tomás Silva", "Ingrid Berg"),
    "city": ("Berlin", "Cairo", "Boston", "Lisbon", "Oslo", "Nairobi", "Kyoto"),
    "when": ("1931", "the winter of 1962", "spring", "the nineteenth century"),
    "what": ("a bridge", "the new hospital", "a garden for children", "a history of whales"),
    "feeling": ("lonely", "hopeful and glad", "angry", "terribly afraid", "calm"),
}


def _chosen(tables: Mapping[str, Sequence[str]], number: int) -> dict[str, str]:
    """A value of each table; tables of different lengths make many combinations."""
    return {name: values[number % len(values)] for name, values in tables.items()}


def _written(lines: Sequence[str], values: Mapping[str, str], first: int, count: int) -> str:
    """`count` lines in turn, from line `first` on."""
    return " ".join(lines[n % len(lines)].format_map(values) for n in range(first, first + count))


def _annotation(values: Mapping[str, str], first: int = 0) -> list[dict[str, str]]:
    """The values as tags, but for every third one: annotations differ in their keys too."""
    kept = [pair for n, pair in enumerate(values.items(), first) if n % 3 != 2]
    return [{"key": key, "value": value} for key, value in kept]


def long_documents() -> Iterator[Row]:
    """Documents longer than a row: of many chunks, of one long chunk, and of plain text."""
    for n in range(12):
        values = _chosen(_TAGS, n)
        chunks = [
            {
                "text": _written(_STORY, _chosen(_TAGS, n + m), m, 2 + m % 4) + "\n\n",
                "annotation": _annotation(_chosen(_TAGS, n + m), m),
            }
            for m in range(10 + n)
        ]
        yield {"id": f"chunks-{n}", "chunks": chunks}
        whole = {"text": _written(_STORY, values, n, 40), "annotation": _annotation(values)}
        yield {
            "id": f"one-{n}",
            "chunks": [whole],
            "prompt": f"Tell me all about {values['hero']}.",
        }
        paragraphs = [_written(_STORY, _chosen(_TAGS, n + m), m, 5) for m in range(8)]
        yield {"id": f"text-{n}", "text": "\n\n".join(paragraphs)}


def conversations() -> Iterator[Row]:
    """Every format of a conversation: messages of several turns, Alpaca's, prompt and response."""
    for n in range(20):
        values = _chosen(_TAGS, n)
        told, tags = _written(_STORY, values, n, 3), _annotation(values, n)
        turns = [
            {"role": "system", "content": "You tell stories."},
            {"role": "user", "content": f"Who was at the {values['place']}?"},
            {"role": "assistant", "content": f"It was {values['hero']}.", "annotation": tags[:1]},
            {"role": "user", "content": "Go on."},
            {"role": "assistant", "content": told},
        ]
        yield {"messages": turns[n % 2 :], "annotation": tags}
        yield {"messages": [*turns[1:3], {"role": "user", "content": "Thank you!"}]}
        about = {"instruction": "Tell a story about this.", "input": values["hero"]}
        yield {**about, "output": told, "annotation": tags, "text": "left alone"}
        yield {"instruction": "Greet the reader.", "input": "", "output": "Good morning to you."}
        pair = {"id": f"pair-{n}", "prompt": f"Say how {values['hero']} felt."}
        yield {**pair, "response": f"{values['hero']} felt {values['mood']}.", "annotation": tags}


def untagged_corpus() -> Iterator[Row]:
    """What `annotate` is given: documents, conversations, and a row that has its tags already."""
    for n in range(16):
        texts = [_written(_REPORT, _chosen(_REPORTED, n + m), n + m, 4) for m in range(3)]
        if n % 4 == 3:
            yield {"prompt": "What happened then?", "response": texts[0]}
        else:
            yield {"id": f"report-{n}", "text": "\n\n".join(texts)}
    yield {"prompt": "And you?", "response": "I was asleep.",
           "annotation": [{"key": "topic", "value": "sleep"}]}  # fmt: skip


# --- Configurations of the commands; all paths are relative to OUT ---

LONG, CHAT, CORPUS = "inputs/long.jsonl", "inputs/chat.jsonl", "inputs/corpus.jsonl"
BASE, ANCHORED, STANDARD = "runs/base/model", "runs/anchored/model", "runs/standard/model"
_SFT_SOURCES = [{"path": f"{WORLD}/sft?seed=1&count=240"}, {"path": CHAT}]
_SHORT = {"schema_name": WORLD, "max_length": 256}
PREPARED = {
    "plain": {
        "sources": [{"path": f"{WORLD}?seed=0", "limit": 400}],
        "tokenizer": {"vocab_size": 512},
        "objective": "plain",
        "max_length": 128,
        "validation_share": 0.05,
    },
    "annotated": {
        "sources": [{"path": f"{WORLD}?seed=1", "limit": 3000}, {"path": LONG}],
        "tokenizer": {"vocab_size": 1200},
        "validation_share": 0.02,
        **_SHORT,
    },
    "conversations": {
        "sources": _SFT_SOURCES,
        "tokenizer": BASE,
        "objective": "anchored",
        "format_share": 0.1,
        **_SHORT,
    },
}
_TRAINER = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "save_strategy": "no",
}
_FROM_SCRATCH = {"model": {"preset": "0.5m", "max_position_embeddings": 512}}
_FINE_TUNED = {
    "model": {"init": BASE},
    "data": {"sources": _SFT_SOURCES, **_SHORT},
    # Small, so that tags which nothing holds are not forgotten at once.
    "trainer": {**_TRAINER, "learning_rate": 3e-4},
}
PRETRAINING = {
    # Longer than what is compared of its losses: a model that has not learnt to write annotations
    # would sample none.
    "base": {
        **_FROM_SCRATCH,
        "data": "data/annotated",
        "trainer": {
            **_TRAINER,
            "max_steps": 360,
            "per_device_train_batch_size": 16,
            "learning_rate": 1e-2,
            "warmup_steps": 20,
        },
    },
    "muon": {
        **_FROM_SCRATCH,
        "data": "data/plain",
        "muon_learning_rate": 0.02,
        "trainer": _TRAINER,
    },
}
FINE_TUNING = {
    "standard": {**_FINE_TUNED, "objective": "standard"},
    "anchored": {**_FINE_TUNED, "objective": "anchored"},
    "anchored-replay": {
        **_FINE_TUNED,
        "objective": "anchored-replay",
        "replay": {"share": 0.3, "counterfactual": 0.1, "max_annotation_tokens": 80},
    },
    "tagged": {**_FINE_TUNED, "objective": "tagged"},
    "lora": {**_FINE_TUNED, "objective": "anchored", "model": {"init": BASE, "lora": {"r": 4}}},
}


# --- Recording ---


@dataclass
class Recorder:
    """Runs commands of one checkout in `out` and collects what is to be compared."""

    checkout: Path
    out: Path
    items: dict[str, Json] = field(default_factory=dict)

    def run(self, *arguments: str) -> str:
        """What the command printed; what it printed on stderr is in the log."""
        start = time.monotonic()
        done = self._python("-m", "anchored", *arguments)
        seconds = time.monotonic() - start
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ anchored {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
        print(f"{seconds:6.1f} s  anchored {' '.join(arguments)[:80]}", flush=True)
        if done.returncode:
            raise SystemExit(f"anchored {arguments[0]}: status {done.returncode}: {done.stderr}")
        return done.stdout

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
        path = {"PYTHONPATH": str(self.checkout / "src")}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.out,
            env={**kept, **_ENVIRONMENT, **path},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    def check_imported(self) -> None:
        """Sees that the package is the checkout's, not one that is installed beside it."""
        found = self._python("-c", "import anchored; print(anchored.__file__)").stdout.strip()
        if not found or not Path(found).is_relative_to(self.checkout):
            raise SystemExit(f"{self.checkout}: `import anchored` finds {found or 'nothing'}")

    def json(self, *arguments: str) -> Json:
        """What the command printed, as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def configured(self, command: str, name: str, config: Row) -> None:
        """Runs a command that reads its configuration from a file."""
        path = self.out / "configs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        self.run(command, str(path.relative_to(self.out)))

    def keep(self, item: str, data: Json, dropped: frozenset[str] = _VERSIONS | _TIMED) -> None:
        """Adds what is to be compared, without what differs from run to run or place to place."""
        self.items[item] = self._cleaned(data, dropped)

    def _cleaned(self, data: Json, dropped: frozenset[str]) -> Json:
        if isinstance(data, dict):
            return {k: self._cleaned(v, dropped) for k, v in data.items() if k not in dropped}
        if isinstance(data, list):
            return [self._cleaned(value, dropped) for value in data]
        if isinstance(data, str):
            return data.replace(str(self.out), "OUT").replace(str(self.checkout), "CHECKOUT")
        return data

    def save(self) -> None:
        """Writes the record."""
        text = json.dumps({"items": self.items}, ensure_ascii=False, indent=1)
        (self.out / RECORD).write_text(text + "\n", encoding="utf-8")


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, Json]]:
    """Rows of JSON lines, which may hold line separators of Unicode."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def sha256(*data: bytes) -> str:
    """Of the data joined, as hexadecimal digits."""
    return hashlib.sha256(b"".join(data)).hexdigest()


def arrow_files(folder: Path) -> dict[str, str]:
    """Digests of the data files of a dataset and its splits, by name."""
    found = sorted(folder.rglob("*.arrow"))
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in found}


def columns(folder: Path) -> dict[str, Json]:
    """Of each split, the columns: type, digest of all, digest of each row, and two rows whole.

    They are read off the data files, so that this rests on nothing of the package.
    """
    found = {}
    for split in sorted({path.parent for path in folder.rglob("*.arrow")}):
        parts = [pa.ipc.open_stream(path).read_all() for path in sorted(split.glob("*.arrow"))]
        table = pa.concat_tables(parts)
        name = str(split.relative_to(folder))
        found["train" if name == "." else name] = {
            column: _column(table[column].combine_chunks()) for column in table.column_names
        }
    return found


def _column(lists: pa.ListArray) -> dict[str, Json]:
    values = lists.flatten().to_numpy()
    edges = lists.offsets.to_numpy()
    lengths, ends = np.diff(edges), edges[1:] - edges[0]
    rows = [values[end - n : end] for n, end in zip(lengths, ends, strict=True)]
    return {
        "type": str(lists.type.value_type),
        "sha256": sha256(lengths.astype("int64").tobytes(), values.tobytes()),
        "first": [row.tolist() for row in rows[:2]],
        "rows": [sha256(row.tobytes())[:8] for row in rows],
    }


def record_commands(to: Recorder) -> None:
    """Names of the commands in `--help`."""
    listed = re.search(r"^ +COMMAND\n(.*?)\n\n", to.run("--help"), re.MULTILINE | re.DOTALL)
    to.keep("commands", re.findall(r"^ {4}([a-z-]+)\b", listed[1] if listed else "", re.MULTILINE))


def record_prepared(to: Recorder, name: str) -> None:
    """One prepared dataset: columns, bytes of the files, manifest."""
    folder = f"data/{name}"
    to.configured("prepare", f"prepare-{name}", {"out": folder, **PREPARED[name]})
    to.keep(f"prepared/{name}/columns", columns(to.out / folder))
    to.keep(f"prepared/{name}/files", arrow_files(to.out / folder))
    manifest = (to.out / folder / "manifest.json").read_text(encoding="utf-8")
    to.keep(f"prepared/{name}/manifest", json.loads(manifest))


def record_losses(to: Recorder, command: str, name: str, config: Row) -> None:
    """Losses of the first steps of a training run."""
    to.configured(command, name, {"out": f"runs/{name}", **config})
    rows = read_rows(to.out / "runs" / name / "metrics.jsonl")[:STEPS]
    wanted = ("step", "loss", "loss_by_kind", "grad_norm")
    to.keep(f"{LOSSES}{command}/{name}", [{key: row[key] for key in wanted} for row in rows])


def record_samples(to: Recorder) -> None:
    """Samples by text: 200 of the anchored model, 40 under a pinned tag, others to compare."""
    for name, model, prompts, n, more in (
        ("anchored", ANCHORED, PROMPTS, 20, ()),
        ("pinned", ANCHORED, PROMPTS[:2], 20, ("--pin", "place=desert")),
        ("standard", STANDARD, PROMPTS, 8, ()),
        ("base", BASE, PROMPTS, 8, ()),
    ):
        asked = [word for prompt in prompts for word in ("--prompt", prompt)]
        file = f"samples/{name}.jsonl"
        fixed = ("--seed", "7", "--max-new-tokens", "64", "--out", file)
        to.run("sample", model, *asked, "-n", str(n), *fixed, *more)
        to.keep(f"samples/{name}", read_rows(to.out / file))


def record_scores(to: Recorder) -> None:
    """`score` of samples: base, standard and anchored over all prompts, two of them over one."""
    many = [f"samples/{name}.jsonl" for name in ("base", "standard", "anchored")]
    one = []
    for name in ("standard", "anchored"):
        rows = read_rows(to.out / "samples" / f"{name}.jsonl")
        one.append(f"samples/one-prompt/{name}.jsonl")
        write_rows(to.out / one[-1], [row for row in rows if row["prompt"] == PROMPTS[0]])
    for name, files in (("prompts", many), ("one-prompt", one)):
        out = f"scores/{name}"
        shown = to.json("score", *files, "--n", "8", "--out", out)
        written = json.loads((to.out / out / "results.json").read_text(encoding="utf-8"))
        to.keep(f"score/{name}/results", written)
        to.keep(f"score/{name}/shown-is-written", shown == written)
        to.keep(f"score/{name}/table", (to.out / out / "table.md").read_text(encoding="utf-8"))


def record_evaluation(to: Recorder) -> None:
    """`evaluate` of three models on the built-in benchmark and on a file of prompts."""
    (to.out / "inputs" / "asked.txt").write_text("\n".join(PROMPTS[:3]), encoding="utf-8")
    models = (f"base={BASE}", f"sft={STANDARD}", f"anchored={ANCHORED}")
    benchmarks = ("--benchmark", "stories", "--benchmark", "inputs/asked.txt", "--limit", "2")
    sizes = ("--samples", "8", "--max-new-tokens", "32", "--out", "evaluation")
    results = to.json("evaluate", *models, *benchmarks, *sizes)
    to.keep("evaluate/results", results, _VERSIONS | _TIMED | _WEIGHTS)
    for path in sorted((to.out / "evaluation" / "samples").rglob("*.jsonl")):
        place = path.relative_to(to.out / "evaluation" / "samples").with_suffix("")
        to.keep(f"evaluate/samples/{place}", read_rows(path), _VERSIONS | _TIMED | _WEIGHTS)


def record_annotation(to: Recorder) -> None:
    """The rows that the offline annotator makes of a small corpus, and what it says of them."""
    manifest = to.json("annotate", CORPUS, "--out", "annotated", "--workers", "1")
    shards = sorted((to.out / "annotated").glob("shard-*.jsonl"))
    to.keep("annotate/rows", [row for shard in shards for row in read_rows(shard)])
    to.keep("annotate/manifest", manifest)


def record_views(to: Recorder) -> None:
    """What other commands make of the data and the models: export, inspect, plan, card."""
    for form in ("axolotl", "llamafactory", "torchtune"):
        out = f"exported/{form}"
        to.keep(
            f"export/{form}/json",
            to.json("export", "data/conversations", "--format", form, "--out", out),
        )
        to.keep(f"export/{form}/columns", columns(to.out / out))
        to.keep(f"export/{form}/files", arrow_files(to.out / out))
    for name, path in (("dataset", "data/conversations"), ("model", ANCHORED)):
        to.keep(f"inspect/{name}", to.json("inspect", path))
    for name in ("base", "anchored-replay"):
        # Utilisation is foreseen here, not measured: nothing but versions is left out.
        to.keep(f"plan/{name}", to.json("plan", f"configs/{name}.yaml"), _VERSIONS)
    to.run("card", ANCHORED, "--results", "evaluation/results.json")
    card = (to.out / ANCHORED / "README.md").read_text(encoding="utf-8")
    to.keep("card", card.partition("## Versions")[0])  # what follows is versions and a digest


def record(checkout: Path, out: Path) -> None:
    """Writes what the package in `checkout` does to `out`, which must be new or empty."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out}: is not empty; a record of two versions would say nothing")
    out.mkdir(parents=True, exist_ok=True)
    to = Recorder(checkout.resolve(), out.resolve())
    to.check_imported()
    start = time.monotonic()
    write_rows(to.out / LONG, long_documents())
    write_rows(to.out / CHAT, conversations())
    write_rows(to.out / CORPUS, untagged_corpus())
    record_commands(to)
    for name in ("plain", "annotated"):
        record_prepared(to, name)
    for name, config in PRETRAINING.items():
        record_losses(to, "pretrain", name, config)
    record_prepared(to, "conversations")  # by the base model's tokenizer
    for name, config in FINE_TUNING.items():
        record_losses(to, "sft", name, config)
    for stage in (record_samples, record_scores, record_evaluation, record_annotation):
        stage(to)
    record_views(to)
    to.save()
    print(f"{len(to.items)} items in {out / RECORD}, {time.monotonic() - start:.0f} s")


# --- Comparing ---


def differences(before: Json, after: Json, tolerance: float, at: str = "") -> Iterator[str]:
    """Where two values differ, each place in words; floats may differ by `tolerance`.

    Below 1 that is absolute, above it relative to the larger, but for losses: these are absolute.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            place = f"{at}.{key}" if at else key
            if key not in before or key not in after:
                yield f"{place}{_ADDED if key in after else ': only before'}"
            else:
                yield from differences(before[key], after[key], tolerance, place)
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{at or 'value'}: {len(before)} entries before, {len(after)} after"
        for n, pair in enumerate(zip(before, after, strict=False)):
            yield from differences(*pair, tolerance, f"{at}[{n}]")
    elif not _same(before, after, tolerance):
        yield f"{at or 'value'}: {_shown(before, after)} before, {_shown(after, before)} after"


def _same(before: Json, after: Json, tolerance: float) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        relative = 0.0 if tolerance == LOSS_TOLERANCE else tolerance
        both_nan = math.isnan(before) and math.isnan(after)
        return both_nan or math.isclose(before, after, rel_tol=relative, abs_tol=tolerance)
    return type(before) is type(after) and before == after


def _shown(value: Json, other: Json) -> str:
    """A value in short; of two texts, the part around their first difference."""
    if isinstance(value, str) and isinstance(other, str):
        pairs = enumerate(zip(value, other, strict=False))
        alike = next((n for n, (a, b) in pairs if a != b), min(len(value), len(other)))
        start = max(0, alike - 20)
        return f"{'...' if start else ''}{value[start : start + 60]!r}"
    return repr(value)[:80]


def compare(before: Path, after: Path) -> int:
    """Print one line per item and return how many items differ.

    An item that has everything it had before and new fields besides is `extended`: it does not
    count. A text that grew differs.
    """
    found = [json.loads((path / RECORD).read_text(encoding="utf-8")) for path in (before, after)]
    first, second = (one["items"] for one in found)
    differing = 0
    for item in {**first, **second}:
        if item not in first or item not in second:
            places = [f"only {'after' if item in second else 'before'}"]
        else:
            tolerance = LOSS_TOLERANCE if item.startswith(LOSSES) else TOLERANCE
            places = list(islice(differences(first[item], second[item], tolerance), 1000))
        lost = [place for place in places if item not in first or not place.endswith(_ADDED)]
        differing += bool(lost)
        verdict = "DIFFERS" if lost else "extended" if places else "equal"
        shown = lost or places
        more = f" (and {len(shown) - 1} more)" if len(shown) > 1 else ""
        print(f"{verdict:8} {item}{f': {shown[0]}{more}' if shown else ''}")
    print(f"{differing} of {len({**first, **second})} items differ")
    return differing


def main() -> int:
    """Reads the command line; the exit status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    for name, run, paths in (
        ("record", record, ("checkout", "out")),
        ("compare", compare, ("before", "after")),
    ):
        command = commands.add_parser(name, help=(run.__doc__ or "").partition("\n")[0])
        command.set_defaults(run=run, paths=paths)
        for path in paths:
            command.add_argument(path, metavar=path.upper(), type=Path)
    options = parser.parse_args()
    run: Callable[[Path, Path], int | None] = options.run
    return 1 if run(*(getattr(options, path) for path in options.paths)) else 0


if __name__ == "__main__":
    sys.exit(main())
