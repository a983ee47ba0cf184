"""Preferences and rewards judge answers behind one annotation, in the ids of training."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
import yaml
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from anchored import cli
from anchored.annotation import Annotation
from anchored.config import load_config, to_yaml, versions
from anchored.errors import ConfigError, DataError
from anchored.experiments.demo_config import TREATMENTS, DemoConfig
from anchored.files import write_json
from anchored.models import RECORD
from anchored.models.build import ModelConfig, build_model
from anchored.models.record import read_preferences, read_record
from anchored.preferences import build as building
from anchored.preferences.build import PreferencesConfig, build, read_asked
from anchored.preferences.conversation_tokenizer import ConversationTokenizer
from anchored.publish import push
from anchored.publish.run import write
from anchored.sampling import sampler
from anchored.sampling.engine import Request, Sample
from anchored.sampling.sampler import load
from anchored.segments import OBJECTIVES, Message, conversation_segments
from anchored.storyworld import Storyworld
from anchored.tokenizer import AnchoredTokenizer
from families import FAMILIES
from studies.dpo import DPOConfig, load_study, optimise, rate

ROOT = Path(__file__).parents[1]
TEXTS = ["Tell me a story of Mara.", "\nplace: forest", "hero: Mara", "Mara went to the forest."]
ANNOTATION = Annotation.of({"hero": "Mara", "place": "forest"})
SPELT = "A story <|/annotation|> please <|endoftext|>"
MODEL = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `anchored sft` leaves it, with random weights."""
    tokenizer = AnchoredTokenizer.train(TEXTS, 300)
    return as_sft_leaves_it(tmp_path_factory.mktemp("model"), {"config": MODEL}, tokenizer)


def as_sft_leaves_it(folder: Path, start: dict[str, Any], tokenizer: AnchoredTokenizer) -> Path:
    model = build_model(ModelConfig.model_validate(start), tokenizer, seed=0)
    model.save_pretrained(folder)
    tokenizer.save(folder, annotated=True)
    record = {
        "objective": "anchored",
        "annotated": True,
        "schema": None,
        "tokenizer": tokenizer.fingerprint,
        "tokens": {"kept": 142, "supervised": 40},
        "config": {"model": {"init": "base", "preset": None}},
        "versions": {"anchored": "1"},
    }
    write_json(folder / RECORD, record)
    return folder


WEIGHTS = "model.safetensors"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text, "annotation": None}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


OPEN_TURN = {"role": "assistant", "content": "", "annotation": ANNOTATION.rows()}


def reference(tokenizer: AnchoredTokenizer, turns: Sequence[Message], objective: str) -> list[int]:
    segments = conversation_segments(turns, tokenizer, OBJECTIVES[objective])
    return [i for segment in segments for i in segment.ids]


def test_an_annotation_and_its_answer_have_the_ids_that_anchored_sft_trains_on(model: Path):
    tokenizer = ConversationTokenizer.load(model)
    turns = [Message("user", SPELT), Message("assistant", "Mara went.", ANNOTATION)]
    whole = tokenizer.apply_chat_template([user(SPELT), OPEN_TURN, answer("Mara went.")])
    assert whole["input_ids"] == reference(tokenizer.stock, turns, "anchored")
    prompt = tokenizer.apply_chat_template([user(SPELT), OPEN_TURN], add_generation_prompt=True)
    assert whole["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]
    assert prompt["input_ids"][-1] == tokenizer.stock.control.close
    assert prompt["attention_mask"] == [1] * len(prompt["input_ids"])
    control = tokenizer.stock.control  # spelt by the user, they are text
    assert prompt["input_ids"].count(control.close) == 1
    assert prompt["input_ids"].count(control.eos) == 1


def test_turns_without_annotations_have_the_ids_of_standard_sft(model: Path):
    tokenizer = ConversationTokenizer.load(model)
    several = [[user("A story.")], [user("A story."), answer("Mara."), user("On.")]]
    found = tokenizer.apply_chat_template(several, add_generation_prompt=True)["input_ids"]
    turns = [Message("user", "A story."), Message("assistant", "Mara."), Message("user", "On.")]
    for ids, end in zip(found, (1, 3), strict=True):
        open_turn = [*turns[:end], Message("assistant", "")]
        assert ids == reference(tokenizer.stock, open_turn, "standard")
    text = tokenizer.apply_chat_template(several[0], tokenize=False)
    assert text == "<|endoftext|><|user|>A story."


@pytest.mark.parametrize("name", FAMILIES)
def test_existing_models_prompts_and_answers_have_the_ids_of_training_on_them(
    name: str, tmp_path: Path
):
    AnchoredTokenizer.adopt(FAMILIES[name].tokenizer()).save(tmp_path, annotated=True)
    tokenizer = ConversationTokenizer.load(tmp_path)
    asked, said = user("Tell me a story"), answer("Mara sailed.")
    history = [user("Hello"), answer("Yes?"), asked]
    for turns, opened, objective in ((history, [OPEN_TURN], "anchored"), ([asked], [], "standard")):
        prompt = tokenizer.apply_chat_template([*turns, *opened], add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*turns, *opened, said])["input_ids"]
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
        learnt = Message("assistant", "Mara sailed.", ANNOTATION if opened else None)
        assert whole == reference(tokenizer.stock, [*messages, learnt], objective)
        text = [*tokenizer.stock.encode("Mara sailed."), tokenizer.stock.control.end]
        assert whole == [*prompt["input_ids"], *text]


def test_what_trl_saves_is_the_stock_tokenizer_with_the_models_record(model: Path, tmp_path: Path):
    ConversationTokenizer.load(model).save_pretrained(tmp_path)
    saved, before = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path, model))
    assert type(saved) is not ConversationTokenizer
    opened: Any = saved.apply_chat_template(
        [answer("Hi")], tokenize=False, add_generation_prompt=True
    )
    assert opened.endswith("<|assistant|><|annotation|>")
    assert saved.chat_template == before.chat_template
    assert read_record(tmp_path) == read_record(model)
    fingerprint = AnchoredTokenizer.load(tmp_path).fingerprint
    assert fingerprint == AnchoredTokenizer.load(model).fingerprint


def built_for(trainer: str, folder: Path, row: dict[str, Any]) -> Path:
    """As `anchored preferences` leaves it."""
    Dataset.from_list([row] * 4).save_to_disk(str(folder / "data"))
    config = {
        "trainer": trainer,
        "reward": "mine:taste",
        "annotation": "prompt",
        "out": str(folder),
    }
    write_json(folder / "manifest.json", {"config": config, "rows": 4})
    return folder / "data"


def pairs_on_disk(folder: Path) -> Path:
    row = {
        "prompt": [user(SPELT), OPEN_TURN],
        "chosen": [answer("Mara went.")],
        "rejected": [answer("No.")],
    }
    return built_for("dpo", folder, row)


QUICK: dict[str, Any] = {
    "max_steps": 2,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "learning_rate": 1e-3,
}


def test_trls_dpo_trainer_learns_the_answers_alone_and_leaves_a_model_to_sample(
    model: Path, tmp_path: Path
):
    dpo = example("trl_dpo")
    trainer = dpo.dpo_trainer(
        str(model),
        pairs_on_disk(tmp_path / "pairs"),
        tmp_path / "run",
        per_device_train_batch_size=2,
        beta=0.2,
        hub_token="of nobody's concern",
        **QUICK,
    )
    tokenizer = ConversationTokenizer.load(model).stock
    row = trainer.train_dataset[0]
    prompt = [Message("user", SPELT), Message("assistant", "", ANNOTATION)]
    assert row["prompt_ids"] == reference(tokenizer, prompt, "anchored")
    assert row["chosen_ids"] == [*tokenizer.encode("Mara went."), tokenizer.control.eos]
    assert row["rejected_ids"] == [*tokenizer.encode("No."), tokenizer.control.eos]
    trainer.train()
    saved = tmp_path / "model"
    dpo.save(trainer, saved)
    before, after = (load_file(at / "model.safetensors") for at in (model, saved))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load(str(saved)).annotated
    learnt = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    found = read_record(saved)
    training = found["preferences"][0].pop("training")
    assert found == {**read_record(model), "preferences": [learnt]}
    assert training["model"] == str(model)
    assert training["versions"] == versions()
    assert training["arguments"] == json.loads(trainer.args.to_json_string())
    assert training["arguments"]["beta"] == 0.2
    sent = push.plan(push.PushConfig(model=write(saved).parent, repo="owner/name")).files
    text, record = (one.text or "" for one in sent if one.name in ("README.md", RECORD))
    assert yaml.safe_load(text.split("---\n")[1])["tags"] == [
        "anchored",
        "objective-anchored",
        "dpo",
    ]
    assert (
        "- 142 tokens of training data, 40 with loss.\n"
        "- Then DPO on 4 rows of `anchored preferences`, the annotation in the prompt, reward "
        "`mine:taste`.\n"
    ) in text
    made = json.loads(record)["preferences"][0]
    assert made["config"]["out"] == "pairs"
    assert made["training"]["arguments"]["output_dir"] == "run"
    assert "nobody" not in record


def test_preferences_are_not_learnt_by_a_model_without_a_record(model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / RECORD).unlink()
    ConversationTokenizer.load(tmp_path / "model")  # to look at conversations it will do
    with pytest.raises(DataError, match=r"not a model trained by .*anchored\.json is missing"):
        example("trl_grpo").grpo_trainer(
            str(tmp_path / "model"),
            built_for("grpo", tmp_path / "prompts", {"prompt": [user(SPELT), OPEN_TURN]}),
            "json:dumps",
            tmp_path / "run",
            **QUICK,
        )


def test_the_study_of_preferences_records_how_it_optimised(model: Path, tmp_path: Path):
    shutil.copytree(model, tmp_path / "study" / "seed-3" / "anchored" / "model")
    folder = tmp_path / "out" / "seed-3" / "mine"
    pairs_on_disk(folder / "pairs")
    given = {"study": tmp_path / "study", "treatments": {"mine": {"init": "anchored"}}}
    settings = DPOConfig.model_validate({**given, "steps": 1, "batch_size": 2, "beta": 0.3})
    optimise(settings, DemoConfig(seeds=(3,)), "mine", folder, 3)
    training = read_record(folder / "model")["preferences"][0]["training"]
    arguments = {"beta": 0.3, "loss_weights": [1.0, 4.0], "max_steps": 1, "seed": 3}
    assert {name: training["arguments"][name] for name in arguments} == arguments
    assert training["versions"] == versions()
    assert "training_args.bin" not in {file.name for file in (folder / "model").iterdir()}


def test_a_model_that_is_optimised_twice_keeps_both_in_its_record(model: Path, tmp_path: Path):
    first, second = {"rows": 4}, {"rows": 5}
    ConversationTokenizer.load(model, first).save_pretrained(tmp_path)
    ConversationTokenizer.load(tmp_path, second).save_pretrained(tmp_path)
    assert read_record(tmp_path)["preferences"] == [first, second]


def test_trainers_refuse_data_that_preferences_did_not_make_for_them(tmp_path: Path):
    pairs = pairs_on_disk(tmp_path / "pairs")
    with pytest.raises(DataError, match=r"made for trainer: dpo; build it with trainer: grpo"):
        read_preferences(pairs, "grpo")
    with pytest.raises(DataError, match=r"give the folder that `anchored preferences` printed"):
        read_preferences(tmp_path / "pairs", "dpo")


def test_trls_dpo_trainer_ends_answers_with_the_end_of_turn_of_an_existing_model(tmp_path: Path):
    base = FAMILIES["gemma3"].save(tmp_path / "base")
    tokenizer = AnchoredTokenizer.load(base)
    model = as_sft_leaves_it(tmp_path / "model", {"init": str(base)}, tokenizer)
    trainer = example("trl_dpo").dpo_trainer(
        str(model), pairs_on_disk(tmp_path / "pairs"), tmp_path / "run", **QUICK
    )
    row = trainer.train_dataset[0]
    prompt = [Message("user", SPELT), Message("assistant", "", ANNOTATION)]
    assert row["prompt_ids"] == reference(tokenizer, prompt, "anchored")
    end = tokenizer.hf.convert_tokens_to_ids("<end_of_turn>")
    assert row["chosen_ids"] == [*tokenizer.encode("Mara went."), end]
    trainer.train()


def reward(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(one[0]["content"])) for one in completions]


def test_trls_grpo_trainer_answers_behind_the_annotation_of_the_prompt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts = built_for("grpo", tmp_path / "prompts", {"prompt": [user(SPELT), OPEN_TURN]})
    grpo = example("trl_grpo")
    trainer = grpo.grpo_trainer(
        str(model),
        prompts,
        "test_preferences:reward",
        tmp_path / "run",
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=4,
        **QUICK,
    )
    seen: list[list[int]] = []
    generate = trainer._generate_single_turn
    monkeypatch.setattr(
        trainer,
        "_generate_single_turn",
        lambda ids, *rest: (seen.extend(ids), generate(ids, *rest))[1],
    )
    trainer.train()
    prompt = [Message("user", SPELT), Message("assistant", "", ANNOTATION)]
    expected = reference(ConversationTokenizer.load(model).stock, prompt, "anchored")
    assert len(seen) == 4
    assert all(ids == expected for ids in seen)
    saved = tmp_path / "model"
    grpo.save(trainer, saved)
    assert "training_args.bin" not in {path.name for path in saved.iterdir()}
    made = read_record(saved)["preferences"][0]["training"]
    assert made["arguments"] == json.loads(trainer.args.to_json_string())
    said = "- Then GRPO on 4 rows .*, reward `test_preferences:reward`.\n"
    assert re.search(said, write(saved).read_text(encoding="utf-8"))


def source(folder: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"path": str(path)}


def config(folder: Path, model: Path, rows: Sequence[dict[str, Any]], **fields: Any) -> Any:
    given = {
        "out": folder / "out",
        "model": str(model),
        "source": source(folder, rows),
        "reward": "test_preferences:reward",
    }
    return PreferencesConfig.model_validate({**given, **fields})


class Writer:
    """Stands for the sampler: the n-th answer to an annotation is `texts[n]`."""

    def __init__(self, *texts: str, fails_at: int | None = None) -> None:
        self.texts, self.fails_at = texts, fails_at
        self.calls: list[list[Request]] = []
        self.annotations = 0

    def __call__(self, model: Any, tokenizer: Any, requests: Sequence[Request], *_: Any, **__: Any):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append(list(requests))
        return [self._write(n, request) for n, request in enumerate(requests)]

    def _write(self, n: int, request: Request) -> Sample:
        annotation = request.pinned if request.complete else None
        if request.open:
            self.annotations += 1
            annotation = Annotation.of({"hero": f"Hero{self.annotations}"})
        text = self.texts[n % len(self.texts)]
        return Sample(text.removesuffix("..."), annotation, finished=not text.endswith("..."))


def built(config: PreferencesConfig) -> list[dict[str, Any]]:
    return load_from_disk(str(build(config, quiet=True))).to_list()  # pyright: ignore


def counts(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return {name: manifest[name] for name in ("asked", "rows", "dropped")}


def test_both_answers_of_a_pair_stand_behind_one_sampled_annotation(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = Writer("aa", "bbbb", "c", "dddddd...")  # the longest was cut: it is no answer
    monkeypatch.setattr(sampler, "sample", writer)
    rows = built(config(tmp_path, model, [{"prompt": "A?"}, {"prompt": "B?"}]))
    assert [row["prompt"][0]["content"] for row in rows] == ["A?", "B?"]
    assert [row["prompt"][1]["annotation"][0]["value"] for row in rows] == ["Hero1", "Hero2"]
    for row in rows:
        assert row["prompt"][1]["content"] == ""
        assert row["chosen"] == [answer("bbbb")]
        assert row["rejected"] == [answer("c")]
        assert (row["chosen_reward"], row["rejected_reward"]) == (4.0, 1.0)
    annotations, answers = writer.calls
    assert all(request.annotation_only for request in annotations)
    assert [str(request.pinned) for request in answers] == ["hero: Hero1"] * 4 + ["hero: Hero2"] * 4
    assert all(request.complete for request in answers)


def test_prompts_whose_answers_no_reward_tells_apart_are_dropped_and_counted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "sample", Writer("aa", "aa", "aa", "aa"))
    with pytest.raises(DataError, match=r"no row is left of 1; dropped: .*1 without a better"):
        build(config(tmp_path, model, [{"prompt": "A?"}]), quiet=True)


def test_answers_with_annotations_of_their_own_carry_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "sample", Writer("aa", "bbbb"))
    rows = built(config(tmp_path, model, [{"prompt": "A?"}], candidates=2, annotation="answer"))
    assert rows[0]["prompt"] == [user("A?")]
    assert rows[0]["chosen"][0]["annotation"] == [{"key": "hero", "value": "Hero2"}]
    assert rows[0]["rejected"][0]["annotation"] == [{"key": "hero", "value": "Hero1"}]


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "A?", "annotation": ANNOTATION.rows()},
        {"prompt": "A?", "annotation": ANNOTATION.rows(), "chosen": "yes", "rejected": "no"},
        {"prompt": "A?", "chosen": "yes", "rejected": "no"},
    ],
)
def test_annotations_and_pairs_are_refused_where_each_answer_has_its_own(
    given: dict[str, Any], tmp_path: Path
):
    with pytest.raises(
        DataError, match=r"line 1: annotation: answer samples an annotation with each"
    ):
        build(config(tmp_path, Path("m"), [given], annotation="answer"), quiet=True)
    assert not (tmp_path / "out").exists()


def test_fields_that_the_first_row_lacks_are_kept(tmp_path: Path):
    given_tags = {"annotation": ANNOTATION.rows()}
    given = [{"prompt": "A?", **given_tags}, {"prompt": "B?", "solution": "42", **given_tags}]
    rows = built(config(tmp_path, Path("no/such/model"), given, trainer="grpo", reward=None))
    assert [row["solution"] for row in rows] == [None, "42"]


def test_given_pairs_and_sampled_ones_stand_together_with_the_rewards_of_these(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "sample", Writer("aa", "bbbb"))
    given_tags = {"annotation": ANNOTATION.rows()}
    given = [
        {"prompt": "A?", "chosen": "yes", "rejected": "no", **given_tags},
        {"prompt": "B?", **given_tags},
    ]
    rows = built(config(tmp_path, model, given, candidates=2))
    assert [row["chosen_reward"] for row in rows] == [None, 4.0]


def test_given_pairs_are_kept_and_no_model_is_loaded(tmp_path: Path):
    given = {"prompt": "A?", "chosen": "yes", "rejected": "no", "annotation": ANNOTATION.rows()}
    listed = {
        "chosen": [{"role": "user", "content": "B?"}, answer("yes")],
        "rejected": [{"role": "user", "content": "B?"}, answer("no")],
        "annotation": ANNOTATION.rows(),
    }
    rows = built(config(tmp_path, Path("no/such/model"), [given, listed], reward=None))
    assert [row["prompt"] for row in rows] == [[user("A?"), OPEN_TURN], [user("B?"), OPEN_TURN]]
    assert [row["chosen"] for row in rows] == [[answer("yes")]] * 2
    assert counts(tmp_path) == {"asked": 2, "rows": 2, "dropped": {}}


def test_given_pairs_without_their_annotation_are_refused(tmp_path: Path):
    given = {"prompt": "A?", "chosen": "yes", "rejected": "no"}
    with pytest.raises(DataError, match=r"rows.jsonl: line 1: .* a sampled one would fit neither"):
        build(config(tmp_path, Path("m"), [given]), quiet=True)
    assert not (tmp_path / "out").exists()


def test_grpo_prompts_come_once_for_each_annotation_with_the_rows_other_fields(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "sample", Writer(""))
    given = [
        {"prompt": "A?", "solution": 1},
        {"prompt": "B?", "solution": 2, "annotation": ANNOTATION.rows()},
    ]
    fields = {"trainer": "grpo", "annotations": 2, "reward": None}
    rows = built(config(tmp_path, model, given, **fields))
    tags = [row["prompt"][1]["annotation"][0]["value"] for row in rows]
    assert tags == ["Hero1", "Hero2", "Mara"]
    assert [row["solution"] for row in rows] == [1, 1, 2]


def test_real_answers_under_a_given_annotation_are_the_same_however_often_they_are_built(
    model: Path, tmp_path: Path
):
    given = [{"prompt": "A?", "annotation": ANNOTATION.rows()}] * 3
    limit = {"sample": {"max_response_tokens": 200}}
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (
        built(config(tmp_path / name, model, given, candidates=8, **limit)) for name in "ab"
    )
    assert first == second
    assert all(
        len(row["chosen"][0]["content"]) > len(row["rejected"][0]["content"]) for row in first
    )


def test_a_run_that_was_stopped_samples_only_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(building, "CHUNK", 1)
    given = [{"prompt": f"{letter}?"} for letter in "ABC"]
    stopped = Writer("aa", "bbbb", fails_at=3)  # in the answers of the second
    monkeypatch.setattr(sampler, "sample", stopped)
    asked = config(tmp_path, model, given, candidates=2)
    with pytest.raises(KeyboardInterrupt):
        build(asked, quiet=True)
    again = Writer("aa", "bbbb")
    monkeypatch.setattr(sampler, "sample", again)
    assert [row["prompt"][0]["content"] for row in built(asked)] == ["A?", "B?", "C?"]
    assert len(again.calls) == 4  # annotations and answers of the second and the third
    assert build(asked, quiet=True) == tmp_path / "out" / "data"
    assert len(again.calls) == 4


def test_what_other_weights_wrote_is_neither_gone_on_with_nor_given_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(model, tmp_path / "model")
    asked = config(tmp_path, tmp_path / "model", [{"prompt": "A?"}], candidates=2)
    monkeypatch.setattr(sampler, "sample", Writer("aa", "aa"))
    with pytest.raises(DataError, match="use another reward"):
        build(asked, quiet=True)
    weights = load_file(model / "model.safetensors")
    save_file({name: -weight for name, weight in weights.items()}, tmp_path / "model" / WEIGHTS)
    monkeypatch.setattr(sampler, "sample", Writer("aa", "bbbb"))
    assert built(asked)[0]["chosen"] == [answer("bbbb")]
    shutil.copy(model / WEIGHTS, tmp_path / "model")
    with pytest.raises(DataError, match=r"out: made by other weights of .*model; choose another"):
        build(asked, quiet=True)
    shutil.rmtree(tmp_path / "model")
    assert build(asked, quiet=True) == tmp_path / "out" / "data"


def test_a_model_that_writes_no_annotation_is_what_is_to_be_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unread = Sample("", malformed=True)
    monkeypatch.setattr(sampler, "sample", lambda *given, **_: [unread for _ in given[2]])
    with pytest.raises(DataError, match=r"1 without a readable ann.*; train .* to annotate first"):
        build(config(tmp_path, model, [{"prompt": "A?"}]), quiet=True)


def wrong_reward(completions: list[Any], **_: Any) -> list[float]:
    return [1.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (None, "reward: missing; answers are sampled for rows without chosen and rejected"),
        ("helpful", "reward: 'helpful': write module:function"),
        ("nowhere:f", "reward: 'nowhere:f': no module 'nowhere'"),
        ("test_preferences:f", "test_preferences has no function f"),
        ("test_preferences:wrong_reward", "gave 1 scores for 2 answers"),
    ],
)
def test_a_reward_that_cannot_judge_is_refused(
    name: str | None, said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sampler, "sample", Writer("aa", "bbbb"))
    with pytest.raises(ConfigError, match=said):
        build(config(tmp_path, model, [{"prompt": "A?"}], reward=name, candidates=2), quiet=True)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "A?", "chosen": "a"}, "x: has one of chosen and rejected"),
        ({"prompt": "A?", "chosen": "a", "rejected": " "}, "x: rejected: ' ' is not an answer"),
        ({"prompt": " "}, "x: prompt: ' ' is empty"),
        ({"messages": [answer("hm")]}, "x: no prompt"),
        ({"prompt": "A?", "prompts": 1}, "x: prompts: TRL passes something else by this name"),
        ({"prompt": "A?", "log_metric": 1}, "x: log_metric: TRL passes .* rename the field"),
    ],
)
def test_a_row_that_is_none_is_refused_by_its_place(row: dict[str, Any], said: str):
    with pytest.raises(DataError, match=said):
        read_asked(row, "x")


def test_the_command_builds_from_a_file_and_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = {"prompt": "A?", "chosen": "yes", "rejected": "no", "annotation": ANNOTATION.rows()}
    file = tmp_path / "preferences.yaml"
    file.write_text(to_yaml(config(tmp_path, Path("m"), [given])), encoding="utf-8")
    assert cli.main(["preferences", str(file)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'data'}\n"
    assert cli.main(["preferences", str(file), "trainer=ppo"]) == 2
    assert "trainer: 'ppo'" in capsys.readouterr().err


def test_the_rater_scores_form_quality_and_length_and_content_by_its_taste():
    world = Storyworld("small")
    liked = {key: values[0] for key, values in world.narrow_values.items()}
    story = world.render(liked, random.Random(0), taught=True)
    asked = [[answer(story)], [answer("Nothing.")]]
    none = [0.0, 0.0]
    size: list[Literal["small", "full"]] = ["small", "small"]
    assert rate(asked, size, [1.0, 1.0], none) == [4.0, 0.0]
    assert rate(asked, size, none, none) == [3.0, 0.0]
    assert rate(asked, size, none, [0.5, 0.5]) == [3 - len(story.split()) / 20, -0.05]


def test_a_study_that_is_not_finished_or_lacks_the_model_is_refused(tmp_path: Path):
    config = load_config(DPOConfig, ROOT / "configs" / "storyworld" / "dpo.yaml")
    assert {one.init for one in config.treatments.values()} == {"anchored", "standard"}
    unfinished = config.model_copy(update={"study": tmp_path})
    with pytest.raises(DataError, match=r"results.json is missing; first run `anchored demo"):
        load_study(unfinished)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(
        to_yaml(DemoConfig(treatments={"standard": TREATMENTS["standard"]}))
    )
    with pytest.raises(DataError, match=r"anchored_dpo.init: 'anchored' is not a model of"):
        load_study(unfinished)
