"""Commands that train or sample: demo, experiment, plan, pretrain, sft, preferences, sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    LOADING,
    OVERRIDES,
    above_zero,
    command,
    existing_file,
    key_value,
    positive,
    print_json,
    share,
    whole_number,
)
from anchored.cli.options import Option, as_overrides, fields_given, names_in_errors, nested

_DEMO = (
    Option("--out", "output folder; default: %(default)s", type=Path, default=Path("runs/demo")),
    Option(
        "--seeds",
        "number of runs to average over; default: %(default)s",
        field="seeds",
        value=lambda count: list(range(count)),
        type=positive,
        default=1,
    ),
    Option(
        "--regime",
        "what the SFT data covers: all semantics, unevenly (broad), or only a few values "
        "(narrow); default: %(default)s",
        field="regime",
        choices=("broad", "narrow"),
        default="broad",
    ),
    Option(
        "--strength",
        "learning rate of SFT, low (light) or high (hard); default: %(default)s",
        field="strength",
        choices=("light", "hard"),
        default="light",
    ),
    OVERRIDES,
)


def add_demo(commands: Any) -> None:
    """Add `anchored demo`."""
    summary = "reproduce collapse and its cure on a synthetic story corpus, on a CPU, in minutes"
    command(commands, "demo", summary, _run_demo, _DEMO)


def _run_demo(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.experiments import demo

    given = as_overrides(fields_given(_DEMO, options))
    config = load_config(demo.DemoConfig, None, [*given, *options.overrides])
    results = demo.run(config, options.out)
    if options.json:
        print_json(results)


_EXPERIMENT = (
    Option(
        "config",
        "YAML file of a study; its field `experiment` names the kind",
        type=existing_file,
        metavar="CONFIG",
    ),
    Option("--out", "output folder; run again to resume", type=Path, required=True),
    OVERRIDES,
)


def add_experiment(commands: Any) -> None:
    """Add `anchored experiment`."""
    summary = "run a study from its configuration: bases, treatments, samples, metrics, report"
    command(commands, "experiment", summary, _run_experiment, _EXPERIMENT)


def _run_experiment(options: argparse.Namespace) -> None:
    from anchored import experiments

    results = experiments.run(options.config, options.out, options.overrides)
    if options.json:
        print_json(results)


_PLAN = (
    Option(
        "config",
        "YAML file for `anchored pretrain` or `anchored sft`",
        type=existing_file,
        metavar="CONFIG",
    ),
    Option("--devices", "number of devices; default: 1", type=positive, default=1, metavar="N"),
    Option("--device", "h100, h200, a100, ..., or cpu; default: %(default)s", default="h100"),
    Option(
        "--peak-tflops",
        "peak bf16 TFLOP/s of a device that has no name here",
        type=above_zero,
        metavar="X",
    ),
    Option(
        "--memory-gib",
        "memory in GiB of a device that has no name here",
        type=above_zero,
        metavar="Y",
    ),
    Option("--price-per-hour", "price per device-hour", type=above_zero, metavar="P"),
    Option(
        "--mfu",
        "model FLOPs utilization, as in metrics.jsonl; default: the value at which all FLOPs "
        "together reach 40%% of the peak",
        type=share,
    ),
    Option(
        "--supervised",
        "share of tokens that carry loss, if the data is not prepared yet",
        type=share,
        metavar="S",
    ),
    Option(
        "--annotation",
        "JSON output of `anchored annotate --dry-run N --json`",
        type=existing_file,
        metavar="FILE",
    ),
    Option("--stage", "stage to plan; default: read from CONFIG", choices=("pretrain", "sft")),
    OVERRIDES,
)


def add_plan(commands: Any) -> None:
    """Add `anchored plan`."""
    summary = "estimate a training run: FLOPs, memory, hours, disk and cost"
    command(commands, "plan", summary, _run_plan, _PLAN)


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


def _stage(config: str) -> tuple[Option, ...]:
    """Return the arguments of a command that needs only a configuration."""
    return (
        Option(
            "config", f"YAML file with the fields of {config}", type=existing_file, metavar="CONFIG"
        ),
        OVERRIDES,
    )


def add_pretrain(commands: Any) -> None:
    """Add `anchored pretrain`."""
    summary = (
        "train on documents, from scratch or from the checkpoint `model.init`; run again to resume"
    )
    command(commands, "pretrain", summary, _run_pretrain, _stage("PretrainConfig"))


def _run_pretrain(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.config import PretrainConfig
    from anchored.workflow import pretrain

    _print_model(pretrain(load_config(PretrainConfig, options.config, options.overrides)), options)


def add_sft(commands: Any) -> None:
    """Add `anchored sft`."""
    summary = "fine-tune on conversations: standard, anchored, anchored-replay or tagged"
    command(commands, "sft", summary, _run_sft, _stage("SFTConfig"))


def _run_sft(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.config import SFTConfig
    from anchored.workflow import sft

    _print_model(sft(load_config(SFTConfig, options.config, options.overrides)), options)


def add_preferences(commands: Any) -> None:
    """Add `anchored preferences`."""
    summary = "build pairs for TRL's DPO or prompts for its GRPO, with the annotation in the prompt"
    command(commands, "preferences", summary, _run_preferences, _stage("PreferencesConfig"))


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


def _sampling(part: str, prefix: str) -> tuple[Option, ...]:
    """Return the options for sampling one part of an answer."""
    return tuple(
        Option(
            f"--{prefix}{name}",
            f"{name} for sampling the {part}",
            field=f"{part}.{name.replace('-', '_')}",
            type=float,
            metavar="X",
        )
        for name in ("temperature", "top-p", "min-p")
    )


_SAMPLE = (
    Option("model", "model folder or hub id", metavar="MODEL"),
    Option("--prompt", "user prompt; repeatable", repeatable=True, default=[], metavar="TEXT"),
    Option("--prefill", "text that the response starts with", default="", metavar="TEXT"),
    Option("-n", "number of samples per prompt; default: 1", type=positive, default=1),
    Option(
        "--pin",
        "tag to impose; repeatable",
        type=key_value,
        repeatable=True,
        default=[],
        metavar="KEY=VALUE",
    ),
    Option("--no-annotation", "sample the response without an annotation", switch=True),
    *_sampling("response", ""),
    *_sampling("annotation", "annotation-"),
    Option(
        "--max-new-tokens",
        "maximum number of response tokens",
        field="max_response_tokens",
        type=positive,
        metavar="N",
    ),
    Option("--seed", "random seed; default: 0", field="seed", type=whole_number, default=0),
    Option("--out", "write the samples to FILE as JSON Lines", type=Path, metavar="FILE"),
)


def add_sample(commands: Any) -> None:
    """Add `anchored sample`."""
    summary = "sample answers: first an annotation, then the response given it"
    command(commands, "sample", summary, _run_sample, (*_SAMPLE, *LOADING))


def _run_sample(options: argparse.Namespace) -> None:
    from anchored.config import validated
    from anchored.sampling.engine import SampleConfig
    from anchored.sampling.run import run

    given = nested(fields_given(_SAMPLE, options))
    flags = names_in_errors(_SAMPLE)
    run(
        options.model,
        prompts=options.prompt,
        n=options.n,
        pins=options.pin,
        prefill=options.prefill,
        annotated=not options.no_annotation,
        config=validated(SampleConfig, given, source="command line", flags=flags),
        out=options.out,
        as_json=options.json,
        **fields_given(LOADING, options),
    )
