"""Measure when the collapse monitor detects the collapse of standard SFT, and what it costs.

    python benchmarks/monitor.py STUDY [--seeds 0 1 2] [--out runs/monitor]

STUDY is the folder of a finished `anchored demo` on the storyworld. For each seed, standard SFT is
run again from the plain base as in the demo, with a default monitor on four open prompts.
Attributes are read exactly.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from anchored.config import load_config
from anchored.data.prepare import PrepareConfig
from anchored.data.readers import SourceConfig
from anchored.experiments.demo import sft_steps
from anchored.experiments.demo_config import DemoConfig
from anchored.files import write_json
from anchored.models.build import ModelConfig
from anchored.models.embedders import StaticEmbedder
from anchored.storyworld import Storyworld
from anchored.train.config import MonitorConfig, SFTConfig
from anchored.train.metrics_log import read_metrics
from anchored.workflow import sft

PROMPTS = 4
WORLD = Storyworld("small")


def attributes(text: str) -> Mapping[str, str]:
    """Return what the storyworld's own parser reads."""
    return WORLD.read(text).attributes


def main() -> None:
    """Print a row for each turn and write all rows as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/monitor"))
    options = parser.parse_args()

    torch.set_num_threads(1)  # as in the demo
    StaticEmbedder()  # distilled once per machine, before anything is timed
    found = {}
    for seed in options.seeds:
        steps, turns = watched(options.study, seed, options.out)
        found[str(seed)] = {"steps": steps, "turns": turns}
        for turn in turns:
            print(seed, f"{turn['step']}/{steps}", json.dumps(turn))
    write_json(options.out / "results.json", found)


def watched(study: Path, seed: int, out: Path) -> tuple[int, list[dict[str, Any]]]:
    """Return the steps of one seed's standard SFT, and what was logged at each turn."""
    config = load_config(DemoConfig, study / "config.yaml")
    settings, steps = config.sft, sft_steps(config, "standard")
    folder = out / f"seed-{seed}"
    sft(
        SFTConfig(
            out=folder,
            data=PrepareConfig(
                sources=(
                    SourceConfig(
                        path=f"storyworld://{config.size}/sft?seed={seed}&count={settings.examples}"
                        f"&narrow_mass={config.narrow_mass}&cover=true"
                    ),
                ),
                schema_name=f"storyworld://{config.size}",
                max_length=config.max_length,
                packing=False,
                seed=seed,
            ),
            model=ModelConfig(
                init=str((config.bases or study / "bases") / f"seed-{seed}/base/model")
            ),
            objective="standard",
            seed=seed,
            trainer={
                "max_steps": steps,
                "per_device_train_batch_size": settings.batch_size,
                "learning_rate": settings.learning_rate,
                "adam_beta2": settings.adam_beta2,
                "warmup_steps": 0.05,
                "logging_steps": 20,
                "save_strategy": "no",
                "use_cpu": not torch.cuda.is_available(),
            },
            monitor=MonitorConfig(
                prompts=WORLD.prompts[:PROMPTS], attributes="benchmarks.monitor:attributes"
            ),
        ),
        quiet=True,
    )
    rows = [row for row in read_metrics(folder) if "collapse/kept" in row]
    names = [name for name in rows[0] if name.startswith("collapse/")] if rows else []
    return steps, [
        {"step": row["step"], **{name.removeprefix("collapse/"): row[name] for name in names}}
        for row in rows
    ]


if __name__ == "__main__":
    main()
