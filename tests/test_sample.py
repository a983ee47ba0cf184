"""Annotation, then response: with scripted logits for exact facts, with tiny real models for the
cache, and with `generate` as the oracle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from anchored.annotation import Annotation, Key, Schema
from anchored.errors import ConfigError, DataError
from anchored.models.build import olmo2_config
from anchored.sampling import decode as decode_module
from anchored.sampling.engine import Request, Sample, SampleConfig, Sampling, sample
from anchored.segments import Message
from anchored.tokenizer import AnchoredTokenizer
from conftest import line_breaks_lost

Script = Callable[[list[int]], dict[int, float] | torch.Tensor]
TEXTS = [
    "topic: sea\nmood: calm\nplace: harbour\nstyle: plain",
    "place: forest\ntopic: rain\nmood: merry",
    "Tell me a story. The sea was calm. Then it rained at the harbour <|annotation|>",
]
USER = (Message("user", "Tell me"),)
SEA = Annotation.of({"topic": "sea", "mood": "calm"})
SCHEMA = Schema(
    name="test",
    keys=(
        Key(name="topic", description="", many=True),
        Key(name="mood", description="", values=("calm", "merry")),
        Key(name="place", description=""),
        Key(name="style", description="", anchored=False),
    ),
)
ANCHORED = Schema(name="anchored", keys=SCHEMA.keys[:3])


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(TEXTS * 4, 330)


class Scripted:
    """Calls `script` with each sequence's ids so far; what it returns are the next token's logits.

    The ids live in the cache that the decoding loop hands in, as keys of one layer: a cache that is
    cut or reordered wrongly shows at once. Ids that a script does not name get -20.
    """

    device = torch.device("cpu")

    def __init__(self, tokenizer: AnchoredTokenizer, script: Script, spare: int = 0) -> None:
        self.config = olmo2_config("0.5m", len(tokenizer) + spare)
        self.script = script
        self.seen: list[list[int]] = []
        self.widths: list[int] = []

    def eval(self) -> None:
        pass

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: DynamicCache,
        **_: object,
    ) -> SimpleNamespace:
        states = input_ids[:, None, :, None].float()
        keys = past_key_values.update(states, states, 0)[0]
        rows = keys[:, 0, :, 0].long()
        assert rows.shape == attention_mask.shape
        self.widths.append(len(rows))
        logits = torch.full((len(rows), 1, self.config.vocab_size), -20.0)
        for b, (row, mask) in enumerate(zip(rows, attention_mask, strict=True)):
            ids = row[mask.bool()].tolist()
            assert position_ids[b, -1] == len(ids) - 1
            self.seen.append(ids)
            wanted = self.script(ids)
            if isinstance(wanted, torch.Tensor):
                logits[b, 0] = wanted
            else:
                for token, logit in wanted.items():
                    logits[b, 0, token] = logit
        return SimpleNamespace(logits=logits)


def scripted(tokenizer: AnchoredTokenizer, script: Script, spare: int = 0) -> Any:
    """Passed where a `PreTrainedModel` is wanted; it is not asked without a cache."""
    model: Any = Scripted(tokenizer, script, spare)
    decode_module._decodable.add(model)
    return model


def encoded(tokenizer: AnchoredTokenizer, annotation: Annotation) -> list[int]:
    return [i for _, text in annotation.pieces() for i in tokenizer.encode(text)]


def after(ids: Sequence[int], *markers: int) -> list[int] | None:
    """What stands behind the last of `markers`, if one is there."""
    places = [place for place, i in enumerate(ids) if i in markers]
    return list(ids[places[-1] + 1 :]) if places else None


def writes(
    tokenizer: AnchoredTokenizer, annotation: Annotation | Sequence[int] = SEA, text: str = " Rain."
) -> Script:
    """Writes this annotation where one is open, and this text (then eos) where none is."""
    control = tokenizer.control
    tags = encoded(tokenizer, annotation) if isinstance(annotation, Annotation) else annotation
    plan, answer = [*tags, control.close], [*tokenizer.encode(text), control.eos]

    def script(ids: list[int]) -> dict[int, float]:
        start = max(place for place, i in enumerate(ids) if i in (control.open, control.assistant))
        done = after(ids, control.open, control.close) or []
        if ids[start] == control.open and control.close not in ids[start:]:
            return {plan[min(len(done), len(plan) - 1)]: 20.0}
        done = after(ids, control.assistant, control.close) or []
        return {answer[min(len(done), len(answer) - 1)]: 20.0}

    return script


def one(model: Any, tokenizer: AnchoredTokenizer, request: Request, **options: Any) -> Sample:
    schema = options.pop("schema", None)
    return sample(model, tokenizer, [request], SampleConfig(**options), schema)[0]


def spied(monkeypatch) -> list[torch.Tensor]:
    """The scores (B, V) of every step, as they are drawn from."""
    seen: list[torch.Tensor] = []
    draw = decode_module.draw

    def spy(scores: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        seen.append(scores.clone())
        return draw(scores, uniforms)

    monkeypatch.setattr(decode_module, "draw", spy)
    return seen


# --- the two parts ------------------------------------------------------------------------------


def test_annotation_then_response_in_one_pass(tokenizer):
    model = scripted(tokenizer, writes(tokenizer))
    assert one(model, tokenizer, Request(USER, annotated=True)) == Sample(" Rain.", SEA)


def test_opening_token_is_put_by_the_sampler_behind_the_conversation(tokenizer):
    control = tokenizer.control
    model = scripted(tokenizer, writes(tokenizer))
    one(model, tokenizer, Request(USER, annotated=True))
    prompt = [control.bos, control.user, *tokenizer.encode("Tell me"), control.assistant]
    assert model.seen[0] == [*prompt, control.open]
    model = scripted(tokenizer, writes(tokenizer))
    one(model, tokenizer, Request(USER))
    assert model.seen[0] == prompt


def test_without_messages_a_document_begins(tokenizer):
    control = tokenizer.control
    model = scripted(tokenizer, lambda ids: {control.eos: 20.0})
    assert one(model, tokenizer, Request(prefill="The sea")).response == "The sea"
    assert model.seen[0] == [control.bos]


def test_ids_can_be_given_in_place_of_messages(tokenizer):
    control = tokenizer.control
    model = scripted(tokenizer, lambda ids: {control.eos: 20.0})
    one(model, tokenizer, Request(USER, prefix=(7, 8, 9)))
    assert model.seen[0] == [7, 8, 9]


def test_each_part_has_its_own_sampling(tokenizer, monkeypatch):
    control, (x, y, z) = tokenizer.control, tokenizer.encode("x") + tokenizer.encode("yz")
    scores = spied(monkeypatch)

    def script(ids: list[int]) -> torch.Tensor:
        logits = torch.full((len(tokenizer),), -torch.inf)
        logits[[x, y, z, control.close, control.eos]] = torch.tensor(
            [0.4, 0.3, 0.2, 0.1, 0.1]
        ).log()
        return logits

    one(
        scripted(tokenizer, script),
        tokenizer,
        Request(USER, annotated=True),
        annotation=Sampling(temperature=2.0),
        response=Sampling(min_p=0.6),
        max_annotation_tokens=1,
        retries=0,
    )
    expected = torch.full((len(tokenizer),), -torch.inf)
    expected[[x, y, z, control.close]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log() / 2
    torch.testing.assert_close(scores[0][0], expected)
    scores.clear()
    one(
        scripted(tokenizer, script),
        tokenizer,
        Request(USER),
        annotation=Sampling(temperature=2.0),
        response=Sampling(min_p=0.6),
        max_response_tokens=1,
    )
    expected = torch.full((len(tokenizer),), -torch.inf)
    expected[[x, y]] = torch.tensor([0.4, 0.3]).log()
    torch.testing.assert_close(scores[0][0], expected)


def test_in_one_batch_each_sequence_has_the_sampling_of_its_part(tokenizer, monkeypatch):
    scores = spied(monkeypatch)
    torch.manual_seed(0)
    noise = torch.randn(len(tokenizer))
    sample(
        scripted(tokenizer, lambda ids: noise),
        tokenizer,
        [Request(USER), Request(USER, annotated=True)],
        SampleConfig(response=Sampling(temperature=0), max_response_tokens=1, retries=0),
    )
    assert scores[0].isfinite().sum(-1).tolist() == [1, len(tokenizer) - 5]


def test_temperature_0_is_greedy_in_its_own_part_alone(tokenizer):
    torch.manual_seed(0)
    control, noise = tokenizer.control, torch.randn(len(tokenizer))

    def script(ids: list[int]) -> torch.Tensor:
        logits = noise.clone()
        logits[control.close] = 20 if len(after(ids, control.open) or []) >= 4 else -20
        return logits

    config = SampleConfig(
        annotation=Sampling(temperature=0), response=Sampling(), max_response_tokens=8, retries=0
    )
    model = scripted(tokenizer, script)
    sample(model, tokenizer, [Request(USER, annotated=True)] * 6, config)
    full = [ids for ids in model.seen if len(ids) == max(map(len, model.seen))]
    plans = {tuple(after(ids[: ids.index(control.close)], control.open) or ()) for ids in full}
    answers = {tuple(after(ids, control.close) or ()) for ids in full}
    barred = noise.clone()
    barred[list(set(vars(control).values()))] = -torch.inf
    assert plans == {(int(barred.argmax()),) * 4}
    assert len(answers) == len(full) > 1


# --- control tokens -----------------------------------------------------------------------------


@pytest.mark.parametrize("annotated", [False, True])
def test_control_tokens_are_never_sampled_however_likely(tokenizer, annotated, monkeypatch):
    control = tokenizer.control
    scores = spied(monkeypatch)

    def script(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(tokenizer))
        logits[list(vars(control).values())] = 50.0
        logits[[control.eos, control.close]] = -50.0
        return logits

    model = scripted(tokenizer, script)
    options = {"max_annotation_tokens": 40, "max_response_tokens": 40, "retries": 0}
    one(model, tokenizer, Request(USER, annotated=annotated), **options)
    ends = control.close if annotated else control.eos
    assert len(scores) == 40
    assert all(
        [i for i in set(vars(control).values()) if step[0, i].isfinite()] == [ends]
        for step in scores
    )


def test_ids_beyond_the_tokenizer_are_never_sampled(tokenizer):
    logits = torch.zeros(len(tokenizer) + 64)
    logits[len(tokenizer) :] = 50.0
    model = scripted(tokenizer, lambda ids: logits, spare=64)
    one(model, tokenizer, Request(USER), max_response_tokens=50)
    assert max(max(ids) for ids in model.seen) < len(tokenizer)


def test_control_tokens_spelt_out_in_response_prefill_and_prompt_stay_text(tokenizer):
    spelt = " <|annotation|>mood: merry<|/annotation|><|endoftext|> so"
    model = scripted(tokenizer, writes(tokenizer, text="<|user|>" + spelt))
    request = Request((Message("user", spelt),), annotated=True, prefill="<|user|>")
    assert one(model, tokenizer, request) == Sample("<|user|>" + spelt, SEA)
    assert model.seen[0].count(tokenizer.control.open) == 1


# --- pinned, complete, plan only, prefill -------------------------------------------------------


def test_prefill_comes_after_the_annotation_and_in_the_response(tokenizer):
    control = tokenizer.control
    model = scripted(tokenizer, writes(tokenizer, text="The sea was calm."))
    result = one(model, tokenizer, Request(USER, annotated=True, prefill="The sea"))
    assert result == Sample("The sea was calm.", SEA)
    forced = tokenizer.encode("The sea")
    answers = [after(ids, control.close) for ids in model.seen if control.close in ids]
    assert answers[: len(forced) + 1] == [forced[:n] for n in range(len(forced) + 1)]


def test_prefill_is_forced_against_the_models_wish(tokenizer):
    model = scripted(tokenizer, lambda ids: {tokenizer.control.eos: 20.0})
    assert one(model, tokenizer, Request(USER, prefill="The sea")).response == "The sea"


def test_prefill_is_not_counted_as_response(tokenizer):
    torch.manual_seed(0)
    logits = torch.zeros(len(tokenizer))
    logits[tokenizer.control.eos] = -50
    model = scripted(tokenizer, lambda ids: logits)
    prefill = tokenizer.encode("The sea was calm.")
    options = {"max_response_tokens": 5}
    result = one(model, tokenizer, Request(USER, prefill="The sea was calm."), **options)
    assert len(model.seen) == len(prefill) + 5
    assert not result.finished


def test_annotation_only_ends_after_the_annotation(tokenizer):
    model = scripted(tokenizer, writes(tokenizer))
    result = one(model, tokenizer, Request(USER, annotated=True, annotation_only=True))
    assert result == Sample("", SEA)


def test_complete_annotation_is_taken_as_it_is(tokenizer):
    control = tokenizer.control
    model = scripted(tokenizer, writes(tokenizer))
    result = one(model, tokenizer, Request(USER, annotated=True, pinned=SEA, complete=True))
    assert result == Sample(" Rain.", SEA)
    assert after(model.seen[0], control.open) == [*encoded(tokenizer, SEA), control.close]


def test_pinned_tags_come_first_and_appear_in_the_result(tokenizer):
    pinned = Annotation.of({"topic": "sea"})
    model = scripted(tokenizer, writes(tokenizer))
    result = one(model, tokenizer, Request(USER, annotated=True, pinned=pinned))
    assert result == Sample(" Rain.", SEA)
    assert after(model.seen[0], tokenizer.control.open) == encoded(tokenizer, pinned)


@pytest.mark.parametrize("schema", [None, ANCHORED, SCHEMA])
def test_a_pinned_value_is_not_continued(tokenizer, schema):
    pinned = Annotation.of({"place": "harbour"})
    longer = Annotation.of({"place": "harbour forest", "mood": "calm"})
    model = scripted(tokenizer, writes(tokenizer, longer))
    results = sample(
        model,
        tokenizer,
        [Request(USER, annotated=True, pinned=pinned, annotation_only=True)] * 20,
        SampleConfig(retries=0),
        schema,
    )
    read = [result.annotation for result in results if result.annotation is not None]
    assert read
    assert {annotation.tags[0] for annotation in read} == {*pinned}


# --- tokenizers that are not byte-level -----------------------------------------------------------

SPECIAL = ["<unk>", "<s>", "</s>"]


def adopted(backend: Any) -> AnchoredTokenizer:
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return AnchoredTokenizer.adopt(PreTrainedTokenizerFast(tokenizer_object=backend, **names))


def metaspace(model: Any, trainer: Any) -> AnchoredTokenizer:
    backend: Any = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.train_from_iterator(TEXTS * 4, trainer)
    return adopted(backend)


def unigram() -> AnchoredTokenizer:
    settings: Any = {"special_tokens": SPECIAL, "unk_token": "<unk>", "show_progress": False}
    return metaspace(models.Unigram(), trainers.UnigramTrainer(vocab_size=80, **settings))


def bpe_without_bytes() -> AnchoredTokenizer:
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=SPECIAL, show_progress=False)
    return metaspace(models.BPE(unk_token="<unk>"), trainer)


def bpe_with_bytes() -> AnchoredTokenizer:
    """As Llama 2 has it: the marker is put by a normalizer, before a space too."""
    words = [
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *{*"".join(TEXTS)} - {*" \n"},
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend: Any = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    marked = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(marked)
    plain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*plain, decoders.Strip(" ", 1, 0)])
    return adopted(backend)


@pytest.fixture(scope="module", params=[None, unigram, bpe_without_bytes, bpe_with_bytes])
def any_tokenizer(request, tokenizer) -> AnchoredTokenizer:
    return request.param() if request.param else tokenizer


THREE = Annotation.of({"topic": "calm sea", "mood": "calm", "place": "harbour"})


@pytest.mark.parametrize("schema", [None, ANCHORED, SCHEMA])
@pytest.mark.parametrize("given", range(4))
def test_an_annotation_comes_back_from_its_ids_whatever_the_tokenizer(any_tokenizer, schema, given):
    """Sampled in part or as a whole, with keys free or constrained."""
    model = scripted(any_tokenizer, writes(any_tokenizer, THREE, "The sea."))
    request = Request(USER, annotated=True, pinned=Annotation(THREE.tags[:given]))
    result = one(model, any_tokenizer, request, schema=schema, retries=0)
    assert result == Sample("The sea.", THREE)


def test_behind_pinned_tags_the_tokenizers_own_lead_to_a_line_break_may_come(monkeypatch):
    tokenizer = bpe_with_bytes()
    lead, line_break = tokenizer.encode("\ntopic:")[:2]
    scores = spied(monkeypatch)
    model = scripted(tokenizer, lambda ids: {lead: 20.0})
    pinned = Request(USER, annotated=True, pinned=Annotation(THREE.tags[:1]))
    one(model, tokenizer, pinned, retries=0)
    first, second = (set(step[0].isfinite().nonzero()[:, 0].tolist()) for step in scores[:2])
    assert first == {lead, line_break, tokenizer.control.close}
    assert second == {line_break, tokenizer.control.close}


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_a_tokenizer_that_loses_line_breaks_is_refused_where_annotations_are_sampled(schema):
    lossy = AnchoredTokenizer.adopt(line_breaks_lost())
    model = scripted(lossy, writes(lossy, [], "sea"))
    with pytest.raises(ConfigError, match="annotations do not survive encoding and decoding"):
        one(model, lossy, Request(USER, annotated=True), schema=schema)
    assert one(model, lossy, Request(USER), schema=schema).response == "sea"


# --- malformed annotations and limits -----------------------------------------------------------


def test_malformed_annotations_are_retried_so_often_and_counted(tokenizer):
    model = scripted(tokenizer, writes(tokenizer, tokenizer.encode("no tag")))
    done: list[int] = []
    requests = [Request(USER, annotated=True), Request(USER)]
    results = sample(model, tokenizer, requests, SampleConfig(retries=2), progress=done.append)
    assert results == [Sample(" Rain.", None, malformed=True, attempts=3), Sample(" Rain.")]
    assert done == [1, 0, 1]


def test_a_retry_draws_anew_and_leaves_the_others_alone(tokenizer):
    legal, illegal = encoded(tokenizer, SEA)[0], tokenizer.encode("\n")[0]

    def script(ids: list[int]) -> dict[int, float] | torch.Tensor:
        done = after(ids, tokenizer.control.open)
        if done == []:
            return {legal: 0.0, illegal: 0.0}
        return writes(tokenizer)(ids)

    requests = [Request(USER, annotated=True)] * 60
    model = scripted(tokenizer, script)
    first = sample(model, tokenizer, requests, SampleConfig(retries=0))
    results = sample(model, tokenizer, requests, SampleConfig(retries=30))
    assert 15 < sum(result.malformed for result in first) < 45
    assert all(result.annotation == SEA for result in results)
    assert [r.attempts > 1 for r in results] == [r.malformed for r in first]
    assert max(result.attempts for result in results) > 2


def test_annotation_that_breaks_the_schema_is_malformed(tokenizer):
    model = scripted(tokenizer, writes(tokenizer, Annotation.of({"mood": "sea"})))
    request = Request(USER, annotated=True)
    assert not one(model, tokenizer, request, retries=0).malformed
    assert one(model, tokenizer, request, retries=0, schema=ANCHORED).malformed


def test_overlong_annotation_ends_as_malformed(tokenizer):
    model = scripted(tokenizer, lambda ids: {tokenizer.encode("x")[0]: 20.0})
    options = {"max_annotation_tokens": 12, "retries": 1}
    result = one(model, tokenizer, Request(USER, annotated=True), **options)
    assert result == Sample("", finished=False, malformed=True, attempts=2)
    assert len(model.seen) == 2 * 12


def test_annotation_limit_counts_the_closing_token(tokenizer):
    model = scripted(tokenizer, writes(tokenizer))
    needed = len(encoded(tokenizer, SEA)) + 1
    request = Request(USER, annotated=True)
    results = [
        one(model, tokenizer, request, max_annotation_tokens=limit, retries=0)
        for limit in (needed - 1, needed)
    ]
    assert [result.malformed for result in results] == [True, False]


def test_response_is_cut_at_its_limit_whatever_its_annotation_took(tokenizer):
    x = tokenizer.encode("x")[0]
    plan = writes(tokenizer)

    def script(ids: list[int]) -> dict[int, float] | torch.Tensor:
        return {x: 20.0} if tokenizer.control.close in ids else plan(ids)

    model = scripted(tokenizer, script)
    result = one(model, tokenizer, Request(USER, annotated=True), max_response_tokens=7)
    assert result == Sample("x" * 7, SEA, finished=False)


def test_empty_annotation_is_legal(tokenizer):
    model = scripted(tokenizer, writes(tokenizer, Annotation()))
    assert one(model, tokenizer, Request(USER, annotated=True)) == Sample(" Rain.", Annotation())


def test_logits_that_are_no_numbers_are_refused(tokenizer):
    model = scripted(tokenizer, lambda ids: {tokenizer.encode("x")[0]: float("nan")})
    with pytest.raises(DataError, match="logits are not finite"):
        one(model, tokenizer, Request(USER))


# --- keys ---------------------------------------------------------------------------------------


def lottery(tokenizer: AnchoredTokenizer) -> Script:
    """Letters by chance, a space and letters behind each colon, a new line or the end at times."""
    generator = torch.Generator().manual_seed(0)
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    letters = [i for i, text in enumerate(texts) if re.fullmatch(r"[a-z]+", text)]
    spaced = [i for i, text in enumerate(texts) if re.fullmatch(r" [a-z]+", text)]

    def script(ids: list[int]) -> torch.Tensor:
        logits = torch.full((len(tokenizer),), -30.0)
        chosen = spaced if texts[ids[-1]].endswith(":") else letters
        logits[chosen] = torch.randn(len(chosen), generator=generator)
        if chosen is letters:
            logits[[tokenizer.control.close, tokenizer.encode("\n")[0]]] = torch.tensor([2.0, 5.0])
        return logits

    return script


def plans(
    tokenizer: AnchoredTokenizer, schema: Schema, monkeypatch, n: int = 30, **options: Any
) -> list[Annotation]:
    """Annotations drawn from noise, values not checked."""
    monkeypatch.setattr(Schema, "check", lambda self, annotation: None)
    pinned = options.pop("pinned", Annotation())
    request = Request(USER, annotated=True, annotation_only=True, pinned=pinned)
    model = scripted(tokenizer, lottery(tokenizer))
    results = sample(
        model, tokenizer, [request] * n, SampleConfig(retries=0, **options), schema=schema
    )
    return [result.annotation for result in results if result.annotation is not None]


def test_keys_that_sft_is_to_change_are_left_out(tokenizer, monkeypatch):
    found = plans(tokenizer, SCHEMA, monkeypatch)
    assert {tag.key for annotation in found for tag in annotation} == {"topic", "mood", "place"}
    assert len({tag.value for annotation in found for tag in annotation}) > 15


def test_a_key_that_takes_one_value_comes_once_and_one_that_takes_many_may_repeat(
    tokenizer, monkeypatch
):
    found = plans(tokenizer, SCHEMA, monkeypatch)
    most = {key: max(len(a.values(key)) for a in found) for key in ("topic", "mood", "place")}
    assert (most["mood"], most["place"]) == (1, 1)
    assert most["topic"] > 1


def test_a_bounded_key_comes_no_more_often_than_its_schema_says(tokenizer, monkeypatch):
    two_topics = SCHEMA.keys[0].model_copy(update={"many": 2})
    schema = Schema(name="two", keys=(two_topics, *SCHEMA.keys[1:]))
    counts = {len(a.values("topic")) for a in plans(tokenizer, schema, monkeypatch)}
    assert counts == {0, 1, 2}
    pinned = Annotation.of({"topic": "love"})
    found = plans(tokenizer, schema, monkeypatch, pinned=pinned)
    assert {len(a.values("topic")) for a in found} == {1, 2}


def test_pinned_keys_count_as_used_even_those_left_out(tokenizer, monkeypatch):
    pinned = Annotation.of({"style": "plain", "place": "forest"})
    found = plans(tokenizer, SCHEMA, monkeypatch, pinned=pinned)
    assert {annotation.tags[:2] for annotation in found} == {pinned.tags}
    assert {tag.key for a in found for tag in a.tags[2:]} == {"topic", "mood"}


def test_when_no_key_is_left_the_annotation_closes(tokenizer, monkeypatch):
    one_key = Schema(name="one", keys=(SCHEMA.keys[1], SCHEMA.keys[3]))
    pinned = Annotation.of({"mood": "calm"})
    assert set(plans(tokenizer, one_key, monkeypatch, n=10, pinned=pinned)) == {pinned}
    none_left = Schema(name="none", keys=SCHEMA.keys[3:])
    assert set(plans(tokenizer, none_left, monkeypatch, n=10)) == {Annotation()}


def test_keys_are_constrained_on_request_where_all_are_anchored(tokenizer, monkeypatch):
    found = plans(tokenizer, ANCHORED, monkeypatch, constrain_keys=True)
    assert {tag.key for annotation in found for tag in annotation} == {"topic", "mood", "place"}


def test_nothing_is_constrained_where_all_keys_are_anchored(tokenizer, monkeypatch):
    scores = spied(monkeypatch)
    plans(tokenizer, ANCHORED, monkeypatch, n=2)
    assert all((step.isfinite().sum(-1) == len(tokenizer) - 5).all() for step in scores[:-3])


def test_constraint_renormalises_among_allowed_keys_and_leaves_values_free(tokenizer, monkeypatch):
    scores = spied(monkeypatch)
    torch.manual_seed(0)
    noise = torch.randn(len(tokenizer))
    model = scripted(tokenizer, lambda ids: noise)
    request = Request(USER, annotated=True, annotation_only=True)
    sample(model, tokenizer, [request], SampleConfig(retries=0), SCHEMA)
    starts = {tokenizer.encode(f"{key}:")[0] for key in ("topic", "mood", "place")}
    expected = sorted({*starts, tokenizer.control.close})
    assert scores[0][0].isfinite().nonzero()[:, 0].tolist() == expected
    torch.testing.assert_close(scores[0][0, expected], noise[expected])


# --- batches and seeds --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tokenizer) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(olmo2_config("0.5m", len(tokenizer)))
    model.get_input_embeddings().weight.data *= 20
    return model.eval()


MIXED = [
    Request(USER),
    Request((Message("user", "Tell me a story. The sea was calm."),), annotated=True),
    Request(prefill="The sea"),
    Request(USER, annotated=True, pinned=Annotation.of({"topic": "sea"})),
    Request(USER, annotated=True, pinned=SEA, complete=True),
    Request((Message("user", "rain"),), annotated=True, annotation_only=True),
]
SHORT: dict[str, Any] = {"max_annotation_tokens": 12, "max_response_tokens": 16, "retries": 1}


def test_same_seed_same_samples_another_seed_others(tiny, tokenizer):
    first = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT))
    torch.manual_seed(5)
    again = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT))
    other = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT, seed=1))
    assert first == again != other
    assert len({result.response for result in first}) >= 4


def test_a_part_of_the_requests_gives_its_part_of_the_samples(tiny, tokenizer):
    whole = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT))
    assert sample(tiny, tokenizer, MIXED[2:], SampleConfig(**SHORT), first=2) == whole[2:]


def test_samples_do_not_depend_on_the_batch(tiny, tokenizer):
    whole = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT))
    single = sample(tiny, tokenizer, MIXED, SampleConfig(**SHORT, batch_size=1))
    assert whole == single
    assert sample(tiny, tokenizer, MIXED[:4], SampleConfig(**SHORT)) == whole[:4]


def test_the_global_random_state_is_left_alone(tiny, tokenizer):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sample(tiny, tokenizer, MIXED[:2], SampleConfig(**SHORT))
    assert torch.equal(torch.get_rng_state(), before)


def test_left_padding_does_not_change_a_rows_logits(tiny, tokenizer, monkeypatch):
    scores = spied(monkeypatch)
    options = SampleConfig(response=Sampling(temperature=0), max_response_tokens=30)
    long = Request((Message("user", TEXTS[2] * 2),))
    sample(tiny, tokenizer, [Request(USER), long], options)
    # Rows that ended leave; the steps at which both are there are compared.
    together = [step[0] for step in scores if len(step) == 2]
    scores.clear()
    sample(tiny, tokenizer, [Request(USER)], options)
    assert len(together) > 5
    for ours, alone in zip(together, scores, strict=False):
        torch.testing.assert_close(ours, alone[0], atol=1e-5, rtol=0)


def test_sequences_that_ended_leave_the_batch(tokenizer):
    x, eos = tokenizer.encode("x")[0], tokenizer.control.eos
    prompts = ["a" * n for n in range(1, 11)]

    def script(ids: list[int]) -> dict[int, float]:
        prompt = ids.index(tokenizer.control.assistant) - ids.index(tokenizer.control.user) - 1
        return {eos if len(after(ids, tokenizer.control.assistant) or []) > prompt else x: 20.0}

    model = scripted(tokenizer, script)
    requests = [Request((Message("user", prompt),)) for prompt in prompts]
    results = sample(model, tokenizer, requests, SampleConfig())
    lengths = [len(tokenizer.encode(prompt)) + 1 for prompt in prompts]
    assert [len(result.response) for result in results] == lengths
    assert model.widths[0] == 10
    assert model.widths[-1] < 5
    assert sum(model.widths) < 10 * len(model.widths)


# --- the loop against `generate` ----------------------------------------------------------------

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ARCHITECTURES = {
    "olmo2": SIZES,
    "llama": {**SIZES, "num_key_value_heads": 2},
    "mistral": {**SIZES, "num_key_value_heads": 2, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_responses_are_those_of_generate(tokenizer, name):
    torch.manual_seed(0)
    control = tokenizer.control
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():  # freshly drawn, the models repeat one token for ever
        weight.data *= 3
    prompts = [(control.bos, *tokenizer.encode(text)) for text in (TEXTS[0], "a", "The sea")]
    options = SampleConfig(response=Sampling(temperature=0), max_response_tokens=70)
    ours = sample(model, tokenizer, [Request(prefix=prefix) for prefix in prompts], options)
    greedy = GenerationConfig(
        max_new_tokens=70,
        do_sample=False,
        eos_token_id=control.eos,
        pad_token_id=control.pad,
        suppress_tokens=sorted(set(vars(control).values()) - {control.eos}),
    )
    theirs = []
    for prefix in prompts:
        new = model.generate(torch.tensor([prefix]), generation_config=greedy)[0, len(prefix) :]
        theirs.append(tokenizer.decode([i for i in new.tolist() if i != control.eos]))
    assert [result.response for result in ours] == theirs
    assert len(set(theirs)) == len(theirs)


UNCACHED = {
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "mamba2": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 4,
        "num_heads": 4,
        "head_dim": 8,
        "n_groups": 1,
    },
}


def drawn(tokenizer: AnchoredTokenizer, name: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), pad_token_id=0, **fields)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", UNCACHED)
def test_a_model_that_takes_no_cache_of_keys_and_values_is_refused(tokenizer, name):
    with pytest.raises(ConfigError, match=r"gives other logits from a cache .* `anchored score`"):
        sample(drawn(tokenizer, name, UNCACHED[name]), tokenizer, [Request(USER)])


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "LoraConfig"])
def test_tuning_by_virtual_tokens_is_refused_and_lora_is_not(tokenizer, kind):
    settings = {} if kind == "LoraConfig" else {"num_virtual_tokens": 4}
    adapter = getattr(peft, kind)(task_type="CAUSAL_LM", **settings)
    model: Any = peft.get_peft_model(drawn(tokenizer, "llama", SIZES), adapter)
    refused = pytest.raises(ConfigError, match="PeftModelForCausalLM gives other logits")
    with nullcontext() if kind == "LoraConfig" else refused:
        sample(model, tokenizer, [Request(USER)], SampleConfig(max_response_tokens=2))


def test_a_model_in_which_context_changes_nothing_yet_is_not_refused(tokenizer):
    model = drawn(tokenizer, "llama", SIZES)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
    sample(model, tokenizer, [Request(USER)], SampleConfig(max_response_tokens=2))


def test_half_precision_is_no_reason_to_refuse_a_model(tokenizer):
    model = drawn(tokenizer, "llama", {**SIZES, "num_hidden_layers": 8}).bfloat16()
    sample(model, tokenizer, [Request(USER)], SampleConfig(max_response_tokens=2))


def test_a_checkpoints_generation_settings_do_not_slip_in(tiny, tokenizer):
    before = sample(tiny, tokenizer, MIXED[:4], SampleConfig(**SHORT))
    settings = tiny.generation_config
    tiny.generation_config = GenerationConfig(repetition_penalty=5.0, top_k=1, temperature=0.1)
    assert sample(tiny, tokenizer, MIXED[:4], SampleConfig(**SHORT)) == before
    tiny.generation_config = settings


def test_no_requests_no_samples(tiny, tokenizer):
    assert sample(tiny, tokenizer, []) == []


def test_a_row_stores_the_annotation_as_key_and_value():
    found = Sample("Räin", Annotation.of({"topic": "sea"}), attempts=2).as_row("Tell.")
    assert found == {
        "prompt": "Tell.",
        "annotation": [{"key": "topic", "value": "sea"}],
        "response": "Räin",
        "attempts": 2,
        "malformed": False,
        "finished": True,
    }
    assert Sample("").as_row(None)["annotation"] is None
