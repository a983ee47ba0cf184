"""Compare `anchored plan` with real runs: parameters, FLOPs and memory of presets on a CPU.

    python benchmarks/plan.py [--rows 4] [--length 256] [--json FILE]

Each run trains three steps in a separate process. FLOPs are counted by torch's counter, with eager
attention, since the counter has no formula for the CPU's own kernel. Memory is the peak resident
size during the run minus the size before it, after a run of one row that has loaded everything. The
heap returns freed memory at once (`MALLOC_*`), so that only memory in use is resident. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer

from anchored.config import versions
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.models.build import build_model
from anchored.plan.estimate import plan
from anchored.plan.hardware import Hardware
from anchored.tokenizer import AnchoredTokenizer
from anchored.train import compose as composing
from anchored.train.compose import compose
from anchored.train.config import PretrainConfig, training_arguments

RUNS: dict[str, dict[str, Any]] = {
    "0.5m": {"model": {"preset": "0.5m"}},
    "3m": {"model": {"preset": "3m"}},
    "6m": {"model": {"preset": "6m"}},
    "6m, checkpointing": {
        "model": {"preset": "6m"},
        "trainer": {"activation_checkpointing": True},
    },
    "6m, bf16": {"model": {"preset": "6m"}, "trainer": {"bf16": True}},
    "6m, Muon": {"model": {"preset": "6m"}, "muon_learning_rate": 0.02},
}
STEPS = 3
QUIET_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, root = options.measure
        print(json.dumps(measured(name, Path(root), options.rows)))
        return
    with tempfile.TemporaryDirectory() as root:
        data = _data(Path(root), options.length)
        found = {name: _beside(name, data, Path(root), options.rows) for name in RUNS}
    text = json.dumps({"runs": found, "versions": versions()}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def _data(root: Path, length: int) -> Path:
    config = {
        "out": root / "data",
        "sources": [{"path": "storyworld://small?seed=0", "limit": 1000}],
        "tokenizer": {"vocab_size": 4096},
        "max_length": length,
    }
    return prepare(PrepareConfig.model_validate(config), Console(quiet=True))


def config_of(name: str, root: Path, rows: int) -> PretrainConfig:
    """Return the configuration of the run of that name on the data in `root`."""
    trainer = {
        "max_steps": STEPS,
        "per_device_train_batch_size": rows,
        "use_cpu": True,
        "save_strategy": "no",
        **RUNS[name].get("trainer", {}),
    }
    fields = {"out": root / name, "data": root / "data", **RUNS[name], "trainer": trainer}
    return PretrainConfig.model_validate(fields)


def _beside(name: str, data: Path, root: Path, rows: int) -> dict[str, Any]:
    found = plan(config_of(name, root, rows), Hardware("cpu", 1.0, 1.0))
    command = [sys.executable, __file__, "--rows", str(rows), "--measure", name, str(data.parent)]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **QUIET_HEAP}
    )
    real = json.loads(answer.stdout)
    planned = {
        "parameters": found.parameters["total"],
        "flops": found.flops["total"],
        "memory_mib": found.memory["total"] / 2**20,
    }
    ratios = {figure: planned[figure] / real[figure] for figure in planned}
    return {"planned": planned, "measured": real, "planned_over_measured": ratios}


def measured(name: str, root: Path, rows: int) -> dict[str, float]:
    """Return the figures of a real run, done once for its memory and once for its FLOPs."""
    composing.keep_freed_memory = lambda: False  # kept memory would hide the memory in use
    config = config_of(name, root, rows)
    smallest = config.model_copy(
        update={"trainer": {**config.trainer, "per_device_train_batch_size": 1}}
    )
    _train(smallest)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # reset VmHWM
    before = _status("VmRSS")
    parameters = _train(config)
    memory = (_status("VmHWM") - before) / 2**20
    trainer = _trainer(config, eager=True)  # built first: it measures this machine's peak
    with FlopCounterMode(display=False) as counter:
        trainer.train()
    return {"parameters": parameters, "flops": counter.get_total_flops(), "memory_mib": memory}


def _trainer(config: PretrainConfig, eager: bool = False) -> Trainer:
    assert isinstance(config.data, Path)
    dataset, _ = load_prepared(config.data)
    tokenizer = AnchoredTokenizer.load(config.data / "tokenizer")
    model = build_model(config.model, tokenizer, config.seed)
    if eager:
        model.set_attn_implementation("eager")
    arguments = training_arguments(config)
    return compose(model, dataset, tokenizer, arguments, config.muon_learning_rate)


def _train(config: PretrainConfig) -> int:
    """Train a model and return its number of parameters."""
    trainer = _trainer(config)
    trainer.train()
    model: Any = trainer.model
    return sum(p.numel() for p in model.parameters())


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status; this needs Linux")


if __name__ == "__main__":
    main()
