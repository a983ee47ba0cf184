"""Commands that measure models and texts: evaluate, score, capability."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    LOADING,
    OVERRIDES,
    command,
    existing_file,
    extra,
    key_value,
    positive,
    print_json,
    whole_number,
)
from anchored.cli.options import (
    Option,
    add_options,
    as_overrides,
    fields_given,
    flags_used,
    names_in_errors,
    nested,
)
from anchored.errors import AnchoredError, Incomplete

_READERS = (
    Option(
        "--embedder",
        "static, sentence-transformers:<folder or hub id> or endpoint:<url>#<model>",
        field="embedder",
        metavar="NAME",
    ),
    Option(
        "--embedder-key-env",
        "environment variable that holds the API key of the embedder's endpoint",
        field="embedder_key_env",
        metavar="NAME",
    ),
    Option(
        "--equivalence",
        "what makes two answers the same: exact, overlap, embedding, "
        "classifier[:<folder or hub id>], judge or given",
        field="equivalence",
        metavar="NAME",
    ),
    Option(
        "--threshold",
        "similarity from which two answers are the same",
        field="threshold",
        type=float,
        metavar="X",
    ),
    Option(
        "--quality",
        "given (the file's generation_scores, 1 to 10), judge, perplexity:<model>, "
        "reward:<model> or none",
        field="quality",
        metavar="NAME",
    ),
    Option(
        "--attributes",
        "reader of the attributes whose semantic entropy is measured",
        field="attributes",
        choices=("offline", "judge", "none"),
    ),
    Option(
        "--schema",
        "schema of these attributes; default: general",
        field="schema_name",
        metavar="NAME",
    ),
    Option(
        "--calibration",
        "saved calibration of the offline annotator",
        field="calibration",
        value=str,
        type=existing_file,
        metavar="FILE",
    ),
    Option(
        "--vendi-q",
        "order of the Vendi score; repeatable",
        field="vendi_orders",
        type=float,
        repeatable=True,
        metavar="Q",
    ),
)

_FAIL_IF = Option(
    "--fail-if",
    "exit with status 1 if this holds: METRIC<VALUE (or <=, >, >=) for any of them, or 'drop "
    "METRIC>VALUE' or 'drop METRIC>N%%' against the first; repeatable",
    repeatable=True,
    default=[],
    metavar="CONDITION",
)


def _as_sampling(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    from anchored.config import parse_yaml

    return {name: parse_yaml(value, f"--judge-set {name}") for name, value in pairs}


_JUDGE = (
    Option("--judge-url", "URL of an OpenAI-compatible server", field="judge.url", metavar="URL"),
    Option("--judge-model", "model name on the server", field="judge.model", metavar="NAME"),
    Option(
        "--judge-key-env",
        "environment variable that holds the API key; default: OPENAI_API_KEY",
        field="judge.key_env",
        metavar="NAME",
    ),
    Option(
        "--judge-set",
        "sampling parameter; the value is parsed as YAML; repeatable",
        field="judge.sampling",
        value=_as_sampling,
        type=key_value,
        repeatable=True,
        default=[],
        metavar="NAME=VALUE",
    ),
    Option(
        "--concurrency",
        "maximum number of concurrent requests",
        field="judge.concurrency",
        type=positive,
        metavar="N",
    ),
    Option(
        "--timeout",
        "time limit for one answer in seconds",
        field="judge.timeout",
        type=float,
        metavar="S",
    ),
    Option(
        "--requests-per-minute",
        "maximum number of requests per minute",
        field="judge.requests_per_minute",
        type=positive,
        metavar="N",
    ),
    Option(
        "--tokens-per-minute",
        "maximum number of tokens per minute",
        field="judge.tokens_per_minute",
        type=positive,
        metavar="N",
    ),
    Option(
        "--price-in",
        "price per million input tokens",
        field="judge.price_in",
        type=float,
        metavar="X",
    ),
    Option(
        "--price-out",
        "price per million output tokens",
        field="judge.price_out",
        type=float,
        metavar="X",
    ),
    Option(
        "--journal",
        "file that keeps the judge's answers; default: in --out",
        field="journal",
        metavar="FILE",
    ),
    Option(
        "--dry-run",
        "project the number, tokens and cost of the judge's requests, and stop",
        switch=True,
    ),
)


def _add_readers(parser: argparse.ArgumentParser) -> None:
    """Add the options of a `ReadersConfig`."""
    add_options(parser.add_argument_group("backends that read the texts"), _READERS)
    add_options(parser.add_argument_group("the judge that these backends may ask"), _JUDGE)


_EVALUATE = (
    Option(
        "models",
        "folders, hub ids or endpoint:URL#NAME; models named base and sft take these roles. Or "
        "one .yaml configuration, followed by a.b=c",
        nargs="+",
        metavar="[NAME=]MODEL|CONFIG",
    ),
    OVERRIDES,
    Option(
        "--benchmark",
        "stories; noveltybench, wildchat or infinitychat, each also with =PATH or =hub; or a "
        ".txt or .jsonl file of prompts; repeatable",
        field="benchmarks",
        repeatable=True,
        metavar="NAME",
    ),
    Option("--out", "output folder; run again to resume", field="out", metavar="DIR"),
    Option("--base", "the model before fine-tuning", field="base", metavar="NAME"),
    Option("--sft", "the model that may have collapsed", field="sft", metavar="NAME"),
    Option(
        "--seeds",
        "number of sets of samples; default: 1",
        field="seeds",
        value=lambda count: list(range(count)),
        type=positive,
        metavar="N",
    ),
    Option(
        "--temperature",
        "sampling temperature; repeatable for a sweep",
        field="temperatures",
        type=float,
        repeatable=True,
        metavar="T",
    ),
    Option(
        "--samples",
        "number of samples per prompt",
        field="samples",
        type=positive,
        metavar="K",
    ),
    Option("--limit", "use only the first P prompts", field="limit", type=positive, metavar="P"),
    Option(
        "--max-new-tokens",
        "maximum number of response tokens",
        field="max_tokens",
        type=positive,
        metavar="N",
    ),
    Option("--pin", "tag to impose; repeatable", repeatable=True, default=[], metavar="KEY=VALUE"),
    Option("--no-annotation", "sample responses without annotations", switch=True),
    Option(
        "--ask",
        "give the prompt to model NAME as a chat turn, or as text to continue; repeatable",
        repeatable=True,
        default=[],
        metavar="NAME=chat|prefill",
    ),
    _FAIL_IF,
)


def add_evaluate(commands: Any) -> None:
    """Add `anchored evaluate`."""
    summary = "sample models on benchmarks and measure how much of a collapse is undone"
    _add_readers(command(commands, "evaluate", summary, _run_evaluate, (*_EVALUATE, *LOADING)))


def _run_evaluate(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import load_config

    with extra("evaluate"):
        from anchored.benchmark.run import run
        from anchored.benchmark.settings import EvaluateConfig, named_models
        from anchored.report.score_page import report_evaluation
        from anchored.scoring import conditions

    gates = conditions.parse(options.fail_if, of_evaluation=True)
    words = [*options.models, *options.overrides]
    fields, loading = _evaluate_fields(options), fields_given(LOADING, options)
    if words[0].endswith((".yaml", ".yml")):
        if options.pin or options.ask or options.no_annotation or loading:
            raise AnchoredError(
                "--pin, --ask, --no-annotation, --dtype, --device-map: not available with a "
                "configuration; set them in the file, for each model"
            )
        path, rest = Path(words[0]), words[1:]
    else:
        settings = {"annotation": not options.no_annotation, "pins": options.pin, **loading}
        path, rest = None, []
        fields["models"] = named_models(words, options.ask, settings)
    flags = flags_used(_evaluate_flags(), fields, path, rest)
    overrides = as_overrides(_judge_together(fields))
    config = load_config(EvaluateConfig, path, [*overrides, *rest], flags)
    conditions.check(gates, config.readers, len(config.models), config.roles is not None)
    found = run(config)
    report_evaluation(found.results, found.shown, config.out, Console(stderr=options.json))
    if options.json:
        print_json(found.results)
    for one in found.results["benchmarks"].values():
        conditions.require_none(gates, one)
    if failed := sum(
        one["judge"]["failed"] for one in found.results["benchmarks"].values() if one["judge"]
    ):
        raise Incomplete(f"{failed} judgements failed; run again to retry them")


def _evaluate_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of an `EvaluateConfig` that were given, except for the models."""
    if options.dry_run:
        raise AnchoredError(
            "--dry-run: there are no texts yet to project from; sample without a judge, then run "
            "anchored score --dry-run on the samples"
        )
    fields = fields_given(_EVALUATE, options)
    if options.concurrency is not None:
        fields["concurrency"] = options.concurrency  # for models behind an endpoint, too
    readers = fields_given((*_READERS, *_JUDGE), options)
    if not options.judge_url:
        readers = {name: value for name, value in readers.items() if not name.startswith("judge.")}
    return fields | {f"readers.{name}": value for name, value in readers.items()}


def _evaluate_flags() -> dict[str, str]:
    """Return the name in errors of each field of an `EvaluateConfig`."""
    readers = names_in_errors((*_READERS, *_JUDGE), under="readers.")
    return {**names_in_errors(_EVALUATE), "concurrency": "--concurrency", **readers}


def _judge_together(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Put the judge's fields into one mapping, which replaces the file's judge as a whole."""
    under = "readers.judge."
    judge = {n.removeprefix(under): v for n, v in fields.items() if n.startswith(under)}
    others = {name: value for name, value in fields.items() if not name.startswith(under)}
    return others | ({"readers.judge": judge} if judge else {})


_SCORE = (
    Option(
        "files",
        "JSON Lines of {prompt, generations: [...]}, of {prompt, response}, or of {text}",
        field="files",
        value=lambda paths: [str(path) for path in paths],
        nargs="+",
        type=existing_file,
        metavar="FILE",
    ),
    Option(
        "--n", "use only the first K texts of each prompt", field="n", type=positive, metavar="K"
    ),
    Option(
        "--seed",
        "random seed of the confidence intervals; default: 0",
        field="seed",
        type=whole_number,
        default=0,
    ),
    Option(
        "--pairwise",
        "compare all pairs of files instead of each file with the first",
        field="compare",
        value=lambda _: "pairwise",
        switch=True,
    ),
    Option(
        "--truncate-words",
        "also measure the first N words of every text, for figures at equal length",
        field="truncate_words",
        type=positive,
        metavar="N",
    ),
    Option(
        "--between",
        "also measure how similar the files' answers to a prompt are to each other",
        field="between",
        switch=True,
    ),
    Option(
        "--out",
        "write results.json, table.md and report.html to DIR",
        type=Path,
        metavar="DIR",
    ),
    _FAIL_IF,
)


def add_score(commands: Any) -> None:
    """Add `anchored score`."""
    summary = "measure the diversity of any model's texts; compare several files"
    _add_readers(command(commands, "score", summary, _run_score, _SCORE))


def _run_score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("evaluate"):
        from anchored.report.score_page import report_score
        from anchored.scoring import conditions
        from anchored.scoring.score import ScoreConfig, project, run

    declared = (*_SCORE, *_READERS, *_JUDGE)
    config = validated(
        ScoreConfig,
        nested(fields_given(declared, options)),
        source="command line",
        flags=names_in_errors(declared),
    )
    gates = conditions.parse(options.fail_if)
    conditions.check(gates, config, len(config.files))
    if options.dry_run:
        plan = project(config, options.out)
        print_json(plan.as_json()) if options.json else print(plan)
        return
    found = run(config, options.out)
    report_score(found.results, found.shown, options.out, Console(stderr=options.json))
    if options.json:
        print_json(found.results)
    conditions.require_none(gates, found.results)
    if (judge := found.results["judge"]) and (failed := judge["failed"]):
        where = f"; see {options.out / 'failures.jsonl'}" if options.out else ""
        raise Incomplete(f"{failed} judgements failed{where}; run again to retry them")


def _positive_or_auto(text: str) -> int | str:
    return text if text == "auto" else positive(text)


_CAPABILITY = (
    Option("models", "model folder or hub id", field="models", nargs="+", metavar="MODEL"),
    Option(
        "--task",
        "lm-eval task, YAML file, or paper-zero-shot; repeatable",
        field="tasks",
        repeatable=True,
        required=True,
        metavar="NAME",
    ),
    Option("--include-path", "folder with more task files", field="include_path", metavar="DIR"),
    Option(
        "--annotation",
        "annotation before an annotated model's answers; default: sampled",
        field="annotation",
        choices=("sampled", "given", "none"),
    ),
    Option(
        "--pin",
        "tag to impose; repeatable",
        field="pins",
        type=key_value,
        repeatable=True,
        metavar="KEY=VALUE",
    ),
    Option(
        "--format",
        "format in which tasks are presented; default: auto",
        field="format",
        choices=("auto", "chat", "document"),
    ),
    Option(
        "--num-fewshot",
        "number of examples in the prompt; default: that of the task",
        field="num_fewshot",
        type=whole_number,
        metavar="N",
    ),
    Option(
        "--limit",
        "use only the first N items of each task",
        field="limit",
        type=positive,
        metavar="N",
    ),
    Option(
        "--batch-size",
        "number of sequences per batch; auto: as many as fit into memory",
        field="batch_size",
        type=_positive_or_auto,
        metavar="N|auto",
    ),
    *LOADING,
    Option(
        "--seed",
        "random seed of annotations and sampled answers; default: 0",
        field="seed",
        type=whole_number,
        default=0,
    ),
    Option("--out", "output folder; run again to resume", type=Path, required=True),
)


def add_capability(commands: Any) -> None:
    """Add `anchored capability`."""
    summary = "run lm-eval tasks on models, after an annotation for models that have them"
    command(commands, "capability", summary, _run_capability, _CAPABILITY)


def _run_capability(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("lm-eval"):
        from anchored.benchmark.capability import CapabilityConfig, run
        from anchored.report.capability_table import report_capability

    config = validated(
        CapabilityConfig,
        fields_given(_CAPABILITY, options),
        source="command line",
        flags=names_in_errors(_CAPABILITY),
    )
    console = Console(stderr=options.json)
    results = run(config, options.out, console)
    report_capability(results, options.out, console)
    if options.json:
        print_json(results)
