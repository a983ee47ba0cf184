"""Commands that work on a corpus: schema, annotate, distil, prepare, export, inspect."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    OVERRIDES,
    Parser,
    command,
    existing_file,
    extra,
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
)
from anchored.errors import AnchoredError


def _as_source(path: str) -> dict[str, str]:
    return {"path": path}


_SUGGEST = (
    Option(
        "corpus",
        "rows, annotated or not",
        field="corpus",
        value=_as_source,
        shown="CORPUS",
        metavar="CORPUS",
    ),
    Option(
        "--sft", "rows with prompts and responses", field="sft", value=_as_source, metavar="SRC"
    ),
    Option(
        "--schema",
        "schema whose keys are tried on rows without tags: built-in or a YAML file; "
        "default: general",
        field="schema_name",
    ),
    Option(
        "--sample",
        "number of texts to use; default: 2000",
        field="sample",
        type=positive,
        metavar="N",
    ),
    Option("--out", "write the schema to FILE as YAML", type=Path, metavar="FILE"),
)


def add_schema(commands: Any) -> None:
    """Add `anchored schema`."""
    summary = "choose the keys of a corpus's annotations"
    parser = commands.add_parser("schema", help=summary, description=summary, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    summary = "suggest a schema: keys that vary in a corpus and that prompts leave open"
    command(actions, "suggest", summary, _run_schema_suggest, _SUGGEST)


def _run_schema_suggest(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("annotate"):
        from anchored.tags.suggest import SuggestConfig, run

    config = validated(
        SuggestConfig,
        fields_given(_SUGGEST, options),
        source="command line",
        flags=names_in_errors(_SUGGEST),
    )
    found = run(config, options.out, Console(stderr=options.json))
    if options.json:
        print_json(found.data())


def _share(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r}: write I/N with I from 0 to N - 1")
    return int(index), int(count)


_ANNOTATE = (
    Option(
        "source",
        "rows to annotate (.jsonl, .json, .txt, .md, .gz, .xz or .zst of these, .parquet, a "
        "folder, hf://owner/name), or a .yaml configuration",
        field="source",
        shown="SRC",
        metavar="SRC|CONFIG",
    ),
    Option("--out", "folder for the shards; run again to resume", field="out"),
    Option(
        "--annotator",
        "annotator by name, or endpoint; default: offline; see docs/annotators.md",
        field="annotator",
    ),
    Option("--schema", "a built-in schema or a YAML file; default: general", field="schema_name"),
    Option(
        "--cluster",
        "distribute the work over the machines of a Ray cluster",
        field="cluster",
        choices=("ray",),
    ),
    Option(
        "--workers",
        "number of processes; default: one per core, or one per machine with an endpoint",
        field="workers",
        type=positive,
        metavar="N",
    ),
    OVERRIDES,
)
_ANNOTATE_ENDPOINT = (
    Option("--url", "URL of an OpenAI-compatible server", field="endpoint.url"),
    Option("--model", "model name on the server", field="endpoint.model", metavar="NAME"),
    Option(
        "--serve",
        "launch a server for MODEL instead of using --url",
        field="serve.model",
        metavar="MODEL",
    ),
    Option(
        "--server",
        "server that --serve launches; default: vllm",
        field="serve.server",
        choices=("vllm", "transformers"),
    ),
    Option(
        "--key-env",
        "environment variable that holds the API key; default: OPENAI_API_KEY",
        field="endpoint.key_env",
        metavar="NAME",
    ),
    Option(
        "--concurrency",
        "maximum number of concurrent requests",
        field="endpoint.concurrency",
        type=positive,
        metavar="N",
    ),
    Option(
        "--context-tags",
        "show the model the tags of the N preceding chunks",
        field="context_tags",
        type=whole_number,
        metavar="N",
    ),
    Option(
        "--max-failed",
        "stop when more than N chunks have failed",
        field="max_failed",
        type=whole_number,
        metavar="N",
    ),
    Option(
        "--price-in",
        "price per million input tokens",
        field="endpoint.price_in",
        type=float,
        metavar="X",
    ),
    Option(
        "--price-out",
        "price per million output tokens",
        field="endpoint.price_out",
        type=float,
        metavar="X",
    ),
    Option(
        "--dry-run",
        "annotate N chunks and project tokens, time and cost for the rest",
        type=positive,
        metavar="N",
    ),
    Option("--shard", "annotate part I of N, counted from 0", type=_share, metavar="I/N"),
)


def add_annotate(commands: Any) -> None:
    """Add `anchored annotate`."""
    summary = "write tags for the chunks of documents and the responses of conversations"
    parser = command(commands, "annotate", summary, _run_annotate, _ANNOTATE)
    add_options(parser.add_argument_group("endpoint annotator"), _ANNOTATE_ENDPOINT)


def _run_annotate(options: argparse.Namespace) -> None:
    from anchored.config import read_yaml

    path = Path(options.source) if options.source.endswith((".yaml", ".yml")) else None
    declared = (*_ANNOTATE, *_ANNOTATE_ENDPOINT)
    fields = fields_given(declared, options)
    if path:
        del fields["source"]  # the argument names the file
    overrides = [*as_overrides(fields), *options.overrides]
    flags = flags_used(names_in_errors(declared), fields, path, options.overrides)
    named = options.annotator or ((path and read_yaml(path)) or {}).get("annotator")
    if named == "endpoint" or (named is None and (options.url or options.serve)):
        manifest = _annotate_by_endpoint(options, path, overrides, flags)
    elif options.dry_run or options.shard:
        raise AnchoredError("--dry-run and --shard require --annotator endpoint; add it")
    else:
        from anchored.config import load_config
        from anchored.corpus.offline_run import AnnotateConfig, run

        manifest = run(load_config(AnnotateConfig, path, overrides, flags))
    if options.json:
        print_json(manifest)


def _annotate_by_endpoint(
    options: argparse.Namespace,
    path: Path | None,
    overrides: Sequence[str],
    flags: Mapping[str, str],
) -> dict[str, Any]:
    from anchored.config import load_config
    from anchored.corpus.endpoint_run import WHOLE, EndpointAnnotateConfig, run
    from anchored.corpus.shards import Share

    config = load_config(EndpointAnnotateConfig, path, overrides, flags)
    share = Share(*options.shard) if options.shard else WHOLE
    return run(config, share=share, dry_run=options.dry_run or 0)


_DISTIL = (
    Option(
        "source",
        "annotated rows; with --choose, any rows",
        field="source",
        value=_as_source,
        shown="LABELLED|SRC",
        metavar="LABELLED|SRC",
    ),
    Option(
        "--out",
        "folder of the annotator; with --choose, file of the chosen texts",
        field="out",
        required=True,
    ),
    Option("--schema", "a built-in schema or a YAML file; default: general", field="schema_name"),
    Option(
        "--target-precision",
        "precision of the tags written; default: 0.8",
        field="target_precision",
        type=float,
        metavar="X",
    ),
    Option(
        "--choose",
        "choose N representative texts of SRC to be labelled, and stop",
        field="count",
        type=positive,
        metavar="N",
    ),
    Option("--seed", "random seed; default: 0", field="seed", type=whole_number, default=0),
)


def add_distil(commands: Any) -> None:
    """Add `anchored distil`."""
    summary = "train an annotator on labelled texts, or choose the texts to label"
    command(commands, "distil", summary, _run_distil, _DISTIL)


def _run_distil(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from anchored.config import validated

    with extra("annotate"):
        from anchored.corpus import choose, distil

    given, flags = fields_given(_DISTIL, options), names_in_errors(_DISTIL)
    if options.choose is None:
        wanted = validated(distil.DistilConfig, given, source="command line", flags=flags)
        result = distil.run(wanted)
    else:
        config = validated(choose.ChooseConfig, given, source="command line", flags=flags)
        result = asdict(choose.run(config))
    if options.json:
        print_json(result)


_PREPARE = (
    Option(
        "config",
        "YAML file with the fields of PrepareConfig, or one for `anchored pretrain` or "
        "`anchored sft`, whose `data` is prepared",
        type=existing_file,
        metavar="CONFIG",
    ),
    OVERRIDES,
)


def add_prepare(commands: Any) -> None:
    """Add `anchored prepare`."""
    summary = "encode, mask and pack a corpus into a dataset that any trainer can load"
    command(commands, "prepare", summary, _run_prepare, _PREPARE)


def _run_prepare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import load_config, read_yaml
    from anchored.data.prepare import MANIFEST, PrepareConfig, prepare

    console = Console(stderr=options.json)
    if "data" in (read_yaml(options.config) or {}):
        out = _prepare_ahead(options, console)
    else:
        config = load_config(PrepareConfig, options.config, options.overrides)
        out = prepare(config, console)
    if options.json:
        print_json(json.loads((out / MANIFEST).read_text(encoding="utf-8")))


def _prepare_ahead(options: argparse.Namespace, console: Any) -> Path:
    from anchored.config import load_config
    from anchored.plan.workload import stage_of
    from anchored.train.config import PretrainConfig, SFTConfig
    from anchored.train.prepare_ahead import prepare_ahead

    stage = SFTConfig if stage_of(options.config) == "sft" else PretrainConfig
    return prepare_ahead(load_config(stage, options.config, options.overrides), console)


_EXPORT = (
    Option("dataset", "dataset from `anchored prepare`", type=Path, metavar="DATASET"),
    Option(
        "--format",
        "trainer to write for",
        required=True,
        choices=("axolotl", "llamafactory", "torchtune"),
    ),
    Option("--out", "new folder for the output", type=Path, required=True, metavar="DIR"),
)


def add_export(commands: Any) -> None:
    """Add `anchored export`."""
    summary = "write a prepared dataset in the columns of another trainer"
    command(commands, "export", summary, _run_export, _EXPORT)


def _run_export(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.publish.export import advice, export

    found = export(options.dataset, options.format, options.out, Console(stderr=True))
    print_json(found) if options.json else print(advice(found, options.out))


_INSPECT = (
    Option(
        "path",
        "prepared data, annotated rows or a model",
        field="source",
        value=_as_source,
        shown="SRC",
        metavar="DATASET|MODEL|SRC",
    ),
    Option("-n", "number of prepared rows to show; default: 3", type=positive, default=3),
    Option(
        "--row",
        "first row to show, counted from 0; default: 0",
        type=whole_number,
        default=0,
    ),
    Option(
        "--split",
        "split to show; default: train",
        choices=("train", "validation"),
        default="train",
    ),
    Option("--html", "write the view to FILE as one HTML page", type=Path, metavar="FILE"),
    Option("--tags", "report on the quality of the tags of annotated rows", switch=True),
    Option(
        "--against",
        "with --tags: the same texts with the tags of another annotator",
        field="against",
        value=_as_source,
        metavar="SRC",
    ),
    Option(
        "--canonical",
        "with --tags: write the variants of values that were found to FILE",
        type=Path,
        metavar="FILE",
    ),
    Option(
        "--embedder",
        "with --tags: static or sentence-transformers:<folder or hub id>",
        field="embedder",
        metavar="NAME",
    ),
    Option(
        "--sample",
        "with --tags: number of texts to use",
        field="sample",
        type=positive,
        metavar="N",
    ),
)


def add_inspect(commands: Any) -> None:
    """Add `anchored inspect`."""
    summary = "show segments and masks in colour, tag statistics, or facts about a model"
    command(commands, "inspect", summary, _run_inspect, _INSPECT)


def _run_inspect(options: argparse.Namespace) -> None:
    if options.tags:
        _run_inspect_tags(options)
        return
    for name in ("against", "canonical", "embedder", "sample"):
        if getattr(options, name) is not None:
            raise AnchoredError(f"--{name} requires --tags; add it")
    from anchored.inspection.inspect import Shown, run

    shown = Shown(first=options.row, count=options.n, split=options.split)
    run(Path(options.path), shown, html=options.html, as_json=options.json)


def _run_inspect_tags(options: argparse.Namespace) -> None:
    from anchored.config import validated

    with extra("annotate,evaluate"):
        from anchored.inspection.tags_view import run
        from anchored.tags.quality import TagsConfig

    config = validated(
        TagsConfig,
        fields_given(_INSPECT, options),
        source="command line",
        flags=names_in_errors(_INSPECT),
    )
    run(config, options.canonical, html=options.html, as_json=options.json)
