"""The stock Trainer as `anchored pretrain` composes it, beside `examples/minimal_loop.py`.

    python benchmarks/pretrain.py [--preset 0.5m] [--steps 30] [--rounds 3] [--json FILE]

Same prepared storyworld data, same model, same order; whole runs in turn, each timed over its
steps alone, all of our logging included. The fastest run of each side counts, because other work
on the machine only ever adds time. `ratio` is Trainer's tokens a second over the plain loop's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback

from anchored.config import versions
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.models import ModelConfig, build_model
from anchored.train.run import PretrainConfig, compose, training_arguments

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import minimal_loop  # pyright: ignore[reportMissingImports]

BATCH, LENGTH, RATE = 8, 256, 1e-3


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="0.5m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), options.preset, options.steps, options.rounds)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def measure(scratch: Path, preset: str, steps: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of both, and their ratio."""
    dataset, tokens = _data(scratch, steps)
    tokenizer = AnchoredTokenizer.load(scratch / "data" / "tokenizer")
    seconds: dict[str, list[float]] = {"trainer": [], "minimal_loop": []}
    losses: dict[str, float] = {}
    for number in range(rounds):
        for side in seconds:
            model = build_model(ModelConfig(preset=preset), tokenizer, seed=0)
            run = _trainer if side == "trainer" else _minimal_loop
            out = scratch / f"{side}-{number}"
            took, losses[side] = run(model, dataset, tokenizer, out, steps)
            seconds[side].append(took)
    rates = {side: tokens / min(times) for side, times in seconds.items()}
    return {
        "preset": preset,
        "tokens": tokens,
        "tokens_per_second": rates,
        "ratio": rates["trainer"] / rates["minimal_loop"],
        "seconds": seconds,
        "last_loss": losses,
        "versions": versions(),
    }


def _data(scratch: Path, steps: int) -> tuple[Dataset, int]:
    """Exactly one epoch for `steps`, so that both sides see every token once."""
    config = {
        "out": scratch / "data",
        "sources": [{"path": "storyworld://small?seed=0"}],
        "tokenizer": {"vocab_size": 1500, "max_chars": 1_000_000},
        "max_length": LENGTH,
        "token_budget": (steps + 2) * BATCH * LENGTH,
    }
    data = prepare(PrepareConfig.model_validate(config), Console(quiet=True))
    dataset, _ = load_prepared(data)
    dataset = dataset.select(range(steps * BATCH))
    return dataset, sum(map(len, dataset["input_ids"]))


class _Clock(TrainerCallback):
    """Times what lies between the first step and the end."""

    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.perf_counter()


def _trainer(
    model: Any, dataset: Dataset, tokenizer: AnchoredTokenizer, out: Path, steps: int
) -> tuple[float, float]:
    settings = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": RATE,
        "save_strategy": "no",
        "use_cpu": True,
    }
    config = PretrainConfig(out=out, data=out, model=ModelConfig(preset="0.5m"), trainer=settings)
    trainer, clock = compose(model, dataset, tokenizer, training_arguments(config)), _Clock()
    trainer.add_callback(clock)
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock.seconds, logged[-1]


def _minimal_loop(
    model: Any, dataset: Dataset, tokenizer: AnchoredTokenizer, out: Path, steps: int
) -> tuple[float, float]:
    settings = minimal_loop.Settings(steps=steps, batch_size=BATCH, learning_rate=RATE)
    start = time.perf_counter()
    losses = list(minimal_loop.train(model, dataset, tokenizer.control.pad, settings))
    took = time.perf_counter() - start
    last = losses[-10:] if steps % 10 == 0 else losses[-(steps % 10) :]
    return took, sum(last) / len(last)


if __name__ == "__main__":
    main()
