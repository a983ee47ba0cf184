"""Measure `anchored score`: its metrics against the usual implementations, time and memory.

    python benchmarks/score.py [--data FOLDER] [--json FILE]

Metrics: 10,000 vectors of 384 dimensions. Vendi is compared with `vendi_score.score_X`, which
decomposes the matrix of all pairs, and with `score_dual`, which decomposes the smaller matrix, like
ours. Dissimilarity is compared with a loop over pairs; its first rows are timed and the rest is
extrapolated. CPU seconds do not include other work on the machine; with OMP_NUM_THREADS=1 they are
what an idle machine would take.
Time: the command on 100 prompts x 10 texts, every metric that needs no GPU, including start-up.
Memory: peak resident size of a new process that scores one prompt with so many texts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import vendi_score.vendi

from anchored.config import versions
from anchored.metrics.embedding import dissimilarity, nearest_distance, unit, vendi

ROOT = Path(__file__).parents[1]
VECTORS, DIMENSIONS = 10_000, 384
LOOP_ROWS = 50
TEXTS = (1_000, 2_000, 4_000)


def main() -> None:
    """Run all three measurements and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_mib(options.peak))
        return
    results = {
        "metrics": metrics(),
        "command": command(options.data),
        "peak_mib": memory(),
        "versions": versions(),
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def metrics() -> dict[str, float]:
    """Return the CPU seconds of each side, and how many times faster ours is."""
    vectors = np.random.default_rng(0).normal(size=(VECTORS, DIMENSIONS)) + 1.0
    ours, score = timed(lambda: vendi(vectors), 5)
    theirs, other = timed(lambda: vendi_score.vendi.score_X(vectors), 1)
    dual, third = timed(lambda: vendi_score.vendi.score_dual(vectors), 5)
    assert abs(score - float(other)) < 1e-6 and abs(score - float(third)) < 1e-6
    fast, _ = timed(lambda: dissimilarity(vectors), 5)
    slow, _ = timed(lambda: loop(unit(vectors), LOOP_ROWS), 1)
    slow *= VECTORS * (VECTORS - 1) / 2 / (LOOP_ROWS * (2 * VECTORS - LOOP_ROWS - 1) / 2)
    some = vectors[:300]
    assert abs(dissimilarity(some) - loop(unit(some), 300) / (300 * 299 / 2)) < 1e-9
    return {
        "vendi": ours,
        "vendi_score.score_X": theirs,
        "vendi_score.score_dual": dual,
        "vendi against score_X": theirs / ours,
        "vendi against score_dual": dual / ours,
        "dissimilarity": fast,
        "loop over pairs": slow,
        "dissimilarity against the loop": slow / fast,
        "nearest_distance": timed(lambda: nearest_distance(vectors), 1)[0],
    }


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the CPU seconds of the fastest round, and the result."""
    seconds, result = [], None
    for _ in range(rounds):
        start = time.process_time()
        result = call()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def loop(rows: np.ndarray, first: int) -> float:
    """Return the sum of 1 - cos over the pairs whose lower index is among the first rows."""
    total = 0.0
    for i in range(first):
        for j in range(i + 1, len(rows)):
            total += 1 - float(rows[i] @ rows[j])
    return total


def command(data: Path) -> dict[str, float]:
    """Return wall-clock and CPU seconds of the command on one of NoveltyBench's runs."""
    run = data / "noveltybench/runs/gemma-2-2b-it/scores.jsonl.gz"
    words = [sys.executable, "-m", "anchored", "score", str(run), "--quality", "given"]
    words += ["--equivalence", "given", "--json", "--vendi-q", "1", "--vendi-q", "2"]
    start, before = time.perf_counter(), os.times()
    answer = subprocess.run(words, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, os.times()
    found = json.loads(answer.stdout)
    return {
        "prompts": found["prompts"],
        "k": found["k"],
        "seconds": seconds,
        "cpu_seconds": after[2] + after[3] - before[2] - before[3],
    }


def memory() -> dict[str, float]:
    """Return the peak MiB by number of texts of one prompt; `0` is the process with two."""
    rng, peaks = random.Random(0), {}
    vocabulary = [f"word{i}" for i in range(5_000)]
    with tempfile.TemporaryDirectory() as scratch:
        for count in (2, *TEXTS):
            path = Path(scratch) / f"{count}.jsonl"
            texts = [" ".join(rng.choices(vocabulary, k=100)) for _ in range(count)]
            path.write_text(json.dumps({"prompt": "p", "generations": texts}) + "\n")
            words = [sys.executable, __file__, "--peak", str(path)]
            answer = subprocess.run(words, check=True, capture_output=True, text=True)
            peaks[str(count if count > 2 else 0)] = float(answer.stdout)
    return peaks


def peak_mib(path: Path) -> float:
    """Score the file; return VmHWM of this process."""
    from anchored.scoring.score import ScoreConfig, score

    score(ScoreConfig(files=(str(path),), resamples=100))
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status; the memory part of this needs Linux")


if __name__ == "__main__":
    main()
