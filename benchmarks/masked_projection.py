"""Compare projecting only positions with loss to projecting all: time and memory of a step.

    python benchmarks/masked_projection.py [--share 0.25] [--rounds 5] [--json FILE]

Both sides run forward and backward on the same batch of random tokens, in turn, with a vocabulary
of 32k. The fastest round of each counts, because other work on the machine can only add time.
Memory is the peak resident size of a new process that does the same steps, minus that of one that
stops before them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from anchored.config import versions
from anchored.models.build import olmo2_config
from anchored.segments import NO_LOSS, Kind
from anchored.step.collate import DataCollator

VOCABULARY, ROWS, LENGTH, PRESET = 32_768, 4, 512, "3m"
Step = Callable[[], None]


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.25, help="of the tokens with loss")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", choices=("none", "masked", "full"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_mib(options.peak, options.share)))
        return
    seconds = time_steps(options.share, options.rounds)
    memory = {side: memory_of(side, options.share) for side in ("none", "masked", "full")}
    masked, full = (memory[side] - memory["none"] for side in ("masked", "full"))
    result = {
        "vocabulary": VOCABULARY,
        "tokens": ROWS * LENGTH,
        "share_with_loss": options.share,
        "seconds": seconds,
        "time_ratio": seconds["masked"] / seconds["full"],
        "memory_mib": {"masked": masked, "full": full},
        "memory_ratio": masked / full,
        "versions": versions(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def steps(share: float) -> dict[str, Step]:
    """Return both training steps; their losses are the same."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(olmo2_config(PRESET, VOCABULARY, eos_token_id=0))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
    labels = np.where(np.arange(LENGTH) >= LENGTH * (1 - share), ids, NO_LOSS)
    kinds, lengths = np.full((ROWS, LENGTH), Kind.TEXT), np.array([LENGTH])
    rows: list[Any] = [
        {"input_ids": i, "labels": y, "kinds": k, "seq_lengths": lengths}
        for i, y, k in zip(ids, labels, kinds, strict=True)
    ]
    full = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    return {
        "masked": lambda: _step(model, DataCollator(0)(rows)),
        "full": lambda: _step(model, full),
    }


def _step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    model(**batch, use_cache=False).loss.backward()
    model.zero_grad()


def time_steps(share: float, rounds: int) -> dict[str, float]:
    """Return the seconds of each side's fastest step, after a warm-up step."""
    sides = steps(share)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def memory_of(side: str, share: float) -> float:
    """Return the peak resident MiB of a new process that takes two steps."""
    command = [sys.executable, __file__, "--peak", side, "--share", str(share)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib(side: str, share: float) -> float:
    """Return VmHWM of this process; `ru_maxrss` would count the parent it was forked from."""
    sides = steps(share)
    for _ in range(2):
        sides.get(side, lambda: None)()
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status; the memory half of this needs Linux")


if __name__ == "__main__":
    main()
