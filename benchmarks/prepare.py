"""Compare `prepare` with raw `tokenizers.encode_batch`, and its memory at 1x and 10x the text.

    python benchmarks/prepare.py [--data FOLDER] [--rounds 5] [--json FILE]

Speed: both sides encode the same documents of one JSONL file, in turn. `ratio` counts the tokens of
the plain text on both sides, so that tags and control tokens do not count. `ratio_of_all_written`
counts every token that `prepare` writes, including tags and control tokens. The raw side gets its
texts in memory; `prepare` reads, splits, masks, packs and writes to disk. The fastest round of each
side counts: other work on the machine can only add time.

Memory: peak resident size of a new process for a corpus and for a corpus ten times as large.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from tokenizers import Tokenizer

from anchored.annotation import Annotation
from anchored.config import versions
from anchored.data.prepare import (
    PrepareConfig,
    SourceConfig,
    load_prepared,
    prepare,
    read_manifest,
)
from anchored.data.readers import read_rows
from anchored.segments import split_chunks
from anchored.tokenizer import AnchoredTokenizer

ROOT = Path(__file__).parents[1]
DOCUMENTS = 1500
PLACES = ("forest", "harbour", "old castle", "market town", "island")


def main() -> None:
    """Run both measurements and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("CORPUS", "TOKENIZER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak(*arguments.peak)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(arguments.data, arguments.rounds, Path(scratch))
    print(json.dumps(results, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(data: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    """Return speed and memory as one record."""
    stories = SourceConfig(path=str(data / "stories" / "stories.jsonl.xz"), limit=DOCUMENTS)
    texts = [row["text"] for _, row in read_rows(stories)]
    AnchoredTokenizer.train(texts[:500], 8000).save(scratch / "tokenizer")
    write_corpora(texts, scratch)
    return {
        "speed": speed(texts, rounds, scratch),
        "memory": memory(scratch),
        "versions": versions(),
    }


def write_corpora(texts: Sequence[str], folder: Path) -> None:
    """Write the texts as plain rows, as annotated rows, and as annotated rows ten times over."""
    rng = random.Random(0)
    tag = Annotation.of
    rows = [
        {
            "chunks": [
                {"text": text, "annotation": tag(_tags(rng)).rows()} for text in split_chunks(t)
            ]
        }
        for t in texts
    ]
    _write(folder / "plain.jsonl", [{"text": text} for text in texts])
    _write(folder / "annotated.jsonl", rows)
    _write(folder / "tenfold.jsonl", rows * 10)


def _tags(rng: random.Random) -> dict[str, str]:
    number = rng.randrange(50)
    return {"topic": f"topic {number}", "entity": f"Mara {number}", "place": rng.choice(PLACES)}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def speed(texts: Sequence[str], rounds: int, scratch: Path) -> dict[str, Any]:
    """Return seconds of every round, tokens/s of the fastest, and ratios to the raw tokenizer.

    Tokens are those of the text or, as `written`, all tokens that a side wrote.
    """
    raw = Tokenizer.from_file(str(scratch / "tokenizer" / "tokenizer.json"))
    tokens = _encode(raw, texts)
    sides: dict[str, Callable[[], int]] = {
        "encode_batch": lambda: _encode(raw, texts),
        "prepare_plain": lambda: _prepare(scratch, "plain.jsonl", "plain"),
        "prepare_annotated": lambda: _prepare(scratch, "annotated.jsonl", "annotated"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    written: dict[str, int] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            written[name] = side()
            seconds[name].append(time.perf_counter() - start)
    rates = {name: tokens / min(times) for name, times in seconds.items()}
    ratios = {name: rate / rates["encode_batch"] for name, rate in rates.items()}
    return {
        "text_tokens": tokens,
        "written_tokens": written,
        "tokens_per_second": rates,
        "ratio": ratios,
        "ratio_of_all_written": {name: ratios[name] * written[name] / tokens for name in sides},
        "seconds": seconds,
    }


def _encode(raw: Tokenizer, texts: Sequence[str]) -> int:
    """Return the token count; the ids are read out, as any user of them must."""
    return sum(len(e.ids) for e in raw.encode_batch(list(texts), add_special_tokens=False))


def _prepare(scratch: Path, corpus: str, objective: str) -> int:
    """Prepare, and return the number of tokens written."""
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        config = _config(scratch / corpus, scratch / "tokenizer", Path(out), objective)
        return read_manifest(prepare(config, _quiet()))["tokens"]["kept"]


def _config(corpus: Path, tokenizer: Path, out: Path, objective: str) -> PrepareConfig:
    return PrepareConfig(
        out=out / "data",
        sources=(SourceConfig(path=str(corpus)),),
        tokenizer=str(tokenizer),
        objective=objective,
        max_length=512,
    )


def _quiet() -> Console:
    return Console(quiet=True)


def memory(scratch: Path) -> dict[str, Any]:
    """Return the peak resident MiB of preparing the corpus once, and ten times over."""
    peaks = [_peak_of(scratch, corpus) for corpus in ("annotated.jsonl", "tenfold.jsonl")]
    return {"1x": peaks[0], "10x": peaks[1], "ratio": peaks[1]["peak_mib"] / peaks[0]["peak_mib"]}


def _peak_of(scratch: Path, corpus: str) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--peak",
        str(scratch / corpus),
        str(scratch / "tokenizer"),
    ]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(corpus: str, tokenizer: str) -> dict[str, float]:
    """Prepare once; return the peak resident size of this process and the tokens written."""
    with tempfile.TemporaryDirectory() as out:
        config = _config(Path(corpus), Path(tokenizer), Path(out), "annotated")
        _, manifest = load_prepared(prepare(config, _quiet()))
    return {"peak_mib": _peak_mib(), "tokens": manifest["tokens"]["kept"]}


def _peak_mib() -> float:
    """Return VmHWM of this process; `ru_maxrss` would count the parent it was forked from."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status; the memory half of this needs Linux")


if __name__ == "__main__":
    main()
