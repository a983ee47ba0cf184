"""Commands on models: demo, experiment, plan, pretrain, sft, preferences, sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    above_zero,
    add_overrides,
    command,
    existing_file,
    key_value,
    only_given,
    positive,
    print_json,
    share,
    whole_number,
)


def add_demo(commands: Any) -> None:
    """Adds `anchored demo`."""
    summary = "collapse and its cure on a story corpus with known semantics, on a CPU, in minutes"
    parser = command(commands, "demo", summary, _run_demo)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--seeds", type=positive, default=1, help="runs to average over")
    parser.add_argument(
        "--regime",
        choices=("broad", "narrow"),
        default="broad",
        help="does the SFT data cover all semantics, if unevenly (broad), or only a few values",
    )
    parser.add_argument(
        "--strength",
        choices=("light", "hard"),
        default="light",
        help="learning rate of SFT",
    )
    add_overrides(parser)


def _run_demo(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.experiments import demo

    given = [
        f"seeds={list(range(options.seeds))}",
        f"regime={options.regime}",
        f"strength={options.strength}",
    ]
    config = load_config(demo.DemoConfig, None, [*given, *options.overrides])
    results = demo.run(config, options.out)
    if options.json:
        print_json(results)


def add_experiment(commands: Any) -> None:
    """Adds `anchored experiment`."""
    summary = "run a study from its configuration: bases, treatments, samples, measures, report"
    parser = command(commands, "experiment", summary, _run_experiment)
    parser.add_argument(
        "config", metavar="CONFIG", type=existing_file, help="its `experiment` says which"
    )
    parser.add_argument("--out", type=Path, required=True, help="run again to resume")
    add_overrides(parser)


def _run_experiment(options: argparse.Namespace) -> None:
    from anchored import experiments

    results = experiments.run(options.config, options.out, options.overrides)
    if options.json:
        print_json(results)


def add_plan(commands: Any) -> None:
    """Adds `anchored plan`."""
    summary = "what a training run will take: FLOPs, memory, hours, disk and money"
    parser = command(commands, "plan", summary, _run_plan)
    parser.add_argument(
        "config", type=existing_file, metavar="CONFIG", help="of `pretrain` or `sft`"
    )
    parser.add_argument("--devices", type=positive, default=1, metavar="N", help="how many")
    parser.add_argument(
        "--device", default="h100", help="h100, h200, a100, ..., or cpu; default: %(default)s"
    )
    for name, unit, what in (
        ("--peak-tflops", "X", "of another device, in bf16"),
        ("--memory-gib", "Y", "of another device"),
        ("--price-per-hour", "P", "of a device"),
    ):
        parser.add_argument(name, type=above_zero, metavar=unit, help=what)
    parser.add_argument(
        "--mfu",
        type=share,
        help="as in metrics.jsonl; default: what it is where all FLOPs make 40%% of the peak",
    )
    parser.add_argument(
        "--supervised", type=share, metavar="S", help="share of tokens with loss, if not prepared"
    )
    parser.add_argument(
        "--annotation", type=existing_file, metavar="FILE", help="JSON of `annotate --dry-run N`"
    )
    parser.add_argument("--stage", choices=("pretrain", "sft"), help="default: what CONFIG holds")
    add_overrides(parser)


def _run_plan(options: argparse.Namespace) -> None:
    import json

    from rich import print as show

    from anchored.config import load_config
    from anchored.plan.estimate import plan
    from anchored.plan.hardware import hardware_named
    from anchored.plan.table import rich_table
    from anchored.plan.workload import stage_of
    from anchored.train.config import PretrainConfig, SFTConfig

    stage = options.stage or stage_of(options.config)
    config = load_config(
        SFTConfig if stage == "sft" else PretrainConfig, options.config, options.overrides
    )
    hardware = hardware_named(
        options.device,
        options.peak_tflops,
        options.memory_gib,
        devices=options.devices,
        mfu=options.mfu,
        price_per_hour=options.price_per_hour,
    )
    projection = json.loads(options.annotation.read_text("utf-8")) if options.annotation else None
    found = plan(config, hardware, options.supervised, projection)
    if options.json:
        print_json(found.to_json())
    else:
        show(rich_table(found))


def add_pretrain(commands: Any) -> None:
    """Adds `anchored pretrain`."""
    summary = "train on documents from scratch, or go on from `model.init`; run again to resume"
    parser = command(commands, "pretrain", summary, _run_pretrain)
    parser.add_argument(
        "config", type=existing_file, metavar="CONFIG", help="YAML file of a PretrainConfig"
    )
    add_overrides(parser)


def _run_pretrain(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.config import PretrainConfig
    from anchored.workflow import pretrain

    _print_model(pretrain(load_config(PretrainConfig, options.config, options.overrides)), options)


def add_sft(commands: Any) -> None:
    """Adds `anchored sft`."""
    summary = "fine-tune on conversations: standard, anchored, anchored-replay or tagged"
    parser = command(commands, "sft", summary, _run_sft)
    parser.add_argument(
        "config", type=existing_file, metavar="CONFIG", help="YAML file of an SFTConfig"
    )
    add_overrides(parser)


def _run_sft(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.config import SFTConfig
    from anchored.workflow import sft

    _print_model(sft(load_config(SFTConfig, options.config, options.overrides)), options)


def add_preferences(commands: Any) -> None:
    """Adds `anchored preferences`."""
    summary = "pairs for TRL's DPO, or prompts for its GRPO, with the annotation inside the prompt"
    parser = command(commands, "preferences", summary, _run_preferences)
    parser.add_argument(
        "config", type=existing_file, metavar="CONFIG", help="YAML file of a PreferencesConfig"
    )
    add_overrides(parser)


def _run_preferences(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.preferences.build import MANIFEST, PreferencesConfig, build

    folder = build(load_config(PreferencesConfig, options.config, options.overrides))
    if options.json:
        print((folder.parent / MANIFEST).read_text(encoding="utf-8"), end="")
    else:
        print(folder)


def _print_model(model: Path, options: argparse.Namespace) -> None:
    from anchored.models.record import read_record

    if options.json:
        print_json({"model": str(model), **read_record(model)})
    else:
        print(model)


def add_sample(commands: Any) -> None:
    """Adds `anchored sample`."""
    summary = "sample answers: an annotation first, then the response given it"
    parser = command(commands, "sample", summary, _run_sample)
    parser.add_argument("model", metavar="MODEL", help="model folder or hub id")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--prefill", default="", metavar="TEXT", help="text that the response starts with"
    )
    parser.add_argument("-n", type=positive, default=1, help="samples a prompt")
    parser.add_argument(
        "--pin",
        type=key_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a tag to impose",
    )
    parser.add_argument("--no-annotation", action="store_true", help="leave the annotation out")
    for name in ("temperature", "top-p", "min-p"):
        for part in ("", "annotation-"):
            whose = "of the annotation" if part else "of the response"
            parser.add_argument(f"--{part}{name}", type=float, metavar="X", help=whose)
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="of the response")
    parser.add_argument("--seed", type=whole_number, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the samples as JSON lines")


_SAMPLE_FLAGS = {
    f"{part}.{name}": f"--{prefix}{name.replace('_', '-')}"
    for part, prefix in (("response", ""), ("annotation", "annotation-"))
    for name in ("temperature", "top_p", "min_p")
}


def _run_sample(options: argparse.Namespace) -> None:
    from anchored.config import validated
    from anchored.sampling.engine import SampleConfig
    from anchored.sampling.run import run

    config = {
        "annotation": only_given(
            temperature=options.annotation_temperature,
            top_p=options.annotation_top_p,
            min_p=options.annotation_min_p,
        ),
        "response": only_given(
            temperature=options.temperature, top_p=options.top_p, min_p=options.min_p
        ),
        "seed": options.seed,
        **only_given(max_response_tokens=options.max_new_tokens),
    }
    run(
        options.model,
        prompts=options.prompt,
        n=options.n,
        pins=options.pin,
        prefill=options.prefill,
        annotated=not options.no_annotation,
        config=validated(SampleConfig, config, source="command line", flags=_SAMPLE_FLAGS),
        out=options.out,
        as_json=options.json,
    )
