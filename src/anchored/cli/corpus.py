"""Commands on a corpus: schema, annotate, distil, prepare, export, inspect."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchored.cli.common import (
    Parser,
    add_overrides,
    command,
    existing_file,
    extra,
    flags_used,
    positive,
    print_json,
    same_flags,
    whole_number,
)
from anchored.errors import AnchoredError


def add_schema(commands: Any) -> None:
    """Adds `anchored schema`."""
    summary = "which keys an annotation of a corpus should have"
    parser = commands.add_parser("schema", help=summary, description=summary, allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    summary = "keys that vary in a corpus and that prompts leave open, as a schema"
    parser = command(actions, "suggest", summary, _run_schema_suggest)
    parser.add_argument("corpus", metavar="CORPUS", help="rows, annotated or not")
    parser.add_argument("--sft", metavar="SRC", help="rows with prompts and responses")
    parser.add_argument("--schema", help="keys to try on rows without tags; default: general")
    parser.add_argument("--sample", type=positive, metavar="N", help="texts used; default: 2000")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the schema as YAML")


def _run_schema_suggest(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.config import validated

    with extra("annotate"):
        from anchored.tags.suggest import SuggestConfig, run

    given = {
        "corpus": {"path": options.corpus},
        "sft": options.sft and {"path": options.sft},
        "schema_name": options.schema,
        "sample": options.sample,
    }
    known = {name: value for name, value in given.items() if value is not None}
    flags = {"corpus": "CORPUS", "schema_name": "--schema", **same_flags("sft", "sample")}
    config = validated(SuggestConfig, known, source="command line", flags=flags)
    found = run(config, options.out, Console(stderr=options.json))
    if options.json:
        print_json(found.data())


_ANNOTATE_FLAGS = {
    "source": "SRC",
    "schema_name": "--schema",
    "serve.model": "--serve",
    "serve.server": "--server",
    **same_flags("out", "annotator", "context_tags", "max_failed"),
    **{
        f"endpoint.{field}": flag
        for field, flag in same_flags(
            "url", "model", "key_env", "concurrency", "price_in", "price_out"
        ).items()
    },
}


def add_annotate(commands: Any) -> None:
    """Adds `anchored annotate`."""
    summary = "write tags to the chunks of documents and to the responses of conversations"
    parser = command(commands, "annotate", summary, _run_annotate)
    parser.add_argument(
        "source",
        metavar="SRC|CONFIG",
        help="rows to annotate (.jsonl, .json, .txt, .md, .gz, .xz or .zst of these, .parquet, a "
        "folder, hf://owner/name), or a .yaml",
    )
    parser.add_argument("--out", help="folder for the shards; run again to resume")
    parser.add_argument("--annotator", help="offline (default), distilled:FOLDER or endpoint")
    parser.add_argument("--schema", help="a built-in schema or a YAML file; default: general")
    parser.add_argument("--cluster", choices=("ray",), help="spread over a Ray cluster's machines")
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="processes; default: one a core, of an endpoint one a machine",
    )
    _add_endpoint(parser.add_argument_group("the endpoint annotator"))
    add_overrides(parser)


def _add_endpoint(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--url", help="of an OpenAI-compatible server")
    group.add_argument("--model", metavar="NAME", help="as the server calls it")
    group.add_argument("--serve", metavar="MODEL", help="start a server of this model, in place of")
    group.add_argument("--server", choices=("vllm", "transformers"), help="which; default: vllm")
    group.add_argument(
        "--key-env", metavar="NAME", help="variable with the key; default: OPENAI_API_KEY"
    )
    group.add_argument("--concurrency", type=positive, metavar="N", help="most requests at once")
    group.add_argument(
        "--context-tags", type=whole_number, metavar="N", help="show the tags of N chunks before"
    )
    group.add_argument(
        "--max-failed", type=whole_number, metavar="N", help="stop when more have failed"
    )
    group.add_argument("--price-in", type=float, metavar="X", help="of a million tokens read")
    group.add_argument("--price-out", type=float, metavar="X", help="of a million tokens written")
    group.add_argument(
        "--dry-run", type=positive, metavar="N", help="ask about N chunks and project the rest"
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
    fields = _annotate_fields(options, path)
    overrides = [f"{field}={json.dumps(value)}" for field, value in fields.items()]
    overrides += options.overrides
    flags = flags_used(_ANNOTATE_FLAGS, fields, path, options.overrides)
    named = options.annotator or ((path and read_yaml(path)) or {}).get("annotator")
    if named == "endpoint" or (named is None and (options.url or options.serve)):
        manifest = _annotate_by_endpoint(options, path, overrides, flags)
    elif options.dry_run or options.shard:
        raise AnchoredError("--dry-run and --shard are of `--annotator endpoint` alone")
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


def _annotate_fields(options: argparse.Namespace, config: Path | None) -> dict[str, Any]:
    """The fields whose options were given."""
    fields = {
        "source": None if config else options.source,
        "out": options.out,
        "annotator": options.annotator,
        "schema_name": options.schema,
        "cluster": options.cluster,
        "workers": options.workers,
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
    return {field: value for field, value in fields.items() if value is not None}


def add_distil(commands: Any) -> None:
    """Adds `anchored distil`."""
    summary = "learn an annotator from labelled texts, or choose the texts to have labelled"
    parser = command(commands, "distil", summary, _run_distil)
    parser.add_argument("source", metavar="LABELLED|SRC", help="annotated rows, or any")
    parser.add_argument("--out", required=True, help="folder of the annotator, or file of texts")
    parser.add_argument("--schema", help="a built-in schema or a YAML file; default: general")
    parser.add_argument(
        "--target-precision", type=float, metavar="X", help="of the tags written; default: 0.8"
    )
    parser.add_argument(
        "--choose", type=positive, metavar="N", help="write N texts of SRC that stand for all"
    )
    parser.add_argument("--seed", type=whole_number, default=0)


def _run_distil(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from anchored.config import validated

    with extra("annotate"):
        from anchored.corpus import choose, distil

    given = {
        "source": {"path": options.source},
        "out": options.out,
        "schema_name": options.schema,
        "target_precision": options.target_precision,
        "count": options.choose,
        "seed": options.seed,
    }
    known = {name: value for name, value in given.items() if value is not None}
    flags = {
        "source": "LABELLED|SRC",
        "schema_name": "--schema",
        "count": "--choose",
        **same_flags("out", "target_precision"),
    }
    if options.choose is None:
        wanted = validated(distil.DistilConfig, known, source="command line", flags=flags)
        result = distil.run(wanted)
    else:
        config = validated(choose.ChooseConfig, known, source="command line", flags=flags)
        result = asdict(choose.run(config))
    if options.json:
        print_json(result)


def add_prepare(commands: Any) -> None:
    """Adds `anchored prepare`."""
    summary = "encode, mask and pack a corpus into a dataset that trains anywhere"
    parser = command(commands, "prepare", summary, _run_prepare)
    parser.add_argument(
        "config",
        type=existing_file,
        metavar="CONFIG",
        help="YAML file of a PrepareConfig, or of `pretrain` or `sft`, whose `data` it prepares",
    )
    add_overrides(parser)


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


def add_export(commands: Any) -> None:
    """Adds `anchored export`."""
    summary = "write a prepared dataset in the columns that another trainer reads"
    parser = command(commands, "export", summary, _run_export)
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="from `anchored prepare`")
    parser.add_argument(
        "--format", required=True, choices=("axolotl", "llamafactory", "torchtune"), help="whose"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")


def _run_export(options: argparse.Namespace) -> None:
    from rich.console import Console

    from anchored.publish.export import advice, export

    found = export(options.dataset, options.format, options.out, Console(stderr=True))
    print_json(found) if options.json else print(advice(found, options.out))


def add_inspect(commands: Any) -> None:
    """Adds `anchored inspect`."""
    summary = "a coloured view of segments and masks, tag statistics, or a model's facts"
    parser = command(commands, "inspect", summary, _run_inspect)
    parser.add_argument(
        "path", metavar="DATASET|MODEL|SRC", help="prepared data, annotated rows or a model"
    )
    parser.add_argument("-n", type=positive, default=3, help="rows of prepared data to show")
    parser.add_argument(
        "--row", type=whole_number, default=0, help="the first of them, counted from 0"
    )
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
    parser.add_argument("--sample", type=positive, metavar="N", help="with --tags: texts used")


def _run_inspect(options: argparse.Namespace) -> None:
    if options.tags:
        _run_inspect_tags(options)
        return
    for name in ("against", "canonical", "embedder", "sample"):
        if getattr(options, name) is not None:
            raise AnchoredError(f"--{name} goes with --tags; add it")
    from anchored.inspection.inspect import Shown, run

    shown = Shown(first=options.row, count=options.n, split=options.split)
    run(Path(options.path), shown, html=options.html, as_json=options.json)


def _run_inspect_tags(options: argparse.Namespace) -> None:
    from anchored.config import validated

    with extra("annotate,evaluate"):
        from anchored.inspection.tags_view import run
        from anchored.tags.quality import TagsConfig

    given = {
        "source": {"path": options.path},
        "against": options.against and {"path": options.against},
        "embedder": options.embedder,
        "sample": options.sample,
    }
    known = {name: value for name, value in given.items() if value is not None}
    flags = {"source": "SRC", **same_flags("against", "embedder", "sample")}
    config = validated(TagsConfig, known, source="command line", flags=flags)
    run(config, options.canonical, html=options.html, as_json=options.json)
