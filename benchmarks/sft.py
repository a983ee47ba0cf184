"""Compare a step of `anchored sft` with one of TRL's SFTTrainer: speed and memory.

    python benchmarks/sft.py [--source FILE] [--share 0.25] [--rounds 3] [--device cuda] [--json F]

Every side trains the same model on the same sequences, step by step, and its losses must agree with
ours to 1e-5 (on a CPU, in float32). Rows are packed once, by `anchored prepare`:

    anchored            the Trainer that `anchored sft` composes, on packed rows
    anchored_rows       like anchored, one row at a time, gradients accumulated
    trl_padded          SFTTrainer and its collator on the sequences of those rows
    trl_checkpointing   like trl_padded, with gradient checkpointing, which is TRL's default
    trl_packed          the packed rows as TRL takes them: all rows of a batch as a single row
    trl_packed_rows     like trl_packed, one row at a time, gradients accumulated

Sides run in turn, each round in new processes. The supervised tokens of all steps but the first are
counted, by wall clock and by processor time; the latter does not depend on other load. Figures are
medians over the rounds. Memory is the peak of the process minus what it held before its first step
(on a GPU: torch's peak allocation). `--allocator` gives TRL's processes the malloc settings that
`anchored sft` sets for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from anchored.config import versions
from anchored.data.prepare import PrepareConfig, load_prepared, prepare
from anchored.models.build import ModelConfig, olmo2_config, quiet_transformers
from anchored.segments import NO_LOSS
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.compose import compose
from anchored.train.config import SFTConfig, training_arguments

SIDES = (
    "anchored",
    "anchored_rows",
    "trl_padded",
    "trl_checkpointing",
    "trl_packed",
    "trl_packed_rows",
)
VOCABULARY, TOLERANCE, RATE, SEED = 32_768, 1e-5, 1e-3, 0
Row = Mapping[str, Any]


def main() -> None:
    """Measure and print JSON."""
    options = _options()
    if options.side:
        print(json.dumps(run_side(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = Path(scratch)
        data = make_rows(options)
        rounds = [
            {side: child(options, side) for side in options.sides} for _ in range(options.rounds)
        ]
    result = {**data, **summary(rounds, options.device), "rounds": rounds, "versions": versions()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--source", default="storyworld://full/sft?seed=0&count=2000")
    parser.add_argument("--objective", default="anchored", help="standard for rows without tags")
    parser.add_argument("--share", type=float, help="leave loss on this last part of each sequence")
    parser.add_argument("--preset", default="6m")
    parser.add_argument("--length", type=int, default=1024, help="of a row")
    parser.add_argument("--rows", type=int, default=2, help="a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocator", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_rows(options: argparse.Namespace) -> dict[str, Any]:
    """Write the tokenizer and the rows of all steps; return what is in them."""
    config = {
        "out": options.folder / "data",
        "sources": [{"path": options.source}],
        "tokenizer": {"vocab_size": VOCABULARY},
        "objective": options.objective,
        "max_length": options.length,
    }
    prepared = prepare(PrepareConfig.model_validate(config), Console(quiet=True))
    dataset, _ = load_prepared(prepared)
    every = [n for lengths in dataset["seq_lengths"] for n in lengths]
    chosen = dataset.shuffle(seed=SEED).select(range(options.rows * options.steps))
    if options.share is not None:
        chosen = chosen.map(partial(_masked, share=options.share))
    chosen.save_to_disk(str(options.folder / "rows"))
    labels = np.concatenate([*chosen["labels"]])
    return {
        "source": options.source,
        "row_utilisation": sum(every) / (len(dataset) * options.length),
        "tokens": len(labels),
        "supervised": int((labels != NO_LOSS).sum()),
        "mean_sequence": statistics.mean(every),
        "rows_a_step": options.rows,
        "row_length": options.length,
        "preset": options.preset,
        "device": options.device,
    }


def _masked(row: Row, share: float) -> dict[str, list[int]]:
    lengths = row["seq_lengths"]
    within = np.concatenate([np.arange(n) >= max(1, n * (1 - share)) for n in lengths])
    return {"labels": np.where(within, row["input_ids"], NO_LOSS).tolist()}


def child(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """Run one side in a separate process."""
    names = ("folder", "preset", "rows", "steps", "device")
    settings = [f for name in names for f in (f"--{name}", str(getattr(options, name)))]
    environment = dict(os.environ)
    if options.allocator and side.startswith("trl"):
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        }
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *settings],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_side(options: argparse.Namespace) -> dict[str, Any]:
    """Train; return losses, seconds and processor seconds of the timed steps, memory in MiB."""
    dataset = Dataset.load_from_disk(str(options.folder / "rows"))
    tokenizer = AnchoredTokenizer.load(options.folder / "data" / "tokenizer")
    torch.manual_seed(SEED)
    ids = tokenizer.control
    special = {"bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad}
    model = AutoModelForCausalLM.from_config(olmo2_config(options.preset, VOCABULARY, **special))
    with tempfile.TemporaryDirectory() as out, quiet_transformers():
        build = ours if options.side.startswith("anchored") else trl
        trainer = build(options, model, dataset, tokenizer, Path(out))
        clock = Clock(trainer.args.device)
        trainer.add_callback(clock)
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    labels = list(dataset["labels"])[options.rows :]
    supervised = sum(label != NO_LOSS for row in labels for label in row)
    return {"losses": losses, "supervised": supervised, **clock.result()}


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    one_by_one = options.side.endswith("_rows")
    return {
        "max_steps": options.steps,
        "per_device_train_batch_size": 1 if one_by_one else options.rows,
        "gradient_accumulation_steps": options.rows if one_by_one else 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": options.device == "cpu",
        "bf16": options.device == "cuda",
    }


def ours(
    options: argparse.Namespace, model: Any, rows: Dataset, tokenizer: AnchoredTokenizer, out: Path
) -> Trainer:
    """Build the Trainer of `anchored sft`."""
    config = SFTConfig.model_construct(
        out=out, model=ModelConfig(init="-"), seed=SEED, trainer=_settings(options)
    )
    return compose(model, rows, tokenizer, training_arguments(config))


def trl(
    options: argparse.Namespace, model: Any, rows: Dataset, tokenizer: AnchoredTokenizer, out: Path
) -> Trainer:
    """Build an SFTTrainer that leaves the rows, which are already encoded, as they are."""
    from trl.trainer.sft_config import SFTConfig as TRLConfig
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

    packed = options.side.startswith("trl_packed")
    padded = DataCollatorForLanguageModeling(tokenizer.control.pad)
    return SFTTrainer(
        model=model,
        args=TRLConfig(
            output_dir=str(out),
            seed=SEED,
            padding_free=packed,
            max_length=None,
            gradient_checkpointing=options.side == "trl_checkpointing",
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            **_settings(options),
        ),
        train_dataset=rows.remove_columns("kinds"),
        data_collator=None if packed else partial(_unpacked, padded),
        processing_class=tokenizer.hf,
    )


def _unpacked(collate: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a batch of the sequences in `rows`, each in its own row."""
    sequences: list[dict[str, list[int]]] = []
    for row in rows:
        ends = np.cumsum(row["seq_lengths"])
        for end, length in zip(ends, row["seq_lengths"], strict=True):
            part = slice(end - length, end)
            sequences.append({name: row[name][part] for name in ("input_ids", "labels")})
    return collate(sequences)


class Clock(TrainerCallback):
    """The time of the steps after the first ones, and the memory above what was held before."""

    def __init__(self, device: torch.device, untimed: int = 1) -> None:
        self._device, self._untimed = device, untimed
        self._held = self._seconds = self._cpu_seconds = 0.0

    def on_train_begin(self, args: Arguments, state: Any, control: Any, **_: Any) -> None:
        """See `start`."""
        self.start()

    def on_step_end(self, args: Arguments, state: Any, control: Any, **_: Any) -> None:
        """See `step_done`."""
        self.step_done(state.global_step)

    def on_train_end(self, args: Arguments, state: Any, control: Any, **_: Any) -> None:
        """See `stop`."""
        self.stop()

    def start(self) -> None:
        """Take the memory held now as the floor."""
        self._held = self._peak()

    def step_done(self, number: int) -> None:
        """Start the clock after the last of the untimed steps."""
        if number != self._untimed:
            return
        self._wait()
        self._seconds, self._cpu_seconds = -time.perf_counter(), -time.process_time()

    def stop(self) -> None:
        """Stop the clock."""
        self._wait()
        self._seconds += time.perf_counter()
        self._cpu_seconds += time.process_time()

    def result(self) -> dict[str, float]:
        """Return what was measured."""
        peak = self._peak()
        return {
            "seconds": self._seconds,
            "cpu_seconds": self._cpu_seconds,
            "peak_mib": peak,
            "step_mib": peak - self._held,
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _peak(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 2**20
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def summary(rounds: Sequence[Mapping[str, Any]], device: str) -> dict[str, Any]:
    """Return the medians of each side, and their ratios to ours; losses must match the first's.

    Raises:
        SystemExit: losses differ by more than `TOLERANCE` in float32.
    """
    reference = next(iter(rounds[0].values()))["losses"]
    sides = {side: _medians([r[side] for r in rounds]) for side in rounds[0]}
    for side, figures in sides.items():
        figures["loss_difference"] = max(
            abs(a - b) for r in rounds for a, b in zip(r[side]["losses"], reference, strict=True)
        )
    differ = [s for s, figures in sides.items() if figures["loss_difference"] > TOLERANCE]
    if differ and device == "cpu":
        raise SystemExit(
            f"losses differ from the first side's: {differ}: {json.dumps(rounds, indent=1)}"
        )
    return {"sides": sides, "anchored_over": _ratios(sides)}


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    rate = [run["supervised"] / run["seconds"] for run in runs]
    cpu_rate = [run["supervised"] / run["cpu_seconds"] for run in runs]
    return {
        "supervised_tokens_per_second": statistics.median(rate),
        "supervised_tokens_per_cpu_second": statistics.median(cpu_rate),
        "lowest_per_cpu_second": min(cpu_rate),
        "highest_per_cpu_second": max(cpu_rate),
        "peak_mib": statistics.median(run["peak_mib"] for run in runs),
        "step_mib": statistics.median(run["step_mib"] for run in runs),
    }


def _ratios(sides: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names = ("supervised_tokens_per_second", "supervised_tokens_per_cpu_second", "step_mib")
    mine = sides.get("anchored")
    if mine is None:
        return {}
    return {
        side: {name: mine[name] / figures[name] for name in names}
        for side, figures in sides.items()
        if side != "anchored"
    }


if __name__ == "__main__":
    main()
