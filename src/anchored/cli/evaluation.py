"""Commands that measure: evaluate, score, capability."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    add_overrides,
    command,
    existing_file,
    extra,
    flags_used,
    key_value,
    only_given,
    positive,
    print_json,
    same_flags,
    whole_number,
)
from anchored.errors import AnchoredError, Incomplete

_READER_FLAGS = {
    **same_flags("embedder", "embedder_key_env", "equivalence", "threshold", "quality"),
    **same_flags("attributes", "calibration", "journal"),
    "schema_name": "--schema",
    "vendi_orders": "--vendi-q",
    "judge.url": "--judge-url",
    "judge.model": "--judge-model",
    "judge.key_env": "--judge-key-env",
    "judge.sampling": "--judge-set",
    **{
        f"judge.{field}": flag
        for field, flag in same_flags(
            "concurrency", "timeout", "requests_per_minute", "tokens_per_minute", "price_in",
            "price_out",
        ).items()
    },
}  # fmt: skip
_EVALUATE_FLAGS = {
    **same_flags("out", "base", "sft", "seeds", "samples", "limit", "concurrency"),
    "benchmarks": "--benchmark",
    "temperatures": "--temperature",
    "max_tokens": "--max-new-tokens",
    **{f"readers.{field}": flag for field, flag in _READER_FLAGS.items()},
}


def add_evaluate(commands: Any) -> None:
    """Adds `anchored evaluate`."""
    summary = "sample models on benchmarks by name, and tell how much of a collapse is undone"
    parser = command(commands, "evaluate", summary, _run_evaluate)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL|CONFIG",
        help="folders, hub ids or endpoint:URL#NAME; those called base and sft take these roles. "
        "Or one .yaml with a.b=c behind it",
    )
    add_overrides(parser)
    parser.add_argument(
        "--benchmark",
        action="append",
        metavar="NAME",
        help="stories; noveltybench, wildchat, infinitychat, each also with =PATH or =hub; or a "
        ".txt or .jsonl file of prompts; repeatable",
    )
    parser.add_argument("--out", metavar="DIR", help="run again to resume")
    parser.add_argument("--base", metavar="NAME", help="the model before fine-tuning")
    parser.add_argument("--sft", metavar="NAME", help="the model that may have collapsed")
    parser.add_argument("--seeds", type=positive, metavar="N", help="sets of samples; default: 1")
    parser.add_argument(
        "--temperature", type=float, action="append", metavar="T", help="repeatable: a sweep"
    )
    parser.add_argument("--samples", type=positive, metavar="K", help="of each prompt")
    parser.add_argument("--limit", type=positive, metavar="P", help="the first P prompts")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="of a response")
    parser.add_argument(
        "--pin", action="append", default=[], metavar="KEY=VALUE", help="a tag to impose"
    )
    parser.add_argument("--no-annotation", action="store_true", help="leave annotations out")
    parser.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="NAME=chat|prefill",
        help="put the prompt to this model as a user's turn, or let it go on from it; repeatable",
    )
    _add_backends(parser.add_argument_group("what reads the texts"))
    _add_judge(parser.add_argument_group("a judge, for what is called judge above"))


def _run_evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import load_config

    with extra("evaluate"):
        from anchored.benchmark.run import run
        from anchored.benchmark.settings import EvaluateConfig, named_models

    words = [*options.models, *options.overrides]
    fields = _evaluate_fields(options)
    if words[0].endswith((".yaml", ".yml")):
        if options.pin or options.ask or options.no_annotation:
            raise AnchoredError("--pin, --ask, --no-annotation: write them in the file, by model")
        path, rest = Path(words[0]), words[1:]
    else:
        settings = {"annotation": not options.no_annotation, "pins": options.pin}
        path, rest = None, []
        fields["models"] = named_models(words, options.ask, settings)
    overrides = [f"{field}={json.dumps(value)}" for field, value in fields.items()]
    given = [name for field, value in fields.items() for name in _leaves(field, value)]
    flags = flags_used(_EVALUATE_FLAGS, given, path, rest)
    config = load_config(EvaluateConfig, path, [*overrides, *rest], flags)
    results = run(config, Console(stderr=options.json))
    if options.json:
        print_json(results)
    if failed := sum(
        one["judge"]["failed"] for one in results["benchmarks"].values() if one["judge"]
    ):
        raise Incomplete(f"{failed} judgements failed; run again to retry them")


def _leaves(field: str, value: Any) -> list[str]:
    """A field's name or, of the judge's mapping, those inside."""
    return [f"{field}.{name}" for name in value] if isinstance(value, dict) else [field]


def _evaluate_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of an `EvaluateConfig` that were given, but for the models."""
    if options.dry_run:
        raise AnchoredError(
            "--dry-run: there are no texts yet to project from; sample without a judge, then "
            "anchored score --dry-run on the samples"
        )
    readers = _reader_fields(options)
    if not options.judge_url:  # --concurrency is an endpoint's too
        readers.pop("judge", None)
    return only_given(
        out=options.out,
        benchmarks=options.benchmark,
        base=options.base,
        sft=options.sft,
        seeds=options.seeds and list(range(options.seeds)),
        temperatures=options.temperature,
        samples=options.samples,
        limit=options.limit,
        max_tokens=options.max_new_tokens,
        concurrency=options.concurrency,
        **{f"readers.{name}": value for name, value in readers.items()},
    )


def add_score(commands: Any) -> None:
    """Adds `anchored score`."""
    summary = "how diverse are these texts? Any model's generations, several files side by side"
    parser = command(commands, "score", summary, _run_score)
    parser.add_argument(
        "files",
        nargs="+",
        type=existing_file,
        metavar="FILE",
        help="JSON lines of {prompt, generations: [...]} or of {prompt, response}",
    )
    parser.add_argument("--n", type=positive, metavar="K", help="the first K texts of each prompt")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the intervals")
    parser.add_argument(
        "--pairwise", action="store_true", help="compare all pairs, not each with the first file"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write results.json, table.md and report.html"
    )
    _add_backends(parser.add_argument_group("what reads the texts"))
    _add_judge(parser.add_argument_group("a judge, for what is called judge above"))


def _add_backends(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--embedder",
        metavar="NAME",
        help="static, sentence-transformers:<folder or hub id> or endpoint:<url>#<model>",
    )
    group.add_argument(
        "--embedder-key-env", metavar="NAME", help="variable with the key of that endpoint"
    )
    group.add_argument(
        "--equivalence",
        metavar="NAME",
        help="exact, overlap, embedding, classifier[:<folder or hub id>], judge or given",
    )
    group.add_argument("--threshold", type=float, metavar="X", help="of the equivalence")
    group.add_argument(
        "--quality",
        metavar="NAME",
        help="given (the file's generation_scores, 1 to 10), judge, perplexity:<model>, "
        "reward:<model> or none",
    )
    group.add_argument(
        "--attributes",
        choices=("offline", "judge", "none"),
        help="who reads what semantic entropy is of",
    )
    group.add_argument("--schema", metavar="NAME", help="its attributes; default: general")
    group.add_argument("--calibration", type=existing_file, metavar="FILE", help="of the annotator")
    group.add_argument(
        "--vendi-q", type=float, action="append", metavar="Q", help="orders of Vendi; repeatable"
    )


def _add_judge(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--judge-url", metavar="URL", help="of an OpenAI-compatible server")
    group.add_argument("--judge-model", metavar="NAME", help="as the server calls it")
    group.add_argument(
        "--judge-key-env", metavar="NAME", help="variable with its key; default: OPENAI_API_KEY"
    )
    group.add_argument(
        "--judge-set",
        type=key_value,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a sampling parameter, the value read as YAML; repeatable",
    )
    group.add_argument("--concurrency", type=positive, metavar="N", help="most requests at once")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds for one answer")
    group.add_argument("--requests-per-minute", type=positive, metavar="N")
    group.add_argument("--tokens-per-minute", type=positive, metavar="N")
    group.add_argument("--price-in", type=float, metavar="X", help="of a million tokens read")
    group.add_argument("--price-out", type=float, metavar="X", help="of a million tokens written")
    group.add_argument(
        "--journal", metavar="FILE", help="where its answers are kept; default: in --out"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print what it would be asked and cost, and stop"
    )


def _run_score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("evaluate"):
        from anchored.scoring.score import ScoreConfig, project, run

    flags = {**same_flags("n", "seed"), **_READER_FLAGS}
    config = validated(ScoreConfig, _score_fields(options), source="command line", flags=flags)
    if options.dry_run:
        plan = project(config, options.out)
        print_json(plan.as_json()) if options.json else print(plan)
        return
    results = run(config, options.out, Console(stderr=options.json))
    if options.json:
        print_json(results)
    if results["judge"] and (failed := results["judge"]["failed"]):
        where = f"; see {options.out / 'failures.jsonl'}" if options.out else ""
        raise Incomplete(f"{failed} judgements failed{where}; run again to retry them")


def _score_fields(options: argparse.Namespace) -> dict[str, Any]:
    return only_given(
        files=[str(path) for path in options.files],
        n=options.n,
        compare="pairwise" if options.pairwise else None,
        seed=options.seed,
        **_reader_fields(options),
    )


def _reader_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `ReadersConfig` that were given."""
    return only_given(
        embedder=options.embedder,
        embedder_key_env=options.embedder_key_env,
        equivalence=options.equivalence,
        threshold=options.threshold,
        quality=options.quality,
        attributes=options.attributes,
        schema_name=options.schema,
        calibration=options.calibration and str(options.calibration),
        vendi_orders=options.vendi_q,
        judge=_judge_fields(options) or None,
        journal=options.journal,
    )


def _judge_fields(options: argparse.Namespace) -> dict[str, Any]:
    from anchored.config import parse_yaml

    sampling = {name: parse_yaml(value, f"--judge-set {name}") for name, value in options.judge_set}
    return only_given(
        url=options.judge_url,
        model=options.judge_model,
        key_env=options.judge_key_env,
        sampling=sampling or None,
        concurrency=options.concurrency,
        timeout=options.timeout,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        price_in=options.price_in,
        price_out=options.price_out,
    )


def add_capability(commands: Any) -> None:
    """Adds `anchored capability`."""
    summary = "lm-eval's tasks on models, behind their annotations where they have them"
    parser = command(commands, "capability", summary, _run_capability)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folder or hub id")
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME",
        help="a task of lm-eval, a YAML file, or paper-zero-shot; repeatable",
    )
    parser.add_argument("--include-path", metavar="DIR", help="a folder with more task files")
    parser.add_argument(
        "--annotation",
        choices=("sampled", "given", "none"),
        help="what stands before an annotated model's answers; default: sampled",
    )
    parser.add_argument(
        "--pin", type=key_value, action="append", metavar="KEY=VALUE", help="a tag to impose"
    )
    parser.add_argument(
        "--format", choices=("auto", "chat", "document"), help="how tasks are put; default: auto"
    )
    parser.add_argument("--num-fewshot", type=whole_number, metavar="N", help="default: the task's")
    parser.add_argument("--limit", type=positive, metavar="N", help="first items of each task")
    parser.add_argument(
        "--batch-size",
        type=_positive_or_auto,
        metavar="N|auto",
        help="sequences run together; auto: as many as fit",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="precision of the weights; default: auto, the one they were saved in",
    )
    parser.add_argument(
        "--device-map", metavar="MAP", help="auto to spread a model over GPUs, or a device"
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, help="of annotations and sampled answers"
    )
    parser.add_argument("--out", type=Path, required=True, help="run again to resume")


def _positive_or_auto(text: str) -> int | str:
    return text if text == "auto" else positive(text)


def _run_capability(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("lm-eval"):
        from anchored.benchmark.capability import CapabilityConfig, run

    given = {
        "models": options.models,
        "tasks": options.task,
        "include_path": options.include_path,
        "annotation": options.annotation,
        "pins": options.pin,
        "format": options.format,
        "num_fewshot": options.num_fewshot,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "dtype": options.dtype,
        "device_map": options.device_map,
        "seed": options.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    flags = {"tasks": "--task", "pins": "--pin", **same_flags("include_path", "batch_size")}
    config = validated(CapabilityConfig, known, source="command line", flags=flags)
    results = run(config, options.out, Console(stderr=options.json))
    if options.json:
        print_json(results)
