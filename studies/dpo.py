"""Study whether diversity survives preference optimisation with the annotation in the prompt.

    anchored experiment configs/storyworld/dpo.yaml --out runs/dpo [study=runs/demo-3]

The study starts from the models of a finished `storyworld` study. A simulated rater prefers short,
well-told stories in the taught form and, as raters do, some content over other content: that which
fine-tuning favoured. Each treatment uses this rater to build pairs of a model's own answers, and
trains on them with TRL's DPOTrainer. Then all models are sampled and measured as in the storyworld
study.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from datasets import load_from_disk
from pydantic import Field
from rich.console import Console

from anchored.config import Config, load_config, versions
from anchored.data.readers import SourceConfig
from anchored.errors import DataError
from anchored.experiments.demo import sample_model
from anchored.experiments.demo_config import BASES, DemoConfig
from anchored.experiments.measure import SFT
from anchored.experiments.stages import Stage, execute
from anchored.experiments.storyworld_measure import kept_of, measure
from anchored.files import atomic_write, building, claim, read_jsonl, write_json, write_jsonl
from anchored.models.build import load_model, quiet_transformers
from anchored.models.record import read_preferences
from anchored.preferences.build import PreferencesConfig, build
from anchored.preferences.conversation_tokenizer import ConversationTokenizer
from anchored.report.tables import markdown_table, rich_table
from anchored.sampling.engine import SampleConfig
from anchored.storyworld import Storyworld


class Treatment(Config):
    """A variant of preference optimisation.

    Args:
        init: the study's model that writes the answers and is trained.
        annotation: place of the annotation; see `PreferencesConfig`.
    """

    init: str
    annotation: Literal["prompt", "answer"] = "prompt"


class DPOConfig(Config):
    """The configuration of the preference study.

    Args:
        experiment: name of the study.
        study: folder of the finished `storyworld` study to start from.
        treatments: treatments by name.
        prompts: number of open story prompts that pairs are sampled for, for each seed.
        candidates: answers to each prompt; the best and the worst form a pair.
        taste: weight of the content in the rater's score; the taught form, well-formedness and
            consistency have a weight of 1 each.
        wordiness: penalty for ten words in that score.
        steps, batch_size, learning_rate, beta: parameters of DPO, the same for all treatments.
        sft_weight: weight of the chosen answer's likelihood in the loss, where DPO has a weight of
            1. DPO alone soon suppresses common words of the answers that it rejects.
        workers: number of stages that run in parallel.
    """

    experiment: Literal["dpo"] = "dpo"
    study: Path = Path("runs/demo-3")
    treatments: dict[str, Treatment] = Field(min_length=1)
    prompts: int = Field(default=320, gt=0)
    candidates: int = Field(default=4, ge=2)
    taste: float = Field(default=1.0, ge=0)
    wordiness: float = Field(default=0.5, ge=0)
    steps: int = Field(default=60, gt=0)
    batch_size: int = Field(default=8, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    beta: float = Field(default=0.1, gt=0)
    sft_weight: float = Field(default=4.0, ge=0)
    workers: int = Field(default_factory=lambda: min(os.cpu_count() or 1, 6), ge=1)


def run(config: DPOConfig, out: Path) -> dict[str, Any]:
    """Run or resume the study; write results.json and table.md to `out`.

    Raises:
        ConfigError: `out` contains another run.
        DataError: `config.study` is not a finished study, or lacks a model to start from.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    study = load_study(config)
    claim(out, config)
    stages = plan(config, study, out)
    tokens = len(study.seeds) * len(config.treatments) * config.prompts * config.candidates
    console.print(
        f"{len(stages)} stages; answers to sample for pairs: {tokens:,}; DPO steps: "
        f"{len(study.seeds) * len(config.treatments) * config.steps:,}; finished stages are reused"
    )
    execute(stages, config.workers, console)
    path = out / "results.json"
    before = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else 0.0
    results = collect(config, study, out)
    results["seconds"] = round(before + time.monotonic() - started, 1)
    write_json(path, results)
    atomic_write(out / "table.md", markdown_table(results))
    console.print(rich_table(results))
    return results


def load_study(config: DPOConfig) -> DemoConfig:
    """Load the configuration of the study to start from.

    Raises:
        DataError: that study is not finished, or lacks a model to start from.
    """
    folder = config.study
    if not (folder / "results.json").is_file():
        raise DataError(
            f"study: {folder}: results.json is missing; first run `anchored demo --seeds 3 --out "
            f"{folder}`"
        )
    study = load_config(DemoConfig, folder / "config.yaml")
    for name, treatment in config.treatments.items():
        if treatment.init not in study.treatments:
            known = ", ".join(study.treatments)
            raise DataError(
                f"treatments.{name}.init: {treatment.init!r} is not a model of the study; use one "
                f"of {known}"
            )
    return study


def plan(config: DPOConfig, study: DemoConfig, out: Path) -> list[Stage]:
    """List all stages: pairs, DPO and samples of each treatment and seed."""
    stages = []
    for seed in study.seeds:
        for name in config.treatments:
            folder, tag = out / f"seed-{seed}" / name, f"{name} (seed {seed})"
            samples = _samples(out, name, seed)
            work = (config, study, name, folder, seed)
            stages += [
                Stage(f"pairs {tag}", build_pairs, work, folder),
                Stage(f"DPO {tag}", optimise, work, folder, (f"pairs {tag}",)),
                Stage(
                    f"sample {tag}",
                    sample_model,
                    (study, folder / "model", samples, seed),
                    folder,
                    (f"DPO {tag}",),
                ),
            ]
    return stages


def _samples(folder: Path, name: str, seed: int) -> Path:
    return folder / "samples" / f"{name}-{seed}.jsonl"


def rate(
    completions: Sequence[Sequence[Mapping[str, Any]]],
    size: Sequence[Literal["small", "full"]],
    taste: Sequence[float],
    wordiness: Sequence[float],
    **_: Any,
) -> list[float]:
    """Rate stories, with the signature of a TRL reward function.

    A story gets one point each if it has the taught form, is well-formed and is consistent; plus
    `taste` times the share of attributes whose value is one that fine-tuning favoured; minus
    `wordiness` for every ten words.
    """
    world = Storyworld(size[0])
    return [
        _score(world, answer[-1]["content"], *weights)
        for answer, *weights in zip(completions, taste, wordiness, strict=True)
    ]


def _score(world: Storyworld, text: str, taste: float, wordiness: float) -> float:
    reading = world.read(text)
    told = sum((reading.adopted, reading.well_formed, reading.consistent))
    return told + taste * liked(world, reading.attributes) - wordiness * words(text) / 10


def words(text: str) -> int:
    """Count the words of a text, split at white space."""
    return len(text.split())


def liked(world: Storyworld, attributes: Mapping[str, str]) -> float:
    """Return the share of a story's attributes whose value is one that fine-tuning favoured."""
    favoured = world.narrow_values
    return sum(attributes.get(key) in favoured[key] for key in favoured) / len(favoured)


def build_pairs(config: DPOConfig, study: DemoConfig, name: str, folder: Path, seed: int) -> None:
    """Build pairs of the initial model's answers to open prompts."""
    asked = folder / "prompts.jsonl"
    if not asked.is_file():
        rng = random.Random(f"{seed}:prompts")
        prompts = rng.choices(Storyworld(study.size).prompts, k=config.prompts)
        fields = {"size": study.size, "taste": config.taste, "wordiness": config.wordiness}
        write_jsonl(asked, [{"prompt": prompt, **fields} for prompt in prompts])
    treatment = config.treatments[name]
    build(
        PreferencesConfig(
            out=folder / "pairs",
            model=str(_initial(config, treatment, seed)),
            source=SourceConfig(path=str(asked)),
            reward="studies.dpo:rate",
            candidates=config.candidates,
            annotation=treatment.annotation,
            sample=SampleConfig(
                max_response_tokens=study.max_response_tokens, constrain_keys=True, seed=seed
            ),
        ),
        quiet=True,
    )


def _initial(config: DPOConfig, treatment: Treatment, seed: int) -> Path:
    return config.study / f"seed-{seed}" / treatment.init / "model"


def optimise(config: DPOConfig, study: DemoConfig, name: str, folder: Path, seed: int) -> None:
    """Train on the pairs with TRL's DPOTrainer, as any user would."""
    from transformers.trainer import TRAINING_ARGS_NAME
    from trl.trainer import dpo_config, dpo_trainer

    final = folder / "model"
    if final.exists():
        return
    model = _initial(config, config.treatments[name], seed)
    arguments = dpo_config.DPOConfig(
        output_dir=str(folder / "trainer"),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=0.1,
        adam_beta2=0.95,  # with few steps, 0.999 would still be dominated by the first ones
        beta=config.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, config.sft_weight],
        max_length=study.max_length + study.max_response_tokens,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=10,
        seed=seed,
    )
    data = folder / "pairs" / "data"
    tokenizer = ConversationTokenizer.load(model, read_preferences(data, "dpo"), arguments)
    pairs: Any = load_from_disk(str(data))
    with quiet_transformers():
        trainer = dpo_trainer.DPOTrainer(
            model=load_model(model, tokenizer.stock),
            args=arguments,
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        trainer.train()
        write_json(folder / "log.json", trainer.state.log_history)
        with building(final) as partial:
            trainer.save_model(str(partial))
            (partial / TRAINING_ARGS_NAME).unlink()  # a pickle; the record has the same content


def collect(config: DPOConfig, study: DemoConfig, out: Path) -> dict[str, Any]:
    """Compute `results.json`, except for its `seconds`, from both studies' raw samples."""
    inits = dict.fromkeys(treatment.init for treatment in config.treatments.values())
    places = dict.fromkeys((*BASES, SFT, *inits), config.study)
    places |= dict.fromkeys(config.treatments, out)
    rows = {
        name: [[row for _, row in read_jsonl(_samples(at, name, seed))] for seed in study.seeds]
        for name, at in places.items()
    }
    world = Storyworld(study.size)
    kept = {
        name: kept_of(world, rows, treatment.init, name)
        for name, treatment in config.treatments.items()
        if treatment.init != SFT
    }
    measured = measure(world, rows)
    return {
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "seconds": 0.0,
        "seeds": list(study.seeds),
        "kept_of_init": kept,
        "liked": {
            name: fmean(liked(world, story["attributes"]) for story in model["samples"])
            for name, model in measured["models"].items()
        },
        "words": {
            name: fmean(words(story["response"]) for story in model["samples"])
            for name, model in measured["models"].items()
        },
        "pairs": {
            name: [_pairs(out, name, seed) for seed in study.seeds] for name in config.treatments
        },
        **measured,
    }


def _pairs(out: Path, name: str, seed: int) -> int:
    path = out / f"seed-{seed}" / name / "pairs" / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


STUDY = (DPOConfig, run)
