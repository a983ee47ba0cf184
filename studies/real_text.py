"""Repeat the demo's comparison on real text: stories, books and prose, annotated offline.

    anchored experiment configs/stories/experiment.yaml --out runs/stories

The study runs the stages of the command line (annotate, prepare, pretrain, sft, sample) with the
configurations in `stages`, whose paths are moved to the output folder. Finished stages are reused.
Then all models are measured in the same way; `results.json` has the same form as the demo's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field
from rich.console import Console

from anchored.config import Config, load_config, versions
from anchored.corpus.offline_run import MANIFEST, AnnotateConfig
from anchored.corpus.offline_run import run as annotate
from anchored.data.prepare import PrepareConfig, prepare
from anchored.data.readers import load_schema
from anchored.experiments.demo_config import BASES, TREATMENTS
from anchored.experiments.stages import Stage, execute
from anchored.files import atomic_write, claim, read_jsonl, write_json, write_jsonl
from anchored.models.build import load_model
from anchored.models.record import read_record
from anchored.report.demo_page import write_report
from anchored.report.tables import markdown_table, rich_table
from anchored.sampling.engine import Request, SampleConfig
from anchored.sampling.logits import Sampling
from anchored.sampling.sampler import LocalSampler
from anchored.segments import Message
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig, SFTConfig
from anchored.workflow import pretrain, sft
from studies.real_text_measure import Row, measure
from studies.tales import CorpusConfig, build_corpus

OPENING = "Once upon a time"
PRETRAINED = {**{name: base.objective for name, base in BASES.items()}, "reference": "reference"}
FOR_ADOPTION = 1000  # added to the seed of the base's samples that train the adoption classifier
C = TypeVar("C", bound=Config)


class RealTextConfig(Config):
    """The configuration of the study on real text.

    Args:
        experiment: name of the study.
        stages: folder of the stages' configurations.
        overrides: fields to replace in each of these files, by its name without `.yaml`.
        corpus: what is taken from the data.
        seeds: seeds of SFT and sampling, with one run each.
        pretrain_each_seed: True to pretrain bases for each seed; False starts all seeds from one
            pair of bases.
        prompts: open prompts that no stage trains on. `Once upon a time` is added: SFT models get
            it as a prompt, and base models continue it.
        samples_per_prompt: samples per prompt, for each model and seed.
        response: how responses are sampled, for all models; annotations have temperature 1. Such
            small models ramble if the tail of the distribution is not cut.
        max_response_tokens: longer responses are cut.
        workers: number of stages that run in parallel, with one thread each.
    """

    experiment: Literal["real-text"] = "real-text"
    stages: Path = Path("configs/stories")
    overrides: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    corpus: CorpusConfig = CorpusConfig()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    pretrain_each_seed: bool = False
    prompts: tuple[str, ...] = Field(min_length=1)
    samples_per_prompt: int = Field(default=32, ge=2)
    response: Sampling = Sampling(top_p=0.9)
    max_response_tokens: int = 160
    workers: int = Field(default=2, ge=1)


def run(config: RealTextConfig, out: Path) -> dict[str, Any]:
    """Run or resume the study; write results.json, report.html and table.md to `out`.

    Raises:
        ConfigError: a stage's configuration is wrong, or `out` contains another run.
        DataError: the data is not in the folder `ANCHORED_DATA`.
    """
    started, console = time.monotonic(), Console(stderr=True)
    claim(out, config)
    execute(plan(config, out), config.workers, console)
    results = collect(config, out)
    path = out / "results.json"
    before = json.loads(path.read_bytes())["seconds"] if path.is_file() else 0.0
    results["seconds"] = round(before + time.monotonic() - started, 1)
    write_json(path, results)
    write_report(results, out / "report.html")
    atomic_write(out / "table.md", markdown_table(results))
    console.print(rich_table(results))
    return results


def data_folder() -> Path:
    """Return the folder of the shared data: `ANCHORED_DATA`, by default `../shared/data`."""
    return Path(os.environ.get("ANCHORED_DATA", "../shared/data"))


def plan(config: RealTextConfig, out: Path) -> list[Stage]:
    """List all stages, in an order in which they could run one after the other."""
    corpus = out / "corpus"
    stages = [
        Stage("corpus", build_corpus, (config.corpus, data_folder(), corpus), corpus),
        _stage("annotate documents", _annotate, (config, out, "documents"), ("corpus",)),
        _stage("annotate sft", _annotate, (config, out, "sft"), ("annotate documents",)),
        _stage("prepare annotated", _prepare, (config, out, "annotated"), ("annotate sft",)),
        _stage("prepare plain", _prepare, (config, out, "plain"), ("prepare annotated",)),
        _stage("prepare reference", _prepare, (config, out, "reference"), ("prepare annotated",)),
    ]
    base_seeds = config.seeds if config.pretrain_each_seed else config.seeds[:1]
    for seed in base_seeds:
        stages += [_pretraining(config, out, name, seed) for name in BASES]
    for seed in config.seeds:
        stages += [_fine_tuning(config, out, name, seed) for name in TREATMENTS]
    stages.append(_pretraining(config, out, "reference", config.seeds[0]))
    for seed in config.seeds:
        stages += [_sampling(config, out, name, seed) for name in (*BASES, *TREATMENTS)]
        stages.append(_sampling(config, out, "base", seed, FOR_ADOPTION))
    return stages


def _stage(name: str, work: Any, arguments: tuple[Any, ...], needs: tuple[str, ...]) -> Stage:
    return Stage(name, work, arguments, arguments[1], needs)


def _pretraining(config: RealTextConfig, out: Path, name: str, seed: int) -> Stage:
    return Stage(
        name=f"pretrain {name} {seed}",
        work=_pretrain,
        arguments=(config, out, name, seed),
        folder=_folder(config, out, name, seed),
        needs=(f"prepare {PRETRAINED[name]}",),
    )


def _fine_tuning(config: RealTextConfig, out: Path, name: str, seed: int) -> Stage:
    base = f"pretrain {TREATMENTS[name].base} {_base_seed(config, seed)}"
    folder = _folder(config, out, name, seed)
    return Stage(f"SFT {name} {seed}", _fine_tune, (config, out, name, seed), folder, (base,))


def _sampling(config: RealTextConfig, out: Path, name: str, seed: int, shift: int = 0) -> Stage:
    trained = (
        f"pretrain {name} {_base_seed(config, seed)}" if name in BASES else f"SFT {name} {seed}"
    )
    return Stage(
        name=f"sample {name} {seed + shift}",
        work=_sample,
        arguments=(config, out, name, seed, shift),
        folder=out / "samples",
        needs=(trained,),
    )


def _base_seed(config: RealTextConfig, seed: int) -> int:
    return seed if config.pretrain_each_seed else config.seeds[0]


def _folder(config: RealTextConfig, out: Path, name: str, seed: int) -> Path:
    at = _base_seed(config, seed) if name in PRETRAINED else seed
    return out / "models" / f"seed-{at}" / name


def _samples(out: Path, name: str, seed: int) -> Path:
    return out / "samples" / f"{name}-{seed}.jsonl"


def _load(config: RealTextConfig, cls: type[C], name: str, **fields: Any) -> C:
    """Load a stage's configuration; apply the study's overrides and then `fields`."""
    given = [f"{field.replace('__', '.')}={json.dumps(v)}" for field, v in fields.items()]
    path = config.stages / f"{name}.yaml"
    return load_config(cls, path, [*config.overrides.get(name, ()), *given])


def _annotate(config: RealTextConfig, out: Path, what: str) -> None:
    folder = out / "annotated" / what
    fields = {"source": [str(out / "corpus" / f"{what}.jsonl")], "out": str(folder), "workers": 1}
    if what == "sft":
        fields["calibration"] = str(out / "annotated" / "documents" / "calibration.json")
    if not (folder / MANIFEST).is_file():
        name = "annotate" if what == "documents" else "annotate-sft"
        annotate(_load(config, AnnotateConfig, name, **fields), Console(quiet=True))


def _prepare(config: RealTextConfig, out: Path, what: str) -> None:
    folder = out / "prepared" / what
    if folder.exists():
        return
    sources: list[dict[str, Any]] = [{"path": str(out / "annotated" / "documents")}]
    fields: dict[str, Any] = {"out": str(folder), "sources": sources}
    if what == "reference":
        sources.append({"path": str(out / "annotated" / "sft"), "weight": 0.2})
    if what != "annotated":
        fields["tokenizer"] = str(out / "prepared" / "annotated" / "tokenizer")
    prepare(_load(config, PrepareConfig, f"prepare-{what}", **fields), Console(quiet=True))


def _pretrain(config: RealTextConfig, out: Path, name: str, seed: int) -> None:
    kind = PRETRAINED[name]
    fields = {
        "out": str(_folder(config, out, name, seed)),
        "data": str(out / "prepared" / kind),
        "seed": seed,
    }
    pretrain(_load(config, PretrainConfig, f"pretrain-{kind}", **fields), quiet=True)


def _fine_tune(config: RealTextConfig, out: Path, name: str, seed: int) -> None:
    fields = {
        "out": str(_folder(config, out, name, seed)),
        "data__sources": [{"path": str(out / "annotated" / "sft")}],
        "model__init": str(_folder(config, out, TREATMENTS[name].base, seed) / "model"),
        "objective": TREATMENTS[name].objective,
        "seed": seed,
    }
    sft(_load(config, SFTConfig, "sft", **fields), quiet=True)


def _sample(config: RealTextConfig, out: Path, name: str, seed: int, shift: int) -> None:
    path = _samples(out, name, seed + shift)
    if path.is_file():
        return
    folder = _folder(config, out, name, seed) / "model"
    tokenizer = AnchoredTokenizer.load(folder)
    annotated = read_record(folder)["annotated"]
    prompts = [p for p in (OPENING, *config.prompts) for _ in range(config.samples_per_prompt)]
    settings = SampleConfig(
        response=config.response,
        max_response_tokens=config.max_response_tokens,
        seed=seed + shift,
    )
    schema = load_schema(_load(config, AnnotateConfig, "annotate").schema_name)
    sampler = LocalSampler(str(folder), load_model(folder, tokenizer), tokenizer, annotated, schema)
    samples = sampler.sample(
        [_request(prompt, name in BASES, annotated) for prompt in prompts], settings
    )
    rows = [
        {"seed": seed, **one.as_row(prompt)} for prompt, one in zip(prompts, samples, strict=True)
    ]
    write_jsonl(path, rows)


def _request(prompt: str, is_base: bool, annotated: bool) -> Request:
    if is_base and prompt == OPENING:
        return Request(annotated=annotated, prefill=OPENING)
    return Request((Message("user", prompt),), annotated=annotated)


def collect(config: RealTextConfig, out: Path) -> dict[str, Any]:
    """Compute `results.json`, except for its `seconds`, from the raw samples."""
    rows = {
        name: [_rows(_samples(out, name, seed)) for seed in config.seeds]
        for name in (*BASES, *TREATMENTS)
    }
    base = [row for s in config.seeds for row in _rows(_samples(out, "base", s + FOR_ADOPTION))]
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seconds": 0.0,
        "seeds": list(config.seeds),
        **measure(
            rows,
            base_continuations=[row["response"] for row in base],
            taught=[row["response"] for row in _rows(out / "corpus" / "held_out.jsonl")],
            corpus=[
                row["text"] for row in _rows(out / "corpus" / "documents.jsonl") if "prompt" in row
            ],
            schema=load_schema(_load(config, AnnotateConfig, "annotate").schema_name),
            calibration=out / "annotated" / "documents" / "calibration.json",
            reference=_folder(config, out, "reference", config.seeds[0]) / "model",
        ),
    }


def _rows(path: Path) -> list[Row]:
    return [row for _, row in read_jsonl(path)]


STUDY = (RealTextConfig, run)
