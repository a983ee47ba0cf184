"""The `anchored` command: arguments to configurations, results to the terminal, errors to one line.

Exit status 0: done. 1: a bug, with its traceback; or a run with parts missing, one line on stderr.
2: bad usage or input, one line on stderr. 130: interrupted. Everything heavy is imported inside the
handlers, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from anchored import __doc__ as _purpose
from anchored.errors import AnchoredError, Incomplete


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, in place of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """`--version`: this package and what it stands on, as a result's `versions` has them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from anchored.config import versions

        found = versions()
        names = ("anchored", "python", "torch", "transformers", "datasets")
        print(", ".join(f"{name} {found[name]}" for name in names if name in found))
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """The parser, with one sub-parser a command."""
    parser = _Parser(prog="anchored", description=_purpose, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (
        _demo, _experiment, _annotate, _prepare, _pretrain, _sft,
        _sample, _evaluate, _score, _capability, _inspect,
    ):  # fmt: skip
        add(commands)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command, `handler` among them; exits with 2 where they make no sense."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse before 3.13 does not match a `*` positional behind an option (cpython #59317).
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; a bug leaves as the exception that it is."""
    options = parse(arguments)
    try:
        options.handler(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `anchored inspect ... | head` is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AnchoredError as error:
        return _complain(str(error), status=1 if isinstance(error, Incomplete) else 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("anchored: interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(message: str, status: int = 2) -> int:
    print(f"anchored: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _command(
    commands: Any, name: str, summary: str, handler: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="a.b=c",
        help="fields of the configuration to replace; values are read as YAML",
    )


def _file(text: str) -> Path:
    if not Path(text).is_file():  # said here, before seconds of imports
        raise argparse.ArgumentTypeError(f"{text!r}: no such file")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _pin(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not value.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: write key=value")
    return key.strip(), value


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))


def _demo(commands: Any) -> None:
    summary = "collapse and its cure on a story corpus with known semantics, on a CPU, in minutes"
    parser = _command(commands, "demo", summary, _run_demo)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--seeds", type=_positive, default=1, help="runs to average over")
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
    _add_overrides(parser)


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
        _print_json(results)


def _experiment(commands: Any) -> None:
    summary = "run a study from its configuration: bases, treatments, samples, measures, report"
    parser = _command(commands, "experiment", summary, _run_experiment)
    parser.add_argument("config", metavar="CONFIG", type=_file, help="its `experiment` says which")
    parser.add_argument("--out", type=Path, required=True, help="run again to resume")
    _add_overrides(parser)


def _run_experiment(options: argparse.Namespace) -> None:
    from anchored import experiments

    results = experiments.run(options.config, options.out, options.overrides)
    if options.json:
        _print_json(results)


def _annotate(commands: Any) -> None:
    summary = "write tags to the chunks of documents and to the responses of conversations"
    parser = _command(commands, "annotate", summary, _run_annotate)
    parser.add_argument(
        "source",
        metavar="SRC|CONFIG",
        help="rows to annotate (.jsonl, .json, .txt, .gz or .xz of these, or a folder), or a .yaml",
    )
    parser.add_argument("--out", help="folder for the shards; run again to resume")
    parser.add_argument("--annotator", help="who writes the tags, offline (default) or endpoint")
    parser.add_argument("--schema", help="a built-in schema or a YAML file; default: general")
    _add_endpoint(parser.add_argument_group("the endpoint annotator"))
    _add_overrides(parser)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="of an OpenAI-compatible server")
    group.add_argument("--model", metavar="NAME", help="as the server calls it")
    group.add_argument("--serve", metavar="MODEL", help="start a server of this model, in place of")
    group.add_argument("--server", choices=("vllm", "transformers"), help="which; default: vllm")
    group.add_argument(
        "--key-env", metavar="NAME", help="variable with the key; default: OPENAI_API_KEY"
    )
    group.add_argument("--concurrency", type=_positive, metavar="N", help="most requests at once")
    group.add_argument(
        "--context-tags", type=_count, metavar="N", help="show the tags of N chunks before"
    )
    group.add_argument("--max-failed", type=_count, metavar="N", help="stop when more have failed")
    group.add_argument("--price-in", type=float, metavar="X", help="of a million tokens read")
    group.add_argument("--price-out", type=float, metavar="X", help="of a million tokens written")
    group.add_argument(
        "--dry-run", type=_positive, metavar="N", help="ask about N chunks and project the rest"
    )
    group.add_argument(
        "--shard", type=_share, metavar="I/N", help="annotate the I-th of N parts, from 0"
    )


def _share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with I from 0 to N - 1")
    return int(index), int(count)


def _run_annotate(options: argparse.Namespace) -> None:
    from anchored.config import read_yaml

    path = Path(options.source) if options.source.endswith((".yaml", ".yml")) else None
    overrides = [*_annotate_fields(options, path), *options.overrides]
    named = options.annotator or ((path and read_yaml(path)) or {}).get("annotator")
    if named == "endpoint" or (named is None and (options.url or options.serve)):
        manifest = _annotate_by_endpoint(options, path, overrides)
    elif options.dry_run or options.shard:
        raise AnchoredError("--dry-run and --shard are of `--annotator endpoint` alone")
    else:
        from anchored.annotate.run import AnnotateConfig, run
        from anchored.config import load_config

        manifest = run(load_config(AnnotateConfig, path, overrides))
    if options.json:
        _print_json(manifest)


def _annotate_by_endpoint(
    options: argparse.Namespace, path: Path | None, overrides: Sequence[str]
) -> dict[str, Any]:
    from anchored.annotate.corpus import WHOLE, EndpointAnnotateConfig, run
    from anchored.annotate.shards import Share
    from anchored.config import load_config

    config = load_config(EndpointAnnotateConfig, path, overrides)
    share = Share(*options.shard) if options.shard else WHOLE
    return run(config, share=share, dry_run=options.dry_run or 0)


def _annotate_fields(options: argparse.Namespace, config: Path | None) -> list[str]:
    """The options that were given, as overrides."""
    fields = {
        "source": None if config else options.source,
        "out": options.out,
        "annotator": options.annotator,
        "schema_name": options.schema,
        "endpoint.url": options.url,
        "endpoint.model": options.model,
        "endpoint.key_env": options.key_env,
        "endpoint.concurrency": options.concurrency,
        "endpoint.price_in": options.price_in,
        "endpoint.price_out": options.price_out,
        "serve.model": options.serve,
        "serve.server": options.server,
        "context_tags": options.context_tags,
        "max_failed": options.max_failed,
    }
    return [f"{field}={json.dumps(value)}" for field, value in fields.items() if value is not None]


def _prepare(commands: Any) -> None:
    summary = "encode, mask and pack a corpus into a dataset that trains anywhere"
    parser = _command(commands, "prepare", summary, _run_prepare)
    parser.add_argument("config", type=_file, metavar="CONFIG", help="YAML file of a PrepareConfig")
    _add_overrides(parser)


def _run_prepare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import load_config
    from anchored.data.prepare import MANIFEST, PrepareConfig, prepare

    config = load_config(PrepareConfig, options.config, options.overrides)
    out = prepare(config, Console(stderr=options.json))
    if options.json:
        _print_json(json.loads((out / MANIFEST).read_text(encoding="utf-8")))


def _pretrain(commands: Any) -> None:
    summary = "train on documents from scratch, or go on from `model.init`; run again to resume"
    parser = _command(commands, "pretrain", summary, _run_pretrain)
    parser.add_argument(
        "config", type=_file, metavar="CONFIG", help="YAML file of a PretrainConfig"
    )
    _add_overrides(parser)


def _run_pretrain(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.run import PretrainConfig, pretrain

    _print_model(pretrain(load_config(PretrainConfig, options.config, options.overrides)), options)


def _sft(commands: Any) -> None:
    summary = "fine-tune on conversations: standard, anchored, anchored-replay or tagged"
    parser = _command(commands, "sft", summary, _run_sft)
    parser.add_argument("config", type=_file, metavar="CONFIG", help="YAML file of an SFTConfig")
    _add_overrides(parser)


def _run_sft(options: argparse.Namespace) -> None:
    from anchored.config import load_config
    from anchored.train.run import SFTConfig, sft

    _print_model(sft(load_config(SFTConfig, options.config, options.overrides)), options)


def _print_model(model: Path, options: argparse.Namespace) -> None:
    from anchored.train.run import read_record

    if options.json:
        _print_json({"model": str(model), **read_record(model)})
    else:
        print(model)


def _sample(commands: Any) -> None:
    summary = "sample answers: an annotation first, then the response given it"
    parser = _command(commands, "sample", summary, _run_sample)
    parser.add_argument("model", metavar="MODEL", help="model folder or hub id")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.add_argument(
        "--prefill", default="", metavar="TEXT", help="text that the response starts with"
    )
    parser.add_argument("-n", type=_positive, default=1, help="samples a prompt")
    parser.add_argument(
        "--pin", type=_pin, action="append", default=[], metavar="KEY=VALUE", help="a tag to impose"
    )
    parser.add_argument("--no-annotation", action="store_true", help="leave the annotation out")
    for name in ("temperature", "top-p", "min-p"):
        for part in ("", "annotation-"):
            whose = "of the annotation" if part else "of the response"
            parser.add_argument(f"--{part}{name}", type=float, metavar="X", help=whose)
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="of the response")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the samples as JSON lines")


def _run_sample(options: argparse.Namespace) -> None:
    from anchored.config import validated
    from anchored.sample.engine import SampleConfig
    from anchored.sample.run import run

    config = {
        "annotation": _given(
            temperature=options.annotation_temperature,
            top_p=options.annotation_top_p,
            min_p=options.annotation_min_p,
        ),
        "response": _given(
            temperature=options.temperature, top_p=options.top_p, min_p=options.min_p
        ),
        "seed": options.seed,
        **_given(max_response_tokens=options.max_new_tokens),
    }
    run(
        options.model,
        prompts=options.prompt,
        n=options.n,
        pins=options.pin,
        prefill=options.prefill,
        annotated=not options.no_annotation,
        config=validated(SampleConfig, config, source="command line"),
        out=options.out,
        as_json=options.json,
    )


def _evaluate(commands: Any) -> None:
    summary = "sample models on benchmarks by name, and tell how much of a collapse is undone"
    parser = _command(commands, "evaluate", summary, _run_evaluate)
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL|CONFIG",
        help="folders, hub ids or endpoint:URL#NAME; those called base and sft take these roles. "
        "Or one .yaml with a.b=c behind it",
    )
    _add_overrides(parser)
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
    parser.add_argument("--seeds", type=_positive, metavar="N", help="sets of samples; default: 1")
    parser.add_argument(
        "--temperature", type=float, action="append", metavar="T", help="repeatable: a sweep"
    )
    parser.add_argument("--samples", type=_positive, metavar="K", help="of each prompt")
    parser.add_argument("--limit", type=_positive, metavar="P", help="the first P prompts")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="of a response")
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

    try:
        from anchored.evaluate.run import run
        from anchored.evaluate.settings import EvaluateConfig, named_models
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[evaluate]'"
        ) from None

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
    config = load_config(EvaluateConfig, path, [*overrides, *rest])
    results = run(config, Console(stderr=options.json))
    if options.json:
        _print_json(results)
    if failed := sum(
        one["judge"]["failed"] for one in results["benchmarks"].values() if one["judge"]
    ):
        raise Incomplete(f"{failed} judgements failed; run again to retry them")


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
    return _given(
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


def _score(commands: Any) -> None:
    summary = "how diverse are these texts? Any model's generations, several files side by side"
    parser = _command(commands, "score", summary, _run_score)
    parser.add_argument(
        "files",
        nargs="+",
        type=_file,
        metavar="FILE",
        help="JSON lines of {prompt, generations: [...]} or of {prompt, response}",
    )
    parser.add_argument("--n", type=_positive, metavar="K", help="the first K texts of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
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
    group.add_argument("--calibration", type=_file, metavar="FILE", help="of the annotator")
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
        type=_pin,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a sampling parameter, the value read as YAML; repeatable",
    )
    group.add_argument("--concurrency", type=_positive, metavar="N", help="most requests at once")
    group.add_argument("--timeout", type=float, metavar="S", help="seconds for one answer")
    group.add_argument("--requests-per-minute", type=_positive, metavar="N")
    group.add_argument("--tokens-per-minute", type=_positive, metavar="N")
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

    try:
        from anchored.evaluate.score import ScoreConfig, project, run
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[evaluate]'"
        ) from None

    config = validated(ScoreConfig, _score_fields(options), source="command line")
    if options.dry_run:
        plan = project(config, options.out)
        _print_json(plan.as_json()) if options.json else print(plan)
        return
    results = run(config, options.out, Console(stderr=options.json))
    if options.json:
        _print_json(results)
    if results["judge"] and (failed := results["judge"]["failed"]):
        where = f"; see {options.out / 'failures.jsonl'}" if options.out else ""
        raise Incomplete(f"{failed} judgements failed{where}; run again to retry them")


def _score_fields(options: argparse.Namespace) -> dict[str, Any]:
    return _given(
        files=[str(path) for path in options.files],
        n=options.n,
        compare="pairwise" if options.pairwise else None,
        seed=options.seed,
        **_reader_fields(options),
    )


def _reader_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `ReadersConfig` that were given."""
    return _given(
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
    return _given(
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


def _capability(commands: Any) -> None:
    summary = "lm-eval's tasks on models, behind their annotations where they have them"
    parser = _command(commands, "capability", summary, _run_capability)
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
        "--pin", type=_pin, action="append", metavar="KEY=VALUE", help="a tag to impose"
    )
    parser.add_argument(
        "--format", choices=("auto", "chat", "document"), help="how tasks are put; default: auto"
    )
    parser.add_argument("--num-fewshot", type=_count, metavar="N", help="default: the task's")
    parser.add_argument("--limit", type=_positive, metavar="N", help="first items of each task")
    parser.add_argument("--batch-size", type=_positive, metavar="N", help="sequences run together")
    parser.add_argument("--seed", type=int, default=0, help="of annotations and sampled answers")
    parser.add_argument("--out", type=Path, required=True, help="run again to resume")


def _run_capability(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    try:
        from anchored.evaluate.capability import CapabilityConfig, run
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[lm-eval]'"
        ) from None

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
        "seed": options.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    config = validated(CapabilityConfig, known, source="command line")
    results = run(config, options.out, Console(stderr=options.json))
    if options.json:
        _print_json(results)


def _inspect(commands: Any) -> None:
    summary = "a coloured view of segments and masks, tag statistics, or a model's facts"
    parser = _command(commands, "inspect", summary, _run_inspect)
    parser.add_argument(
        "path", type=Path, metavar="DATASET|MODEL", help="prepared data, annotated rows or a model"
    )
    parser.add_argument("-n", type=_positive, default=3, help="rows of prepared data to show")
    parser.add_argument("--row", type=_count, default=0, help="the first of them, counted from 0")
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the view as one HTML file")


def _run_inspect(options: argparse.Namespace) -> None:
    from anchored.inspect import Shown, run

    shown = Shown(first=options.row, count=options.n, split=options.split)
    run(options.path, shown, html=options.html, as_json=options.json)
