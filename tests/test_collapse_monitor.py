"""The monitor sees what answers lose, at a bounded price, and leaves training as it was."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from anchored.annotation import Annotation, Tag
from anchored.errors import ConfigError
from anchored.files import claim
from anchored.metrics.collapse import entropy_within, share_kept
from anchored.metrics.equivalence import Exact
from anchored.monitor import callback
from anchored.monitor.callback import BASELINE, CollapseMonitor
from anchored.monitor.probe import Answer, Probe
from anchored.monitor.schedule import TurnScheduler
from anchored.monitor.snapshot import DiversitySnapshot, compared
from anchored.tokenizer import AnchoredTokenizer
from anchored.train.config import PretrainConfig
from anchored.train.metrics_log import read_metrics
from anchored.workflow import pretrain
from processes import FORKS, free_port

TEXTS = ["Mara went to the forest.", "Ben slept in a boat.", "Ana sang by the sea."]
PROMPTS = ["Who?", "Where?"]
QUICK = {"every": 2, "samples": 4, "max_new_tokens": 6, "budget": None}


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(TEXTS, 300)


class Embedder:
    """Length and first letter: two texts are the same or not."""

    name = "letters"

    def embed(self, texts: Any) -> Any:
        return [[1.0, len(text), ord((text or " ")[0])] for text in texts]


@pytest.fixture(autouse=True)
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchored.monitor.callback.load_embedder", lambda name: Embedder())


def tiny(tokenizer: AnchoredTokenizer, dropout: float = 0.2) -> LlamaForCausalLM:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        attention_dropout=dropout,
        bos_token_id=tokenizer.control.bos,
        eos_token_id=tokenizer.control.eos,
    )
    return LlamaForCausalLM(config)


def rows(tokenizer: AnchoredTokenizer) -> Any:
    ids = tokenizer.encode_batch([TEXTS[i % 3] for i in range(24)])
    return Dataset.from_list(
        [{"input_ids": (one * 4)[:16], "labels": (one * 4)[:16]} for one in ids]
    )


def trainer(tokenizer: AnchoredTokenizer, out: Path, **arguments: Any) -> Trainer:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return Trainer(
        model=tiny(tokenizer),
        args=TrainingArguments(**{**settings, **arguments}),
        train_dataset=rows(tokenizer),
    )


def seen(one: Trainer, name: str) -> dict[int, float]:
    history = one.state.log_history
    return {
        int(row["step"]): row[f"collapse/{name}"] for row in history if f"collapse/{name}" in row
    }


def test_figures_stand_beside_the_loss_in_the_history_at_every_turn(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one = trainer(tokenizer, tmp_path)
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(one)
    one.train()
    names = {"semantic_entropy", "dissimilarity", "kept", "kept_low", "kept_high", "seconds"}
    lines = [row for row in one.state.log_history if "loss" in row]
    assert [row["step"] for row in lines] == [2, 3, 4, 6]
    for row in lines:
        found = {n.removeprefix("collapse/") for n in row if n.startswith("collapse/")}
        assert found == (names | {"step_share", "run_share"} if row["step"] != 3 else set())
    assert json.loads((tmp_path / BASELINE).read_text())["step"] == 0


class Tracker(TrainerCallback):
    """As `report_to` makes them: called with what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:  # pyright: ignore
        self.rows.append(dict(logs))


def test_an_attached_monitor_reaches_trackers_that_came_before_it(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one, tracker = trainer(tokenizer, tmp_path, max_steps=2), Tracker()
    one.add_callback(tracker)
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(one)
    one.train()
    assert "collapse/kept" in tracker.rows[0]


def test_a_monitor_among_the_callbacks_says_that_trackers_will_not_see_it(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one = trainer(tokenizer, tmp_path, max_steps=2)
    one.args.report_to = ["wandb"]
    one.add_callback(CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK))
    with pytest.warns(UserWarning, match="wandb will not see its figures; use monitor.attach"):
        one.train()
    assert list(seen(one, "kept")) == [2]


def test_training_with_a_monitor_ends_bit_identical_to_training_without(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    plain = trainer(tokenizer, tmp_path / "a")
    plain.train()
    states = [random.getstate(), torch.get_rng_state()]
    watched = trainer(tokenizer, tmp_path / "b")
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(watched)
    watched.train()
    for name, weight in watched.model.state_dict().items():  # pyright: ignore
        assert torch.equal(weight, plain.model.state_dict()[name])  # pyright: ignore
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_each_module_is_left_in_the_mode_that_it_was_in(tokenizer: AnchoredTokenizer):
    model = tiny(tokenizer)
    model.train()
    model.lm_head.eval()
    Probe(PROMPTS, tokenizer, 2, 3).ask(model, 0)
    assert model.training
    assert not model.lm_head.training


def test_gradient_checkpointing_goes_on(tokenizer: AnchoredTokenizer, tmp_path: Path):
    one = trainer(tokenizer, tmp_path, max_steps=2, gradient_checkpointing=True)
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(one)
    one.train()
    assert one.model.is_gradient_checkpointing  # pyright: ignore
    assert one.model.training  # pyright: ignore


def test_samples_depend_on_the_seed_and_the_step_alone(tokenizer: AnchoredTokenizer):
    model = tiny(tokenizer)
    probe = Probe(PROMPTS, tokenizer, 3, 8)
    first = probe.ask(model, 5)
    assert [len(group) for group in first] == [3, 3]
    torch.manual_seed(99)
    assert probe.ask(model, 5) == first
    assert probe.ask(model, 6) != first


def test_a_foreign_chat_template_is_the_format_and_the_tokenizer_is_not_changed(
    tokenizer: AnchoredTokenizer,
):
    from conftest import foreign

    hf = foreign()
    before = hf.backend_tokenizer.to_str()
    probe = Probe(["Hi", [{"role": "user", "content": "Ho"}]], hf, 2, 4)
    assert hf.decode(probe._prefix("Hi")) == "[user]Hi[assistant]"
    answers = probe.ask(tiny(tokenizer), 0)
    assert [[type(one.text) for one in group] for group in answers] == [[str, str]] * 2
    assert hf.backend_tokenizer.to_str() == before


def test_an_answer_ends_where_the_models_own_settings_end_it(tokenizer: AnchoredTokenizer):
    from conftest import foreign

    hf, model = foreign(), tiny(tokenizer)
    every = list(range(model.config.vocab_size))
    model.generation_config.eos_token_id = every
    assert Probe(["Hi"], hf, 2, 4).ask(model, 0) == [[Answer(""), Answer("")]]


def test_an_annotation_asked_of_a_tokenizer_without_its_tokens_is_refused():
    from conftest import foreign

    with pytest.raises(ConfigError, match="annotated: the tokenizer has no tokens that open"):
        Probe(["Hi"], foreign(), 2, 4, annotated=True)


@pytest.mark.parametrize("prompts", ["one text", []])
def test_prompts_that_are_no_list_are_refused(prompts: Any, tokenizer: AnchoredTokenizer):
    with pytest.raises(ConfigError, match="prompts: give a list of one or more"):
        CollapseMonitor(prompts, tokenizer)


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant(tokenizer: AnchoredTokenizer):
    with pytest.raises(ConfigError, match="sample: unknown field; did you mean 'samples'"):
        CollapseMonitor(PROMPTS, tokenizer, sample=3)


def snapshot(values: str, plans: str = "") -> DiversitySnapshot:
    return DiversitySnapshot([[{"hero": v} for v in values]], [[{"hero": v} for v in plans]], 0.25)


def test_what_is_kept_is_the_share_of_the_baselines_semantic_entropy():
    figures = compared(snapshot("abcd" * 8), snapshot("ab" * 16))
    assert figures["semantic_entropy"] == pytest.approx(0.6931472)
    assert figures["kept"] == pytest.approx(0.5)
    assert figures["kept_low"] < 0.5 < figures["kept_high"] < 0.6
    assert figures["dissimilarity"] == 0.25
    assert "annotation_drift" not in figures


def test_nothing_is_kept_or_lost_of_a_baseline_without_any_diversity():
    assert "kept" not in compared(snapshot("aaaa"), snapshot("abab"))
    statistic = entropy_within(["hero"], corrected=False)
    assert share_kept([snapshot("aaaa").readings], [snapshot("abab").readings], statistic) is None


def test_drift_is_that_of_the_annotations_beside_what_chance_alone_shows():
    figures = compared(snapshot("abab", "aaab" * 4), snapshot("abab", "abbb" * 4))
    # 12.5 and 4.5 of 17 against the reverse: (8 / 17) ln(12.5 / 4.5)
    assert figures["annotation_drift"] == pytest.approx(0.4807771, abs=1e-6)
    assert 0 < figures["annotation_drift_floor"] < figures["annotation_drift"]
    assert figures["annotation_entropy"] == pytest.approx(0.5623351)


DIFFERENT = [f"word{i}" for i in range(16)]
SAME = ["same"] * 16


class Script:
    """A probe whose answers are written in advance: all different, from step 4 on `later`."""

    prompts, samples = ["?"], 16

    def __init__(self, later: list[str]) -> None:
        self.later = later

    def ask(self, model: Any, step: int) -> list[list[Answer]]:
        return [[Answer(text) for text in (self.later if step >= 4 else DIFFERENT)]]


def watched(
    tokenizer: AnchoredTokenizer,
    out: Path,
    settings: Any,
    later: list[str] = SAME,
    **arguments: Any,
) -> Trainer:
    one = trainer(tokenizer, out, **arguments)
    monitor = CollapseMonitor(PROMPTS, tokenizer.hf, equivalence=Exact(), **{**QUICK, **settings})
    monitor._probe = Script(later)  # pyright: ignore
    monitor.attach(one)
    return one


def test_training_stops_where_the_whole_interval_is_below_the_threshold(
    tokenizer: AnchoredTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one = watched(tokenizer, tmp_path, {"stop_below": 0.5})
    one.train()
    assert one.state.global_step == 4
    assert seen(one, "kept") == {2: 1.0, 4: 0.0}
    said = " ".join(capsys.readouterr().err.split())
    assert "step 4: training stops: the answers keep 0% [0%, 0%]" in said


def test_a_share_below_the_threshold_with_an_interval_around_it_stops_nothing(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one = watched(tokenizer, tmp_path, {"stop_below": 0.9}, ["same"] * 4 + DIFFERENT[4:])
    one.train()
    assert one.state.global_step == 6
    assert seen(one, "kept")[4] == pytest.approx(0.875)  # (ln 16 - ln 4 / 4) / ln 16
    assert seen(one, "kept_high")[4] > 0.9


def test_a_baseline_without_any_diversity_is_said_and_no_threshold_acts(
    tokenizer: AnchoredTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(f"{__name__}.DIFFERENT", SAME)
    one = watched(tokenizer, tmp_path, {"stop_below": 0.9})
    with pytest.warns(UserWarning, match="all answers to each prompt say the same, so there is no"):
        one.train()
    assert one.state.global_step == 6
    assert seen(one, "semantic_entropy") == {2: 0.0, 4: 0.0, 6: 0.0}


def test_one_checkpoint_is_saved_at_the_first_turn_below_its_threshold(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    settings = {"checkpoint_below": 0.5}
    one = watched(tokenizer, tmp_path, settings, save_strategy="steps", save_steps=100, max_steps=7)
    one.train()
    saved = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert saved == ["checkpoint-4", "checkpoint-7"]  # the trainer's own at the end


def test_a_resumed_run_keeps_the_baseline_of_its_beginning(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": 4}
    watched(tokenizer, tmp_path, {}, **saving, max_steps=4).train()
    again = watched(tokenizer, tmp_path, {}, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert seen(again, "kept")[6] == 0.0  # against a baseline taken at step 4 it would not be known


def test_a_resumed_run_with_a_budget_plans_by_what_the_baseline_took(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": 4}
    watched(tokenizer, tmp_path, {}, **saving, max_steps=4).train()
    assert json.loads((tmp_path / BASELINE).read_text())["seconds"] > 0
    again = watched(tokenizer, tmp_path, {"budget": 1e6}, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert list(seen(again, "kept")) == [2, 4, 6]


def resumed_rank(rank: int, port: int, folder: Path) -> None:
    """One of two processes, each with a disk of its own; the second has no baseline on its."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2}
    os.environ.update({k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()})
    callback.load_embedder = lambda name: Embedder()  # pyright: ignore
    one = watched(AnchoredTokenizer.train(TEXTS, 300), folder / str(rank), {}, ddp_backend="gloo")
    one.train(resume_from_checkpoint=str(folder / str(rank) / "checkpoint-4"))
    (folder / f"{rank}.json").write_text(json.dumps(seen(one, "kept")))


def test_where_only_the_main_process_has_the_baseline_all_take_it_from_there(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": 4}
    watched(tokenizer, tmp_path / "0", {}, **saving, max_steps=4).train()
    shutil.copytree(tmp_path / "0" / "checkpoint-4", tmp_path / "1" / "checkpoint-4")
    port = free_port()
    ranks = [FORKS.Process(target=resumed_rank, args=(rank, port, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
    hung = [rank.is_alive() for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert not any(hung)
    for number in range(2):
        kept = json.loads((tmp_path / f"{number}.json").read_text())
        assert kept == {"2": 1.0, "4": 0.0, "6": 0.0}


def test_a_baseline_of_other_settings_is_refused_on_a_resumed_run(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    saving = {"save_strategy": "steps", "save_steps": 4}
    watched(tokenizer, tmp_path, {}, **saving, max_steps=4).train()
    again = watched(tokenizer, tmp_path, {"max_new_tokens": 7}, **saving)
    with pytest.raises(
        ConfigError, match=f"{BASELINE}: the baseline was measured with max_new_tokens"
    ):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_turns_are_paid_by_the_budget_with_the_baseline_and_are_densest_at_the_start():
    schedule = TurnScheduler(every=10, budget=0.05, first_step=0, last_step=1000, spent=1.0)
    # 1000 steps of 0.1 s: 5 s, of which the baseline took one; four turns are left.
    turns, last = [], 0
    while (step := schedule.next_turn(last + 1, last, cost=1.0, step_seconds=0.1)) is not None:
        turns, last = [*turns, step], step
        schedule.spent += 1.0
    assert turns == [32, 95, 255, 1000]
    assert schedule.spent == 5.0


def test_cheap_turns_come_as_often_as_was_asked_for():
    schedule = TurnScheduler(every=50, budget=0.05, first_step=100, last_step=1000, spent=0.01)
    assert schedule.next_turn(110, 100, cost=0.01, step_seconds=0.1) == 150
    assert schedule.next_turn(951, 950, cost=0.01, step_seconds=0.1) == 1000
    assert schedule.next_turn(991, 990, cost=0.01, step_seconds=0.1) is None
    assert TurnScheduler(50, None, 0, 1000, spent=1e9).next_turn(10, 0, 1e9, 0.1) == 50


def test_a_budget_that_pays_for_no_turn_is_said_before_the_run_is_over(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one = trainer(tokenizer, tmp_path)
    CollapseMonitor(PROMPTS, tokenizer.hf, **{**QUICK, "budget": 1e-6}).attach(one)
    with pytest.warns(UserWarning, match=r"no turn in 6 steps: .* raise budget \(1e-06\)"):
        one.train()
    assert seen(one, "kept") == {}


def test_a_run_too_short_to_plan_a_turn_says_so_at_its_end(
    tokenizer: AnchoredTokenizer, tmp_path: Path
):
    one = trainer(tokenizer, tmp_path, max_steps=3)
    CollapseMonitor(PROMPTS, tokenizer.hf, **{**QUICK, "every": 50}).attach(one)
    with pytest.warns(UserWarning, match=r"no turn in 3 steps: .*; lower every \(50\)") as said:
        one.train()
    assert sum("no turn" in str(warning.message) for warning in said) == 1


def test_sharded_weights_are_refused(tokenizer: AnchoredTokenizer, tmp_path: Path):
    one = trainer(tokenizer, tmp_path)
    next(one.model.parameters()).ds_id = 0  # pyright: ignore
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(one)
    with pytest.raises(ConfigError, match=r"is sharded .* run `anchored evaluate`"):
        one.train()


def test_annotations_are_sampled_and_their_entropy_and_drift_logged(
    tokenizer: AnchoredTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = trainer(tokenizer, tmp_path, max_steps=2)
    monitor = CollapseMonitor(PROMPTS, tokenizer, annotated=True, **QUICK)
    plan = Annotation((Tag("hero", "Mara"),))
    monkeypatch.setattr(
        monitor._probe, "ask", lambda model, step: [[Answer("a", plan), Answer("b", plan)]] * 2
    )
    monitor.attach(one)
    one.train()
    assert seen(one, "annotation_entropy") == {2: 0.0}
    assert seen(one, "annotation_drift") == {2: 0.0}


def first_word(text: str) -> dict[str, str]:
    """What `monitor.attributes` names below."""
    return {"first": (text.split() or [""])[0]}


def test_a_training_run_with_a_monitor_has_its_figures_in_metrics_jsonl(tmp_path: Path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"text": TEXTS[i % 3]}) + "\n" for i in range(12)))
    given = {
        "out": tmp_path / "out",
        "data": {
            "sources": [{"path": str(source)}],
            "tokenizer": {"vocab_size": 300},
            "objective": "plain",
            "max_length": 64,
        },
        "model": {"preset": "0.5m"},
        "trainer": {"max_steps": 3, "per_device_train_batch_size": 2, "use_cpu": True},
    }
    monitor = {**QUICK, "prompts": [""], "attributes": "test_collapse_monitor:first_word"}
    config = PretrainConfig.model_validate({**given, "monitor": monitor})
    pretrain(config, quiet=True)
    rows = read_metrics(config.out)
    assert [row["step"] for row in rows if "collapse/semantic_entropy" in row] == [2]
    claim(config.out, PretrainConfig.model_validate(given), free=("monitor",))  # may be left out


def test_trls_sft_trainer_takes_it_as_it_is(tokenizer: AnchoredTokenizer, tmp_path: Path):
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_length=None,
        logging_steps=5,
    )
    one = SFTTrainer(
        model=tiny(tokenizer),
        args=arguments,
        train_dataset=rows(tokenizer),
        processing_class=tokenizer.hf,
    )
    CollapseMonitor(PROMPTS, tokenizer.hf, **QUICK).attach(one)
    one.train()
    line = next(row for row in one.state.log_history if "collapse/kept" in row)
    assert {"step", "loss", "mean_token_accuracy"} <= line.keys()
