"""`anchored demo`: measure how far SFT collapses a storyworld model, and what anchoring keeps.

For each seed, a plain and an annotated base are pretrained on the same number of tokens, SFT runs
(the treatments) start from them, and all models are sampled. Each stage has its own folder.
Finished stages are reused, and independent stages run in parallel, with one thread each.
"""

from __future__ import annotations

import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from anchored.annotation import Annotation
from anchored.config import versions
from anchored.data.prepare import PrepareConfig
from anchored.data.readers import SourceConfig
from anchored.experiments.demo_config import BASES, DemoConfig, SFTSettings, Treatment
from anchored.experiments.stages import Stage, execute
from anchored.experiments.storyworld_measure import measure
from anchored.files import atomic_write, building, claim, read_jsonl, write_json, write_jsonl
from anchored.models.build import ModelConfig, load_model
from anchored.models.record import read_record
from anchored.models.static_vectors import load_static_model
from anchored.report.demo_page import write_report
from anchored.report.tables import markdown_table, rich_table
from anchored.sampling.engine import Request, SampleConfig, Sampling
from anchored.sampling.sampler import LocalSampler
from anchored.segments import Message
from anchored.storyworld import Storyworld
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig, SFTConfig
from anchored.train.metrics_log import measure_matmul_peak
from anchored.workflow import pretrain, sft

_FRESH_DOCUMENTS = 1000  # added to the data seed if a base continues another base


def run(config: DemoConfig, out: Path) -> dict[str, Any]:
    """Run or resume the study; write results.json, report.html and table.md to `out`.

    Raises:
        ConfigError: `out` contains another run.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    claim(out, config)
    stages = plan(config, out)
    console.print(cost(config, stages))
    execute(stages, config.workers, console)
    results = collect(config, out)
    results["seconds"] = round(_seconds_before(out) + time.monotonic() - started, 1)
    write_json(out / "results.json", results)
    write_report(results, out / "report.html")
    atomic_write(out / "table.md", markdown_table(results))
    console.print(rich_table(results))
    console.print(f"{out / 'report.html'}: plots and samples; {out / 'results.json'}: every figure")
    return results


def _seconds_before(out: Path) -> float:
    """Return the seconds of an earlier, finished run, whose stages are not run again."""
    path = out / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else 0.0


def plan(config: DemoConfig, out: Path) -> list[Stage]:
    """List all stages of all seeds; where the order is free, the longest stages come first."""
    bases = config.bases or out / "bases"
    tokenizer = Stage("tokenizer", learn_tokenizer, (config, bases), bases / "tokenizer")
    seeds = [_seed_stages(config, bases, out, seed) for seed in config.seeds]
    # Distilled once per machine, while the tokenizer is being trained and a process is idle.
    vectors = Stage("static vectors", distil, (), bases)
    return [tokenizer, vectors, *(stage for column in zip(*seeds, strict=True) for stage in column)]


def _seed_stages(config: DemoConfig, bases: Path, out: Path, seed: int) -> list[Stage]:
    suffix = f" (seed {seed})" if len(config.seeds) > 1 else ""
    folders = {name: bases / f"seed-{seed}" / name for name in config.pretrained}
    folders |= {name: out / f"seed-{seed}" / name for name in config.treatments}
    train = [
        Stage(
            name=f"pretrain {name}{suffix}",
            work=pretrain_base,
            arguments=(config, name, bases, seed),
            folder=folders[name],
            needs=(f"pretrain {base.init}{suffix}" if base.init else "tokenizer",),
            steps=pretrain_steps(config, name),
        )
        for name, base in config.pretrained.items()
    ]
    train += [
        Stage(
            name=f"SFT {name}{suffix}",
            work=fine_tune,
            arguments=(config, name, folders[treatment.base], folders[name], seed),
            folder=folders[name],
            needs=(f"pretrain {treatment.base}{suffix}",),
            steps=sft_steps(config, name),
        )
        for name, treatment in config.treatments.items()
    ]
    samples = [
        Stage(
            name=f"sample {name}{suffix}",
            work=sample_model,
            arguments=(config, folders[name] / "model", _samples(out, seed, name), seed),
            folder=out / "samples",
            needs=(f"{'pretrain' if name in BASES else 'SFT'} {name}{suffix}",),
        )
        for name in config.models
    ]
    return [*train, *samples]


def _samples(out: Path, seed: int, name: str) -> Path:
    return out / "samples" / f"{name}-{seed}.jsonl"


def pretrain_tokens(config: DemoConfig, name: str) -> int:
    """Return the token budget of a base."""
    return round(config.pretrain.tokens * config.pretrained[name].share)


def pretrain_steps(config: DemoConfig, name: str) -> int:
    """Return the steps that use up the token budget, with `batch_size` almost full rows each."""
    return max(pretrain_tokens(config, name) // (config.pretrain.batch_size * config.max_length), 1)


def sft_steps(config: DemoConfig, name: str) -> int:
    """Return the steps over the examples and, in addition, over replayed examples."""
    settings, treatment = config.sft, config.treatments[name]
    examples = settings.examples
    if treatment.objective == "anchored-replay":
        examples /= 1 - (treatment.replay or config.replay).share
    return round(
        settings.epochs * (examples + _documents(settings, treatment)) / settings.batch_size
    )


def _documents(settings: SFTSettings, treatment: Treatment) -> int:
    return round(settings.examples * treatment.documents / (1 - treatment.documents))


def learn_tokenizer(config: DemoConfig, bases: Path) -> None:
    """Train one tokenizer for all models, on documents that no model is trained on."""
    folder = bases / "tokenizer"
    if folder.exists():
        return
    texts: list[str] = []
    for row in islice(Storyworld(config.size).documents(seed=-1), 4000):
        for part in row.get("chunks", [{"text": row.get("response"), **row}]):
            annotation = Annotation.from_rows(part["annotation"])
            texts += [row.get("prompt", ""), str(annotation), part["text"]]
    with building(folder) as partial:
        AnchoredTokenizer.train(texts, config.vocab_size).save(partial)


def distil() -> None:
    """Fill the cache of static vectors that dissimilarity is measured with."""
    load_static_model()


def _world(config: DemoConfig) -> str:
    return f"storyworld://{config.size}"


def pretrain_base(config: DemoConfig, name: str, bases: Path, seed: int) -> None:
    """Pretrain one of the bases."""
    settings, base = config.pretrain, config.pretrained[name]
    documents = seed if base.init is None else seed + _FRESH_DOCUMENTS
    world = f"{_world(config)}?seed={documents}"
    if base.tag_noise:
        world += f"&tag_noise={base.tag_noise}"
    init = base.init and str(bases / f"seed-{seed}" / base.init / "model")
    pretrain(
        PretrainConfig(
            out=bases / f"seed-{seed}" / name,
            data=PrepareConfig(
                sources=(SourceConfig(path=world),),
                tokenizer=str(bases / "tokenizer"),
                objective=base.objective,
                schema_name=_world(config),
                max_length=config.max_length,
                token_budget=pretrain_tokens(config, name),
                seed=seed,
            ),
            model=ModelConfig(init=init) if init else ModelConfig(preset=config.preset),
            seed=seed,
            muon_learning_rate=settings.muon_learning_rate,
            trainer={
                **_trainer(
                    pretrain_steps(config, name),
                    settings.learning_rate,
                    settings.batch_size,
                ),
                "adam_beta2": 0.95,
            },
        ),
        quiet=True,
    )


def fine_tune(config: DemoConfig, name: str, base: Path, out: Path, seed: int) -> None:
    """Run one treatment's SFT; all treatments use the same examples."""
    settings, treatment = config.sft, config.treatments[name]
    cover = "true" if config.regime == "broad" else "false"
    source = (
        f"{_world(config)}/sft?seed={seed}&count={settings.examples}"
        f"&narrow_mass={config.narrow_mass}&cover={cover}"
    )
    if noise := config.pretrained[treatment.base].tag_noise:
        source += f"&tag_noise={noise}"
    sources = [SourceConfig(path=source)]
    if documents := _documents(settings, treatment):
        path = f"{_world(config)}?seed={seed}"
        sources.append(SourceConfig(path=path, limit=documents, objective="annotated"))
    steps = sft_steps(config, name)
    sft(
        SFTConfig(
            out=out,
            data=PrepareConfig(
                sources=tuple(sources),
                schema_name=_world(config),
                max_length=config.max_length,
                packing=False,
                seed=seed,
            ),
            model=ModelConfig(init=str(base / "model")),
            objective=treatment.objective,
            replay=treatment.replay or config.replay,
            seed=seed,
            trainer={
                **_trainer(steps, settings.learning_rate, settings.batch_size),
                "adam_beta2": settings.adam_beta2,
            },
        ),
        quiet=True,
    )


def _trainer(steps: int, learning_rate: float, batch_size: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": 0.05,
        "logging_steps": 20,
        "save_steps": 500,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def sample_model(config: DemoConfig, model: Path, path: Path, seed: int) -> None:
    """Sample stories at temperature 1 for every open prompt, and answers at 0 to every question.

    Annotations have the same temperatures: a question has one right answer, so both parts are
    greedy, as they are for models that write no annotation.
    """
    if path.is_file():
        return
    world = Storyworld(config.size)
    stories = [prompt for prompt in world.prompts for _ in range(config.samples_per_prompt)]
    rows = _ask(config, model, stories, "story", 1.0, seed)
    rows += _ask(config, model, [q for q, _ in world.questions], "question", 0.0, seed)
    write_jsonl(path, rows)


def _ask(
    config: DemoConfig,
    model: Path,
    prompts: list[str],
    kind: str,
    temperature: float,
    seed: int,
) -> list[dict[str, Any]]:
    tokenizer, schema = AnchoredTokenizer.load(model), Storyworld(config.size).schema
    annotated = read_record(model)["annotated"]
    sampler = LocalSampler(str(model), load_model(model, tokenizer), tokenizer, annotated, schema)
    requests = [Request((Message("user", prompt),), annotated=annotated) for prompt in prompts]
    sampling = SampleConfig(
        annotation=Sampling(temperature=temperature),
        response=Sampling(temperature=temperature),
        max_response_tokens=config.max_response_tokens,
        batch_size=96,
        constrain_keys=True,
        seed=seed,
    )
    samples = sampler.sample(requests, sampling)
    return [
        {"seed": seed, "kind": kind, **one.as_row(prompt)}
        for prompt, one in zip(prompts, samples, strict=True)
    ]


def collect(config: DemoConfig, out: Path) -> dict[str, Any]:
    """Compute `results.json`, except for its `seconds`, from the raw samples."""
    rows = {
        name: [[row for _, row in read_jsonl(_samples(out, seed, name))] for seed in config.seeds]
        for name in config.models
    }
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seconds": 0.0,
        "seeds": list(config.seeds),
        **measure(Storyworld(config.size), rows),
    }


def cost(config: DemoConfig, stages: list[Stage]) -> str:
    """Describe the cost of the run by its training tokens and this machine's measured speed."""
    tokens = len(config.seeds) * sum(pretrain_tokens(config, name) for name in config.pretrained)
    peak = measure_matmul_peak(torch.device("cpu"), torch.float32) / torch.get_num_threads()
    return (
        f"{len(stages)} stages, {tokens / 1e6:.1f}M pretraining tokens on {config.workers} "
        f"processes of one thread ({peak / 1e9:.0f} GFLOP/s each); finished stages are reused"
    )
