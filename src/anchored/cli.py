"""The `anchored` command: arguments to configurations, results to the terminal, errors to one line.

Exit status 0: done. 1: a bug, with its traceback. 2: bad usage or input, one line on stderr.
130: interrupted. Everything heavy is imported inside the handlers, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from anchored import __doc__ as _purpose
from anchored.errors import AnchoredError


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
        _demo, _experiment, _schema, _annotate, _distil, _prepare, _pretrain, _sft, _sample,
        _score, _inspect,
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
        return _complain(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("anchored: interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(message: str) -> int:
    print(f"anchored: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


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


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Says which extra brings what an import in the body lacks."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise AnchoredError(
            f"{error.name} is not installed; pip install 'anchored[{name}]'"
        ) from None


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


def _schema(commands: Any) -> None:
    summary = "which keys an annotation of a corpus should have"
    parser = commands.add_parser("schema", help=summary, description=summary, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    summary = "keys that vary in a corpus and that prompts leave open, as a schema"
    parser = _command(actions, "suggest", summary, _run_schema_suggest)
    parser.add_argument("corpus", metavar="CORPUS", help="rows, annotated or not")
    parser.add_argument("--sft", metavar="SRC", help="rows with prompts and responses")
    parser.add_argument("--schema", help="keys to try on rows without tags; default: general")
    parser.add_argument("--sample", type=_positive, metavar="N", help="texts used; default: 2000")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the schema as YAML")


def _run_schema_suggest(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with _extra("annotate"):
        from anchored.tags.suggest import SuggestConfig, run

    given = {
        "corpus": {"path": options.corpus},
        "sft": options.sft and {"path": options.sft},
        "schema_name": options.schema,
        "sample": options.sample,
    }
    known = {name: value for name, value in given.items() if value is not None}
    config = validated(SuggestConfig, known, source="command line")
    found = run(config, options.out, Console(stderr=options.json))
    if options.json:
        _print_json(found.data())


def _annotate(commands: Any) -> None:
    summary = "write tags to the chunks of documents and to the responses of conversations"
    parser = _command(commands, "annotate", summary, _run_annotate)
    parser.add_argument(
        "source",
        metavar="SRC|CONFIG",
        help="rows to annotate (.jsonl, .json, .txt, .md, .gz, .xz or .zst of these, .parquet, a "
        "folder, hf://owner/name), or a .yaml",
    )
    parser.add_argument("--out", help="folder for the annotated shards; run again to resume")
    parser.add_argument("--annotator", help="offline (default) or distilled:FOLDER")
    parser.add_argument("--schema", help="a built-in schema or a YAML file; default: general")
    _add_overrides(parser)


def _run_annotate(options: argparse.Namespace) -> None:
    from anchored.annotate.run import AnnotateConfig, run
    from anchored.config import load_config

    is_config = options.source.endswith((".yaml", ".yml"))
    given = {
        "source": None if is_config else options.source,
        "out": options.out,
        "annotator": options.annotator,
        "schema_name": options.schema,
    }
    overrides = [f"{field}={json.dumps(value)}" for field, value in given.items() if value]
    path = Path(options.source) if is_config else None
    manifest = run(load_config(AnnotateConfig, path, [*overrides, *options.overrides]))
    if options.json:
        _print_json(manifest)


def _distil(commands: Any) -> None:
    summary = "learn an annotator from labelled texts, or choose the texts to have labelled"
    parser = _command(commands, "distil", summary, _run_distil)
    parser.add_argument("source", metavar="LABELLED|SRC", help="annotated rows, or any")
    parser.add_argument("--out", required=True, help="folder of the annotator, or file of texts")
    parser.add_argument("--schema", help="a built-in schema or a YAML file; default: general")
    parser.add_argument(
        "--target-precision", type=float, metavar="X", help="of the tags written; default: 0.8"
    )
    parser.add_argument(
        "--choose", type=_positive, metavar="N", help="write N texts of SRC that stand for all"
    )
    parser.add_argument("--seed", type=int, default=0)


def _run_distil(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from anchored.config import validated

    with _extra("annotate"):
        from anchored.annotate import choose, distil

    given = {
        "source": {"path": options.source},
        "out": options.out,
        "schema_name": options.schema,
        "target_precision": options.target_precision,
        "count": options.choose,
        "seed": options.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    if options.choose is None:
        result = distil.run(validated(distil.DistilConfig, known, source="command line"))
    else:
        config = validated(choose.ChooseConfig, known, source="command line")
        result = asdict(choose.run(config))
    if options.json:
        _print_json(result)


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

    def given(**fields: Any) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value is not None}

    config = {
        "annotation": given(
            temperature=options.annotation_temperature,
            top_p=options.annotation_top_p,
            min_p=options.annotation_min_p,
        ),
        "response": given(
            temperature=options.temperature, top_p=options.top_p, min_p=options.min_p
        ),
        "seed": options.seed,
        **given(max_response_tokens=options.max_new_tokens),
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
    parser.add_argument(
        "--embedder", metavar="NAME", help="static or sentence-transformers:<folder or hub id>"
    )
    parser.add_argument(
        "--equivalence",
        metavar="NAME",
        help="exact, overlap, embedding, classifier[:<folder or hub id>] or given",
    )
    parser.add_argument("--threshold", type=float, metavar="X", help="of the equivalence")
    parser.add_argument(
        "--quality", choices=("given", "none"), help="given: the file's generation_scores, 1 to 10"
    )
    parser.add_argument(
        "--attributes", choices=("offline", "none"), help="what semantic entropy is read by"
    )
    parser.add_argument("--schema", metavar="NAME", help="its attributes; default: general")
    parser.add_argument("--calibration", type=_file, metavar="FILE", help="of the annotator")
    parser.add_argument(
        "--vendi-q", type=float, action="append", metavar="Q", help="orders of Vendi; repeatable"
    )
    parser.add_argument(
        "--pairwise", action="store_true", help="compare all pairs, not each with the first file"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the intervals")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write results.json and table.md")


def _run_score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with _extra("evaluate"):
        from anchored.evaluate.score import ScoreConfig, run

    given = {
        "files": [str(path) for path in options.files],
        "n": options.n,
        "embedder": options.embedder,
        "equivalence": options.equivalence,
        "threshold": options.threshold,
        "quality": options.quality,
        "attributes": options.attributes,
        "schema_name": options.schema,
        "calibration": options.calibration and str(options.calibration),
        "vendi_orders": options.vendi_q,
        "compare": "pairwise" if options.pairwise else None,
        "seed": options.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    config = validated(ScoreConfig, known, source="command line")
    results = run(config, options.out, Console(stderr=options.json))
    if options.json:
        _print_json(results)


def _inspect(commands: Any) -> None:
    summary = "a coloured view of segments and masks, tag statistics, or a model's facts"
    parser = _command(commands, "inspect", summary, _run_inspect)
    parser.add_argument(
        "path", metavar="DATASET|MODEL|SRC", help="prepared data, annotated rows or a model"
    )
    parser.add_argument("-n", type=_positive, default=3, help="rows of prepared data to show")
    parser.add_argument("--row", type=_count, default=0, help="the first of them, counted from 0")
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the view as one HTML file")
    parser.add_argument(
        "--tags", action="store_true", help="are the tags of these annotated rows any good?"
    )
    parser.add_argument(
        "--against", metavar="SRC", help="with --tags: the same texts, tagged by somebody else"
    )
    parser.add_argument(
        "--canonical", type=Path, metavar="FILE", help="with --tags: write the variants found"
    )
    parser.add_argument(
        "--embedder",
        metavar="NAME",
        help="with --tags: static or sentence-transformers:<folder or hub id>",
    )
    parser.add_argument("--sample", type=_positive, metavar="N", help="with --tags: texts used")


def _run_inspect(options: argparse.Namespace) -> None:
    if options.tags:
        _run_inspect_tags(options)
        return
    for name in ("against", "canonical", "embedder", "sample"):
        if getattr(options, name) is not None:
            raise AnchoredError(f"--{name} goes with --tags; add it")
    from anchored.inspect import Shown, run

    shown = Shown(first=options.row, count=options.n, split=options.split)
    run(Path(options.path), shown, html=options.html, as_json=options.json)


def _run_inspect_tags(options: argparse.Namespace) -> None:
    from anchored.config import validated

    with _extra("annotate,evaluate"):
        from anchored.tags.quality import TagsConfig
        from anchored.tags.view import run

    given = {
        "source": {"path": options.path},
        "against": options.against and {"path": options.against},
        "embedder": options.embedder,
        "sample": options.sample,
    }
    known = {name: value for name, value in given.items() if value is not None}
    config = validated(TagsConfig, known, source="command line")
    run(config, options.canonical, html=options.html, as_json=options.json)
