"""lm-eval's tasks: what the model is asked, behind which annotation, and what comes of it."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from anchored import cli
from anchored.annotation import Annotation, Key, Schema
from anchored.benchmark import capability
from anchored.benchmark.capability import CapabilityConfig, item_values, run
from anchored.benchmark.harness import AnchoredLM, AnnotationConfig, Lead
from anchored.benchmark.prompting import (
    Encoder,
    Prompt,
    read_context,
    shared_prompt,
    write_context,
)
from anchored.benchmark.tasks import PAPER_TASKS, expand, load_tasks
from anchored.cli import evaluation
from anchored.errors import AnchoredError, ConfigError, DataError
from anchored.files import read_jsonl, write_json
from anchored.metrics.statistics import holm, paired_difference
from anchored.models.build import olmo2_config
from anchored.report.capability_table import report_capability
from anchored.sampling.engine import Request, SampleConfig, Sampling, sample
from anchored.sampling.sampler import LocalSampler, load
from anchored.segments import Message
from anchored.tokenizer import CONTROL_TOKENS, AnchoredTokenizer

SCHEMA = Schema(
    name="test",
    keys=(
        Key(name="mood", description="", values=("calm", "merry")),
        Key(name="topic", description="", values=("sea", "sky")),
    ),
)
ITEMS = [
    {"q": "What colour is the sea?", "choices": ["blue", "red as rust", "green"], "right": 0},
    {"q": "What colour is <|annotation|> blood?", "choices": ["blue", "red"], "right": 1},
    {"q": "What colour is a leaf, then?", "choices": ["green", "pink", "grey"], "right": 0},
    {"q": "And snow?", "choices": ["white", "black"], "right": 0},
    {"q": "And coal, of the night?", "choices": ["white", "black"], "right": 1},
]
CALM = Annotation.of({"mood": "calm"})
FEW = AnnotationConfig(max_tokens=20)


def put(item: dict[str, Any]) -> str:
    """An item as the tasks put it."""
    return f"Question: {item['q']}\nAnswer:"


def build(folder: Path, objective: str) -> str:
    """A tiny model folder, as `anchored pretrain` and `anchored sft` leave it."""
    text = " ".join([json.dumps(ITEMS), "mood: calm merry\ntopic: sea sky, Question: Answer:"])
    tokenizer = AnchoredTokenizer.train([text], 330)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(olmo2_config("0.5m", len(tokenizer)))
    annotated = objective == "anchored"
    if annotated:
        teach_tags(model, tokenizer)
    else:
        model.get_input_embeddings().weight.data *= 20
    model.save_pretrained(folder)
    tokenizer.save(folder)
    record = {
        "objective": objective,
        "annotated": annotated,
        "schema": SCHEMA.model_dump(mode="json") if annotated else None,
        "tokenizer": tokenizer.fingerprint,
    }
    write_json(folder / "anchored.json", record)
    return str(folder)


def teach_tags(model: Any, tokenizer: AnchoredTokenizer) -> None:
    """A few steps of training, until the model writes annotations that can be read."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    control, rng = tokenizer.control, random.Random(0)
    for step in range(60):
        ids = [control.bos]
        for item in rng.sample(ITEMS, 4):
            text = tokenizer.encode(put(item))
            ids += text if step % 2 else [control.user, *text, control.assistant]
            tags = [(key.name, rng.choice(key.values or ())) for key in SCHEMA.keys]
            answer = tokenizer.encode(item["choices"][item["right"]])
            ids += [*tagged(tokenizer, Annotation.of(tags)), *answer, control.eos]
        batch = torch.tensor([ids])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    found = {name: build(root / name, name) for name in ("plain", "standard")}
    return {**found, "anchored": build(root / "anchored" / "model", "anchored")}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """A folder with a multiple-choice task and one whose answers are generated."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        "test_split": "test",
        "doc_to_text": "Question: {{q}}\nAnswer:",
        "metadata": {"version": 1},
    }
    mean = {"aggregation": "mean", "higher_is_better": True}
    colours = {
        "task": "colours",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
    }
    said = {
        "task": "said",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **mean}],
    }
    for task in (colours, said):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))
    return folder


def lm(source: LocalSampler, chat: bool = True, mode: Any = "none", **options: Any) -> AnchoredLM:
    lead = Lead(mode, options.pop("pinned", Annotation()), FEW)
    width = options.pop("width", len(source.tokenizer))
    made = AnchoredLM(source, chat, lead, width, **{"batch_size": 4, "seed": 0, **options})
    made.begin("task")
    return made


def ask(kind: Any, *pairs: tuple[int, str, Any]) -> list[Instance]:
    return [Instance(kind, {}, (ctx, rest), 0, ("task", doc, 1)) for doc, ctx, rest in pairs]


def choices(chat: bool) -> list[Instance]:
    """What lm-eval asks for `ITEMS`."""
    pairs = []
    for doc, item in enumerate(ITEMS):
        text = put(item)
        turns = [{"role": "user", "content": text}]
        context = write_context(turns, add_generation_prompt=True) if chat else text
        lead = "" if chat else " "
        pairs += [(doc, context, lead + choice) for choice in item["choices"]]
    return ask("loglikelihood", *pairs)


def by_hand(model: Any, context: list[int], target: list[int]) -> float:
    """One token at a time, in double precision."""
    total = 0.0
    for i, token in enumerate(target):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([context + target[:i]])).logits[0, -1]
        total += float(logits.double().log_softmax(-1)[token])
    return total


def tagged(tokenizer: AnchoredTokenizer, annotation: Annotation) -> list[int]:
    pieces = [i for _, text in annotation.pieces() for i in tokenizer.encode(text)]
    return [tokenizer.control.open, *pieces, tokenizer.control.close]


# --- likelihoods --------------------------------------------------------------------------------


def expected(
    source: LocalSampler, chat: bool, plans: dict[int, Annotation] | None = None
) -> list[float]:
    """Log-likelihoods of all choices of `ITEMS` by the definition of the two formats."""
    tokenizer, found = source.tokenizer, []
    control, encode = tokenizer.control, tokenizer.encode
    for doc, item in enumerate(ITEMS):
        text = put(item)
        context = [control.bos, *encode(text)]
        if chat:
            context = [control.bos, control.user, *encode(text), control.assistant]
        elif plans:
            context = [control.bos, *encode(f"{text} ")]
        if plans:
            context += tagged(tokenizer, plans[doc])
        lead = "" if chat or plans else " "
        targets = [encode(lead + choice) for choice in item["choices"]]
        found += [by_hand(source.model, context, target) for target in targets]
    return found


@pytest.mark.parametrize("chat", [True, False])
def test_likelihoods_without_annotation_are_those_computed_by_hand(models, chat):
    source = load(models["standard"])
    found = lm(source, chat).loglikelihood(choices(chat))
    assert [score for score, _ in found] == pytest.approx(expected(source, chat), rel=1e-5)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("mode", ["sampled", "given"])
def test_likelihoods_behind_an_annotation_are_those_computed_by_hand(models, chat, mode):
    source = load(models["anchored"])
    asked = lm(source, chat, mode, pinned=CALM if mode == "given" else Annotation())
    found = asked.loglikelihood(choices(chat))
    plans = {doc: annotation for doc, (annotation,) in asked.annotations.items()}
    assert plans.keys() == set(range(len(ITEMS)))
    assert (set(plans.values()) == {CALM}) == (mode == "given")
    assert [score for score, _ in found] == pytest.approx(expected(source, chat, plans), rel=1e-5)


def test_a_likelihood_says_whether_greedy_decoding_would_write_it(models):
    source = load(models["standard"])
    ids = [source.tokenizer.control.bos, *source.tokenizer.encode("And snow?")]
    likely = source.model(input_ids=torch.tensor([ids])).logits[0, -1].argsort(descending=True)
    best, worst = (source.tokenizer.decode([int(likely[place])]) for place in (0, -1))
    asked = ask("loglikelihood", *((0, "And snow?", text) for text in (best, worst)))
    found = lm(source, chat=False).loglikelihood(asked)
    assert [is_greedy for _, is_greedy in found] == [True, False]


def test_an_empty_continuation_has_likelihood_one(models):
    source = load(models["standard"])
    asked = ask("loglikelihood", (0, "And", ""), (1, "And snow?", ""), (2, "And", " coal"))
    found = lm(source, chat=False).loglikelihood(asked)
    assert found[:2] == [(0.0, True)] * 2
    encode, bos = source.tokenizer.encode, source.tokenizer.control.bos
    expected = by_hand(source.model, [bos, *encode("And")], encode(" coal"))
    assert found[2][0] == pytest.approx(expected, rel=1e-5)


def test_rows_that_agree_but_for_their_end_may_be_cut_at_different_places(models):
    source = load(models["standard"])
    encode, bos = source.tokenizer.encode, source.tokenizer.control.bos
    pairs = [("What colour is the", "?"), ("What colour is", " the,")]
    found = lm(source, chat=False).loglikelihood(
        ask("loglikelihood", *((i, *pair) for i, pair in enumerate(pairs)))
    )
    expected = [by_hand(source.model, [bos, *encode(a)], encode(b)) for a, b in pairs]
    assert encode("".join(pairs[0]))[:-1] == encode("".join(pairs[1]))[:-1]
    assert [score for score, _ in found] == pytest.approx(expected, rel=1e-5)


def test_logits_are_computed_only_where_a_row_of_the_batch_is_scored(models):
    source = load(models["standard"])
    places = []

    def counted(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        places.append(output.shape[1])

    handle = source.model.get_output_embeddings().register_forward_hook(counted)
    contexts = ["And snow?" * 9, "And snow" * 9, "And snow?"]
    asked = ask("loglikelihood", *((i, context, " white") for i, context in enumerate(contexts)))
    lm(source, chat=False, batch_size=2).loglikelihood(asked)
    handle.remove()
    lengths = [len(source.tokenizer.encode(context)) for context in contexts]
    scored = len(source.tokenizer.encode(" white"))
    assert places == [lengths[0] - lengths[1] + scored, scored]


def test_results_do_not_depend_on_the_batch_and_repeat_with_their_seed(models):
    source = load(models["anchored"])
    runs = {}
    for name, options in {
        "one": {"batch_size": 1}, "many": {"batch_size": 16}, "other": {"seed": 1},
    }.items():  # fmt: skip
        asked = lm(source, True, "sampled", **options)
        runs[name] = (asked.loglikelihood(choices(True)), asked.annotations)
    assert runs["one"][1] == runs["many"][1] != runs["other"][1]
    scores = [[score for score, _ in found] for found, _ in runs.values()]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0] != pytest.approx(scores[2], abs=1e-2)


def test_log_probabilities_of_a_half_precision_model_are_taken_in_float32(models):
    source = load(models["standard"], dtype="bfloat16")
    found = lm(source, chat=False, batch_size=1).loglikelihood(choices(False)[:1])
    encode, bos = source.tokenizer.encode, source.tokenizer.control.bos
    target = encode(" " + ITEMS[0]["choices"][0])
    context = [bos, *encode(put(ITEMS[0]))]
    with torch.no_grad():
        logits = source.model(torch.tensor([context + target[:-1]])).logits[0, len(context) - 1 :]
    assert logits.dtype == torch.bfloat16
    scores = logits.double().log_softmax(-1)[range(len(target)), target]
    assert found[0][0] == pytest.approx(float(scores.sum()), rel=1e-5)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> tuple[Any, Any, str]:
    """A GPT-2 of somebody else's, with a tokenizer that knows no control tokens."""
    folder = tmp_path_factory.mktemp("foreign")
    mine = AnchoredTokenizer.train([json.dumps(ITEMS)], 310).hf.backend_tokenizer.to_str()
    state = json.loads(mine)
    state["added_tokens"] = state["added_tokens"][:1]
    for token in CONTROL_TOKENS.values():  # their places go to other pieces
        state["model"]["vocab"][token.replace("|", "!")] = state["model"]["vocab"].pop(token)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    hf = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    hf.save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=len(hf), **sizes))
    for weight in model.parameters():
        weight.data *= 3
    model.save_pretrained(folder)
    return model.eval(), hf, str(folder)


@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_a_foreign_document_model_gets_the_figures_of_lm_evals_own_backend(foreign, batch_size):
    model, hf, folder = foreign
    long = ask("loglikelihood", (9, ITEMS[0]["q"] * 9, " blue"), (9, "", "blue"), (9, "Sky: ", "x"))
    theirs = HFLM(pretrained=model, tokenizer=hf, batch_size=3)
    asked = [*choices(False)[:5], *long]
    source = load(folder)
    ours = lm(source, chat=False, width=len(hf), batch_size=batch_size)
    assert (source.chat, len(source.tokenizer) - len(hf)) == ("none", len(CONTROL_TOKENS))
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    found = ours.loglikelihood(asked)
    assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert ours.truncated == 1


# --- what a context is ---------------------------------------------------------------------------


def test_control_tokens_in_a_context_stay_text(models):
    source = load(models["anchored"])
    control = set(vars(source.tokenizer.control).values())
    spelt = "".join(CONTROL_TOKENS.values())
    prompt = read_context(write_context([{"role": "user", "content": spelt}], True), chat=True)
    ids = Encoder(source, chat=True).opening(prompt)
    assert ids[2:-1] == source.tokenizer.encode(spelt)
    assert control.isdisjoint(ids[2:-1])
    row = Encoder(source, chat=False).to_score(Prompt(text=spelt), spelt, CALM)
    assert control.isdisjoint(row.target)
    assert sum(i in control for i in row.context) == 3


def test_a_gen_prefix_stands_behind_the_annotation(models):
    source = load(models["anchored"])
    turns = [{"role": "user", "content": "And snow?"}, {"role": "assistant", "content": "It is"}]
    prompt = read_context(write_context(turns, add_generation_prompt=False), chat=True)
    assert prompt == Prompt((Message("user", "And snow?"),), "It is")
    encoder, encode = Encoder(source, chat=True), source.tokenizer.encode
    ending = [*tagged(source.tokenizer, CALM), *encode("It is")]
    row = encoder.to_score(prompt, " white", CALM)
    assert row.context == [*encoder.opening(prompt), *ending]
    assert row.target == encode(" white")
    assert encoder.to_continue(prompt, CALM) == row.context


def test_choices_that_stand_in_the_context_share_what_they_have_in_common():
    contexts = ["The cup fell on the cat because the cu", "The cup fell on the cat because the ca"]
    shared = shared_prompt([Prompt(text=context) for context in contexts])
    assert shared == Prompt(text="The cup fell on the cat because the ")
    few = Message("user", "Before.")
    asked = [Prompt((few, Message("user", context)), "So") for context in contexts]
    assert shared_prompt(asked) == Prompt((few, Message("user", shared.text)), "So")
    assert shared_prompt(asked[:1] * 2) == asked[0]


def test_choices_in_the_context_stand_behind_one_annotation(models):
    source = load(models["anchored"])
    asked = lm(source, False, "sampled")
    contexts = ["The cup is red because the sun", "The cup is red because the sky"]
    found = asked.loglikelihood(ask("loglikelihood", *((0, c, " is red") for c in contexts)))
    (annotation,) = asked.annotations[0]
    encode = source.tokenizer.encode
    rows = [
        [source.tokenizer.control.bos, *encode(f"{c} "), *tagged(source.tokenizer, annotation)]
        for c in contexts
    ]
    by = [by_hand(source.model, context, encode("is red")) for context in rows]
    assert [score for score, _ in found] == pytest.approx(by, rel=1e-5)


# --- generated answers --------------------------------------------------------------------------


def prompts(greedy: bool = True, **more: Any) -> list[Instance]:
    options = {"until": ["zzz"], "max_gen_toks": 10, "do_sample": not greedy, **more}
    turns = [[{"role": "user", "content": put(item)}] for item in ITEMS]
    contexts = [write_context(turn, True) for turn in turns]
    return ask("generate_until", *((doc, ctx, options) for doc, ctx in enumerate(contexts)))


@pytest.mark.parametrize("name", ["standard", "anchored"])
def test_greedy_answers_are_the_samplers(models, name):
    source = load(models[name])
    pinned = Annotation.of({"mood": "merry"})
    annotated = name == "anchored"
    asked = lm(source, True, "given" if annotated else "none", pinned=pinned)
    requests = [
        Request((Message("user", put(item)),), annotated, pinned, complete=True) for item in ITEMS
    ]
    config = SampleConfig(response=Sampling(temperature=0), max_response_tokens=10)
    answers = sample(source.model, source.tokenizer, requests, config, source.schema)
    found = asked.generate_until(prompts())
    assert found == [answer.response for answer in answers]
    assert len(set(found)) > int(name == "standard")


def test_an_answer_ends_before_the_first_of_the_tasks_stops(models):
    source = load(models["standard"])
    whole = lm(source).generate_until(prompts())
    first, second = whole[0][4:6], whole[0][2:4]
    found = lm(source).generate_until(prompts(until=[first, second]))
    assert found[0] == whole[0][: min(whole[0].find(first), whole[0].find(second))]
    assert len(found[0]) <= 2


def test_sampled_answers_repeat_with_their_seed_and_differ_between_repeats(models):
    source = load(models["anchored"])
    twice = [request for request in prompts(greedy=False, temperature=1.0) for _ in range(2)]
    runs = [lm(source, mode="sampled", seed=seed) for seed in (0, 0, 1)]
    found = [asked.generate_until(twice) for asked in runs]
    assert found[0] == found[1] != found[2]
    assert any(a != b for a, b in zip(found[0][::2], found[0][1::2], strict=True))
    assert all(len(drawn) == 2 for drawn in runs[0].annotations.values())
    assert any(a != b for a, b in runs[0].annotations.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "task task: generation_kwargs.num_beams = 4 is not supported"),
        ({"max_gen_toks": 5000}, "generation_kwargs.max_gen_toks takes 5000 tokens"),
        ({"do_sample": True, "temperature": -1}, "generation_kwargs: temperature: -1"),
    ],
)
def test_ways_of_decoding_that_cannot_be_honoured_are_refused(models, options, message):
    with pytest.raises(ConfigError, match=message):
        lm(load(models["standard"])).generate_until(prompts(**options))


def test_a_continuation_longer_than_the_model_reads_is_refused(foreign):
    asked = ask("loglikelihood", (0, "x", " blue" * 60))
    with pytest.raises(DataError, match=r"a continuation has .* reads at most 48"):
        lm(load(foreign[2]), chat=False).loglikelihood(asked)


# --- runs ---------------------------------------------------------------------------------------


def config(models: dict[str, str], tasks: Path, **options: Any) -> CapabilityConfig:
    return CapabilityConfig(
        models=(models["standard"], models["anchored"]),
        tasks=("colours", "said"),
        include_path=str(tasks),
        annotations=FEW,
        **options,
    )


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def done(models, tasks, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "out"
    results = run(config(models, tasks), out, quiet())
    report_capability(results, out, quiet())
    return out, results


def test_results_hold_lm_evals_figures_and_what_they_rest_on(done):
    out, results = done
    assert json.loads((out / "results.json").read_text()) == results
    assert list(results["models"]) == ["standard", "anchored"]
    for name, model in results["models"].items():
        rows = [row for _, row in read_jsonl(out / name / "colours" / "samples.jsonl")]
        accuracy = sum(row["acc"] for row in rows) / len(ITEMS)
        error = (accuracy * (1 - accuracy) / (len(ITEMS) - 1)) ** 0.5
        assert model["capability"]["colours"]["acc"] == pytest.approx(accuracy)
        assert model["capability"]["colours"]["acc_stderr"] == pytest.approx(error)
        assert "exact_match" in model["capability"]["said"]
    standard, anchored = results["models"].values()
    assert (standard["format"], standard["annotation"]) == ("chat", "none")
    assert (anchored["format"], anchored["annotation"]) == ("chat", "sampled")
    task = results["tasks"]["colours"]
    assert (task["version"], task["items"], task["headline"]) == (1, 5, "acc_norm")
    assert len(task["hash"]) == 64
    assert results["versions"]["lm_eval"]
    assert "| colours | acc_norm |" in (out / "table.md").read_text()


def test_answers_are_logged_with_the_annotations_before_them(done):
    out, _ = done
    for task in ("colours", "said"):
        rows = [row for _, row in read_jsonl(out / "anchored" / task / "samples.jsonl")]
        found = [Annotation.from_rows(row["annotations"][0]) for row in rows]
        assert len(found) == len(ITEMS)
        assert any(annotation.tags for annotation in found)
    rows = [row for _, row in read_jsonl(out / "standard" / "said" / "samples.jsonl")]
    assert {row["annotations"] for row in rows} == {None}


def test_models_are_compared_item_by_item_with_holms_correction(done):
    out, results = done
    found = results["comparisons"]["anchored"]["against"]["standard"]
    flat = [one for metrics in found.values() for one in metrics.values()]
    assert {task: sorted(metrics) for task, metrics in found.items()} == {
        "colours": ["acc", "acc_norm"],
        "said": ["exact_match"],
    }
    assert [one["p_holm"] for one in flat] == holm([one["p"] for one in flat])
    ours, theirs = (item_values(out / name / "colours") for name in ("anchored", "standard"))
    items = list(ours["acc"])
    values = [[side["acc"][item] for item in items] for side in (ours, theirs)]
    expected = paired_difference(*values).as_json()
    assert {**expected, "p_holm": found["colours"]["acc"]["p_holm"]} == found["colours"]["acc"]


def test_a_run_that_was_stopped_goes_on_where_it_was(models, tasks, done, tmp_path, monkeypatch):
    asked = []
    real = capability.evaluate_task

    def counted(lm: AnchoredLM, task: Any, **options: Any) -> Any:
        asked.append((lm.source.name, task.task_name))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(lm, task, **options)

    monkeypatch.setattr(capability, "evaluate_task", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(config(models, tasks), out, quiet())
    assert not (out / "results.json").exists()
    results = run(config(models, tasks), out, quiet())
    names = [(models[m], task) for m in ("standard", "anchored") for task in ("colours", "said")]
    assert asked == [*names[:3], *names[2:]]
    assert results == done[1]
    again = run(config(models, tasks), out, quiet())
    assert (len(asked), again) == (5, results)


def test_kept_results_of_other_weights_are_refused(models, tasks, tmp_path):
    folder = tmp_path / "copy"
    build(folder, "standard")
    settings = CapabilityConfig(models=(str(folder),), tasks=(str(tasks / "said.yaml"),), limit=2)
    run(settings, tmp_path / "out", quiet())
    build(folder, "standard")
    with pytest.raises(DataError, match=r"the weights of .* have changed since"):
        run(settings, tmp_path / "out", quiet())


def test_a_format_follows_from_what_the_model_was_trained_on(models, foreign):
    def chat(name: str, wanted: Any = "auto") -> bool:
        settings = CapabilityConfig(models=("m",), tasks=("t",), format=wanted)
        return capability._is_chat(load(name), settings)

    assert [chat(models[name]) for name in models] == [False, True, True]
    assert chat(models["plain"], "chat")
    assert not chat(models["anchored"], "document")
    assert not chat(foreign[2])
    with pytest.raises(ConfigError, match="has no chat format; use --format auto or document"):
        chat(foreign[2], "chat")


def test_precision_and_place_of_the_weights_are_as_told(models, tasks, tmp_path, monkeypatch):
    loaded = {}

    def kept(*arguments: Any) -> LocalSampler:
        loaded[arguments] = load(*arguments)
        return loaded[arguments]

    monkeypatch.setattr(capability, "load", kept)
    arguments = [models["anchored"], "--task", str(tasks / "said.yaml"), "--limit", "2"]
    options = ["--dtype", "bfloat16", "--device-map", "cpu", "--batch-size", "auto"]
    assert cli.main(["capability", *arguments, *options, "--out", str(tmp_path / "out")]) == 0
    (told,) = loaded
    assert told == (models["anchored"], "bfloat16", "cpu")
    assert loaded[told].model.dtype == torch.bfloat16
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["batch_size"] == "auto"


def test_models_are_named_by_what_tells_their_paths_apart():
    named = capability._named
    assert list(named(["runs/a/model", "org/b"])) == ["a", "b"]
    assert list(named(["runs/0/a/model", "runs/1/a/model"])) == ["0-a", "1-a"]
    with pytest.raises(ConfigError, match="is given twice"):
        named(["a", "a"])


# --- what is refused ----------------------------------------------------------------------------


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["capability", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_data_that_cannot_be_had_is_one_line_and_leaves_nothing(models, tmp_path, capsys):
    out = tmp_path / "out"
    line = refused([models["standard"], "--task", "boolq", "--out", str(out)], capsys)
    assert "task 'boolq': could not be loaded: ConnectionError" in line
    assert "loads a task's data from the hub" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--annotation", "given"], "no tags are given; add --pin key=value"),
        (["--annotation", "none", "--pin", "mood=calm"], "annotation none has no tags to pin"),
        (["--pin", "mood=calm"], "was trained with annotations, so none follows tags"),
        (["--include-path", "nowhere"], "--include-path nowhere: no such folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(models, tasks, tmp_path, capsys, more, message):
    task = ["--task", str(tasks / "said.yaml"), "--out", str(tmp_path / "out")]
    assert message in refused([models["standard"], *task, *more], capsys)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_refused(tasks, tmp_path, capsys):
    task = ["--task", str(tasks / "said.yaml"), "--out", str(tmp_path / "out")]
    line = refused([str(tmp_path / "gone" / "model"), *task], capsys)
    assert "gone/model': no such folder" in line


def test_an_unknown_task_is_named_with_a_way_to_find_others(monkeypatch):
    only = TaskManager(include_defaults=False)
    monkeypatch.setattr("anchored.benchmark.tasks.TaskManager", lambda **options: only)
    with pytest.raises(ConfigError, match=r"task 'boolk': unknown to lm-eval.*lm-eval ls tasks"):
        load_tasks(["boolk"])


def test_tasks_of_a_kind_that_is_not_offered_are_refused(tasks, tmp_path):
    task = yaml.safe_load((tasks / "said.yaml").read_text())
    task |= {"output_type": "loglikelihood_rolling", "task": "rolling"}
    task["metric_list"] = [{"metric": "word_perplexity"}]
    (tmp_path / "rolling.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(ConfigError, match="output_type loglikelihood_rolling is not one of"):
        load_tasks(["rolling"], tmp_path)


def test_the_papers_tasks_have_one_name():
    assert expand(["paper-zero-shot", "gsm8k", "piqa"]) == [*PAPER_TASKS, "gsm8k"]
    assert len(PAPER_TASKS) == 9


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "anchored.benchmark.capability", None)
    with pytest.raises(AnchoredError) as error:
        evaluation._run_capability(SimpleNamespace())
    assert "pip install 'anchored[lm-eval]'" in str(error.value)
