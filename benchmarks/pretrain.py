"""Compare the Trainer that `anchored pretrain` composes with `examples/minimal_loop.py`.

    python benchmarks/pretrain.py [--presets 0.5m 6m] [--steps 30] [--rounds 3] [--precision
        float32 | bfloat16] [--compile] [--json FILE]

Both sides train the same model on the same prepared storyworld data in the same order. Whole runs
alternate, each in a separate process, and are timed from the end of the second step on, including
all logging. `ratio` is the Trainer's rate over the plain loop's, by wall clock and by processor
time; the latter does not depend on other load. Figures are medians over the rounds. `mfu` compares
6 FLOPs per parameter and token (`monitor.training_flops`) with the matrix products in the same
precision that the same processor time allows. `--compile` applies only to the Trainer
(`trainer.torch_compile`); compile time is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from sft import Clock

from anchored.config import versions
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.models.build import PRESETS, ModelConfig, build_model
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.compose import compose
from anchored.train.config import PretrainConfig, training_arguments
from anchored.train.metrics_log import training_flops

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import minimal_loop  # pyright: ignore[reportMissingImports]

SIDES, RATE = ("trainer", "minimal_loop"), 1e-3
UNTIMED = 2  # steps that --compile spends compiling: first for one row length, then for any


def main() -> None:
    """Measure and print JSON."""
    options = _options()
    if options.side:
        print(json.dumps(run_side(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = Path(scratch) / "data"
        utilisation = make_data(options)
        rounds = {preset: run_rounds(options, preset) for preset in options.presets}
    # The best of all processes: a disturbed one would make the steps look better.
    rate = max(run["matmul_rate"] for each in rounds.values() for r in each for run in r.values())
    result = {
        "row_utilisation": utilisation,
        "matmul_rate": rate,
        "presets": {preset: summary(each, rate) for preset, each in rounds.items()},
        "rounds": rounds,
        "versions": versions(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["0.5m"])
    parser.add_argument("--rows", type=int, default=8, help="a step")
    parser.add_argument("--length", type=int, default=256, help="of a row")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--preset", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_data(options: argparse.Namespace) -> float:
    """Prepare a little more data than the steps take; return the share of non-padding tokens."""
    config = {
        "out": options.folder,
        "sources": [{"path": "storyworld://small?seed=0"}],
        "tokenizer": {"vocab_size": 1500, "max_chars": 1_000_000},
        "max_length": options.length,
        "token_budget": (options.steps + 2) * options.rows * options.length,
    }
    dataset, manifest = load_prepared(
        prepare(PrepareConfig.model_validate(config), Console(quiet=True))
    )
    return manifest["tokens"]["kept"] / (len(dataset) * options.length)


def run_rounds(options: argparse.Namespace, preset: str) -> list[dict[str, Any]]:
    """Return what each side measured in each round, at one size."""
    return [
        {side: child(options, preset, side) for side in options.sides}
        for _ in range(options.rounds)
    ]


def summary(rounds: Sequence[Mapping[str, Any]], rate: float) -> dict[str, Any]:
    """Return the medians of both sides, and their ratio."""
    sides = {side: _medians([r[side] for r in rounds], rate) for side in rounds[0]}
    if len(sides) < len(SIDES):
        return {"sides": sides}
    names = ("tokens_per_second", "tokens_per_cpu_second")
    ratio = {name: sides["trainer"][name] / sides["minimal_loop"][name] for name in names}
    return {"sides": sides, "ratio": ratio}


def child(options: argparse.Namespace, preset: str, side: str) -> dict[str, Any]:
    """Run one side in a separate process."""
    names = ("folder", "rows", "steps", "precision")
    settings = [f for name in names for f in (f"--{name}", str(getattr(options, name)))]
    settings += ["--compile"] * options.compile
    command = [sys.executable, __file__, "--side", side, "--preset", preset, *settings]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """Train exactly one epoch, so that both sides see every token once."""
    dataset, _ = load_prepared(options.folder)
    dataset = dataset.select(range(options.steps * options.rows))
    tokenizer = AnchoredTokenizer.load(options.folder / "tokenizer")
    model = build_model(ModelConfig(preset=options.preset), tokenizer, seed=0)
    run = _trainer if options.side == "trainer" else _minimal_loop
    losses, clock = run(model, dataset, tokenizer, options)
    share = (options.steps - UNTIMED) / options.steps
    tokens = int(sum(map(len, dataset["input_ids"])) * share)
    found = clock.result()
    return {
        "tokens": tokens,
        "flops": training_flops(model, tokens, tokens),
        "matmul_rate": matmul_rate(getattr(torch, options.precision)),
        "last_loss": losses[-1],
        **found,
    }


def matmul_rate(dtype: torch.dtype, size: int = 1024, times: int = 10) -> float:
    """Return the FLOPs per second of processor time in the best of some square products."""
    a = torch.randn(size, size, dtype=dtype)
    seconds = []
    for _ in range(times):
        start = time.process_time()
        torch.mm(a, a)
        seconds.append(time.process_time() - start)
    return 2 * size**3 / min(seconds)


def _trainer(
    model: Any, dataset: Dataset, tokenizer: AnchoredTokenizer, options: argparse.Namespace
) -> tuple[list[float], Clock]:
    settings = {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.rows,
        "learning_rate": RATE,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": options.precision == "bfloat16",
        "torch_compile": options.compile,
    }
    with tempfile.TemporaryDirectory() as out:
        config = PretrainConfig(
            out=Path(out), data=options.folder, model=ModelConfig(preset="0.5m"), trainer=settings
        )
        trainer = compose(model, dataset, tokenizer, training_arguments(config))
        clock = Clock(torch.device("cpu"), UNTIMED)
        trainer.add_callback(clock)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], clock


def _minimal_loop(
    model: Any, dataset: Dataset, tokenizer: AnchoredTokenizer, options: argparse.Namespace
) -> tuple[list[float], Clock]:
    settings = minimal_loop.Settings(
        steps=options.steps, batch_size=options.rows, learning_rate=RATE
    )
    half = options.precision == "bfloat16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    minimal_loop.summed_loss = autocast(minimal_loop.summed_loss)
    clock, losses = Clock(torch.device("cpu"), UNTIMED), []
    clock.start()
    for loss in minimal_loop.train(model, dataset, tokenizer.control.pad, settings):
        losses.append(loss)
        clock.step_done(len(losses))
    clock.stop()
    last = losses[-10:] if options.steps % 10 == 0 else losses[-(options.steps % 10) :]
    return [sum(last) / len(last)], clock  # a mean over ten steps, as the Trainer logs it


def _medians(runs: Sequence[Mapping[str, Any]], rate: float) -> dict[str, float]:
    rates = [run["tokens"] / run["cpu_seconds"] for run in runs]
    return {
        "tokens_per_second": statistics.median(run["tokens"] / run["seconds"] for run in runs),
        "tokens_per_cpu_second": statistics.median(rates),
        "lowest_per_cpu_second": min(rates),
        "highest_per_cpu_second": max(rates),
        "mfu": statistics.median(run["flops"] / run["cpu_seconds"] / rate for run in runs),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        "step_mib": statistics.median(run["step_mib"] for run in runs),
        "last_loss": statistics.median(run["last_loss"] for run in runs),
    }


if __name__ == "__main__":
    main()
