"""Chat templates of existing models: their ids, and no message that writes a special token."""

from __future__ import annotations

import datetime
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from anchored.annotation import Annotation
from anchored.errors import ConfigError, DataError
from anchored.segments import (
    OBJECTIVES,
    Kind,
    Message,
    assemble,
    conversation_pieces,
    conversation_segments,
)
from anchored.tokenizer import AnchoredTokenizer
from families import FAMILIES, LLAMA_TEMPLATE, byte_level

CHATTING = ("llama3", "qwen3", "gemma3", "olmo2")
TURNS = (
    Message("system", "  Be brief. "),
    Message("user", " Tell me\na story "),
    Message("assistant", "No <think>."),
    Message("user", "Größe 1234,\n\n please! "),
)
PLAN = Annotation.of({"hero": "Mara", "place": "desert"})


@pytest.fixture(scope="module", params=CHATTING)
def tokenizer(request) -> AnchoredTokenizer:
    return AnchoredTokenizer.adopt(FAMILIES[request.param].tokenizer())


def rows(turns) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def prompt_ids(tokenizer: AnchoredTokenizer, turns) -> list[int]:
    asked = (*turns, Message("assistant", ""))
    return assemble(conversation_segments(asked, tokenizer, OBJECTIVES["standard"])).input_ids


def stock_ids(hf: Any, turns) -> list[int]:
    return hf.apply_chat_template(rows(turns), add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("turns", [TURNS, TURNS[1:], TURNS[1:2]])
def test_a_prompt_has_the_ids_of_the_models_own_template(tokenizer, turns):
    assert prompt_ids(tokenizer, turns) == stock_ids(tokenizer.hf, turns)


contents = st.text(max_size=12) | st.sampled_from(["<", "<|", "<|im", "<|eot_id|", "<start_of"])


@settings(deadline=None, max_examples=60)
@given(st.lists(contents, min_size=1, max_size=3))
def test_so_has_any_conversation_that_spells_no_special_token(tokenizer, texts):
    special = tokenizer.control_ids.keys() - tokenizer.control.named().keys()
    turns = []
    for text in texts:
        turns += [Message("user", text), Message("assistant", text)]
    turns = turns[:-1]
    if any(spelling in text for text in texts for spelling in special):
        return
    assert prompt_ids(tokenizer, turns) == stock_ids(tokenizer.hf, turns)


def test_no_message_writes_a_special_token_whole_or_in_parts(tokenizer):
    special = sorted(tokenizer.control_ids.keys() - tokenizer.control.named().keys())
    numbers = set(tokenizer.control_ids.values())
    harmless = [i for i in prompt_ids(tokenizer, [Message("user", "a")]) if i in numbers]
    rng = random.Random(0)
    for _ in range(300):
        spelt = rng.choice(special)
        cut = rng.randrange(len(spelt))
        text = rng.choice(["", "Hi ", "\n"]) + rng.choice(
            [spelt, spelt * 2, spelt[:cut] + spelt + spelt[cut:], spelt[:cut], spelt[:cut] + "  "]
        )
        found = prompt_ids(tokenizer, [Message("user", text)])
        assert [i for i in found if i in numbers] == harmless, text


def test_messages_side_by_side_do_not_make_a_special_token_together():
    hf = FAMILIES["qwen3"].tokenizer()
    hf.chat_template = "{% for m in messages %}{{ m['content'] | trim }}{% endfor %}<|im_end|>"
    chat = AnchoredTokenizer.adopt(hf).chat
    for first, second in (("<|im_", "end|>"), ("<", "|im_end|>"), ("a <|im_end| ", ">")):
        turns = [Message("user", first), Message("assistant", second), Message("user", "Hi")]
        text = f"{first.strip()}{second}Hi"
        assert chat and chat.stretches(rows(turns), True) == [(text, False), ("<|im_end|>", True)]


def test_a_message_that_spells_a_special_token_comes_back_as_it_was(tokenizer):
    text = f"one{tokenizer.chat.end}two"
    parts = conversation_pieces(
        [Message("user", text), Message("assistant", "")], OBJECTIVES["standard"], tokenizer.chat
    )
    assert any(text in piece.text for piece in parts if piece.kind is Kind.PROMPT)
    assert text in tokenizer.decode(prompt_ids(tokenizer, [Message("user", text)]))


def test_loss_is_on_the_answer_and_the_token_that_ends_a_turn(tokenizer):
    turns = (*TURNS, Message("assistant", "Yes.", PLAN))
    example = assemble(conversation_segments(turns, tokenizer, OBJECTIVES["anchored"]))
    learnt = [i for i in example.labels if i >= 0]
    end: int = tokenizer.hf.convert_tokens_to_ids(tokenizer.chat.end)
    assert learnt == [*tokenizer.encode("Yes."), end]
    prompt = stock_ids(tokenizer.hf, TURNS)
    assert example.input_ids[: len(prompt) + 1] == [*prompt, tokenizer.control.open]
    plan = example.input_ids[len(prompt) + 1 : -len(learnt) - 1]
    assert tokenizer.decode_pieces(plan) == str(PLAN)
    assert example.input_ids[-len(learnt) - 1] == tokenizer.control.close


@pytest.mark.parametrize(
    ("name", "end", "opening", "closing"),
    [
        ("llama3", "<|eot_id|>", "<|reserved_special_token_10|>", "<|reserved_special_token_11|>"),
        ("qwen3", "<|im_end|>", "<|annotation|>", "<|/annotation|>"),
        ("gemma3", "<end_of_turn>", "<unused6>", "<unused7>"),
        ("olmo2", "<|endoftext|>", "<|extra_id_2|>", "<|extra_id_3|>"),
        ("gpt_neox", None, "<|annotation|>", "<|/annotation|>"),
    ],
)
def test_what_a_tokenizer_holds_in_reserve_is_used_before_anything_is_added(
    name, end, opening, closing
):
    hf = FAMILIES[name].tokenizer()
    before = len(hf)
    tokenizer = AnchoredTokenizer.adopt(hf)
    assert len(tokenizer) == before + FAMILIES[name].new
    assert (tokenizer.tokens["open"], tokenizer.tokens["close"]) == (opening, closing)
    assert (tokenizer.chat and tokenizer.chat.end) == end
    assert {"user", "system"}.isdisjoint(tokenizer.tokens) == (tokenizer.chat is not None)
    for spelling in (opening, closing):
        ids = tokenizer.encode(spelling)
        assert len(ids) > 1 and tokenizer.decode(ids) == spelling


def test_reserved_tokens_serve_our_own_format_too_where_there_is_no_template():
    hf = FAMILIES["llama3"].tokenizer()
    hf.chat_template = None
    before = len(hf)
    tokenizer = AnchoredTokenizer.adopt(hf)
    assert len(tokenizer) == before
    assert tokenizer.tokens["system"] == "<|reserved_special_token_7|>"
    assert prompt_ids(tokenizer, TURNS) == stock_ids(tokenizer.hf, TURNS)


def test_a_reserved_token_that_the_template_or_the_pad_uses_is_left_alone():
    hf = FAMILIES["llama3"].tokenizer()
    hf.pad_token = "<|reserved_special_token_11|>"
    hf.chat_template = hf.chat_template.replace("eot_id", "reserved_special_token_10")
    tokenizer = AnchoredTokenizer.adopt(hf)
    assert tokenizer.tokens["close"] == "<|reserved_special_token_9|>"
    assert tokenizer.chat.end == "<|reserved_special_token_10|>"


@pytest.mark.parametrize("name", FAMILIES)
def test_save_and_load_keep_every_id_the_template_and_the_fingerprint(name, tmp_path: Path):
    tokenizer = AnchoredTokenizer.adopt(FAMILIES[name].tokenizer())
    tokenizer.save(tmp_path, annotated=True)
    loaded = AnchoredTokenizer.load(tmp_path)
    assert loaded.control == tokenizer.control
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.hf.chat_template == tokenizer.hf.chat_template
    assert prompt_ids(loaded, TURNS) == prompt_ids(tokenizer, TURNS)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_saved_template_opens_the_annotation_and_drops_those_of_earlier_answers(
    name, tmp_path: Path
):
    tokenizer = AnchoredTokenizer.adopt(FAMILIES[name].tokenizer())
    opening, closing = tokenizer.tokens["open"], tokenizer.tokens["close"]
    tokenizer.save(tmp_path, annotated=True)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    expected = [*prompt_ids(tokenizer, TURNS), tokenizer.control.open]
    assert stock_ids(auto, TURNS) == expected
    answer = Message("assistant", f"{opening}hero: Mara{closing}{TURNS[2].content}")
    assert stock_ids(auto, [*TURNS[:2], answer, TURNS[3]]) == expected
    whole = rows([*TURNS, Message("assistant", "Yes.")])
    rendered = auto.apply_chat_template(whole, tokenize=False)
    assert rendered == tokenizer.hf.apply_chat_template(whole, tokenize=False)


def test_an_annotation_is_cut_by_the_id_of_its_closing_token(tokenizer):
    """As the documentation has it; without special tokens its tags run into the answer."""
    close = tokenizer.hf.convert_tokens_to_ids(tokenizer.tokens["close"])
    new = [*tokenizer.encode("mood: glad"), close, *tokenizer.encode("Tell me")]
    assert tokenizer.hf.decode(new, skip_special_tokens=True) == "mood: gladTell me"
    answer = tokenizer.hf.decode(new[new.index(close) + 1 :], skip_special_tokens=True)
    assert answer == "Tell me"


def test_without_annotations_the_template_is_saved_as_it_was(tmp_path: Path):
    hf = FAMILIES["qwen3"].tokenizer()
    before = hf.chat_template
    AnchoredTokenizer.adopt(hf).save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == before


HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}THOUGHT<|channel|>final{% endif %}<|message|>{{ m.content }}"
    "{% if loop.last and m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}\n"
)


def harmony(thought: str) -> Any:
    """A tokenizer whose answers stand in a channel, behind `thought`."""
    hf = FAMILIES["qwen3"].tokenizer()
    names = ["start", "channel", "message", "end", "return"]
    hf.add_special_tokens({"extra_special_tokens": [f"<|{name}|>" for name in names]})
    hf.chat_template = HARMONY.replace("THOUGHT", thought)
    return hf


@pytest.mark.parametrize("annotated", [True, False])
def test_the_channel_of_an_answer_is_prompt_in_training_and_in_the_saved_template(
    tmp_path: Path, annotated: bool
):
    hf = harmony("")
    turns = (*TURNS, Message("assistant", "Yes.", PLAN if annotated else None))
    whole = hf.apply_chat_template(rows(turns))["input_ids"]  # by the model's own template
    tokenizer = AnchoredTokenizer.adopt(hf)
    objective = OBJECTIVES["anchored" if annotated else "standard"]
    example = assemble(conversation_segments(turns, tokenizer, objective))
    learnt = [*tokenizer.encode("Yes."), hf.convert_tokens_to_ids("<|return|>")]
    assert [i for i in example.labels if i >= 0] == learnt
    prompt = prompt_ids(tokenizer, TURNS)
    assert [*prompt, *learnt] == whole
    assert example.input_ids[: len(prompt)] == prompt
    tokenizer.save(tmp_path, annotated)
    opened = [tokenizer.control.open] if annotated else []
    assert stock_ids(AutoTokenizer.from_pretrained(tmp_path), TURNS) == [*prompt, *opened]
    loaded = AnchoredTokenizer.load(tmp_path)
    assert (loaded.fingerprint, prompt_ids(loaded, TURNS)) == (tokenizer.fingerprint, prompt)


def test_a_thought_before_the_channel_of_an_answer_is_left_out():
    hf = harmony("<think>\n\n</think>\n")
    AnchoredTokenizer.adopt(hf)
    prompt = hf.apply_chat_template(rows(TURNS), tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|start|>assistant<|channel|>final<|message|>")


@pytest.mark.parametrize("name", CHATTING)
def test_a_template_without_a_channel_is_left_as_it_is(name: str):
    hf = FAMILIES[name].tokenizer()
    before = hf.chat_template
    AnchoredTokenizer.adopt(hf)
    assert hf.chat_template == before


def test_another_template_has_another_fingerprint():
    first, second = FAMILIES["qwen3"].tokenizer(), FAMILIES["qwen3"].tokenizer()
    second.chat_template = second.chat_template.replace("turn.role ~ '", "turn.role ~ ':")
    fingerprints = {AnchoredTokenizer.adopt(hf).fingerprint for hf in (first, second)}
    assert len(fingerprints) == 2


DATED = "{{ 'Today: ' ~ strftime_now('%d %b %Y') ~ '\n' }}" + LLAMA_TEMPLATE


DAYS = (datetime.datetime(2028, 2, 29), datetime.datetime(2026, 12, 31, 23, 59, 59))


def test_a_template_that_writes_the_day_writes_the_same_on_every_day(tmp_path: Path, monkeypatch):
    hf = FAMILIES["llama3"].tokenizer()
    hf.chat_template = DATED
    tokenizer = AnchoredTokenizer.adopt(hf)
    tokenizer.save(tmp_path)
    before = tokenizer.fingerprint
    for day in DAYS:
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda on=day: on))
        loaded = AnchoredTokenizer.load(tmp_path)
        assert loaded.fingerprint == before
        assert loaded.decode(prompt_ids(loaded, TURNS)).startswith("Today: 26 Jul 2024\n")
    on_that_day = SimpleNamespace(now=lambda: datetime.datetime(2024, 7, 26))
    monkeypatch.setattr(chat_template_utils, "datetime", on_that_day)
    assert prompt_ids(tokenizer, TURNS) == stock_ids(tokenizer.hf, TURNS)
    hf.chat_template = DATED.replace("Today", "Now")
    assert AnchoredTokenizer.adopt(hf).fingerprint != before


def test_a_template_may_take_the_day_apart():
    hf = FAMILIES["llama3"].tokenizer()
    month = "{% set names = {'07': 'July'} %}{{ names[strftime_now('%m')][:3] }}"
    hf.chat_template = month + LLAMA_TEMPLATE
    tokenizer = AnchoredTokenizer.adopt(hf)
    assert tokenizer.decode(prompt_ids(tokenizer, TURNS)).startswith("Jul")


@pytest.mark.parametrize(
    ("behind", "opened"),
    [
        ("<think>\n", "<think>"),
        ("<think>\n\n</think>\n\n<think>", "<think>"),
        ("[THINK]", "[THINK]"),
        ("<think>\n\n</think>\n\n", None),
        ("</think>", None),
        ("<thoughtless>", None),
    ],
)
def test_a_thought_that_the_prompt_opens_and_does_not_close_is_noticed(behind, opened):
    hf = FAMILIES["qwen3"].tokenizer()
    hf.chat_template += f"{{{{ {behind!r} if add_generation_prompt else '' }}}}"
    chat = AnchoredTokenizer.adopt(hf).chat
    assert chat and chat.opened_thought() == opened


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space is put before a text, or before its first part alone."""
    scores = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("[/INST]", -1.0), ("▁", -3.0)]
    pieces = [("▁Tell", -2.0), ("Tell", -2.0), ("▁me", -2.0), ("▁Hi", -2.0), ("Hi", -2.0)]
    backend: Any = Tokenizer(
        models.Unigram([*scores, *pieces, *((c, -9.0) for c in "Whois[ISNT/]MarGß?1+.é")], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=["[/INST]"],
        chat_template="{{ bos_token }}{% for m in messages %}{{ m['content'] }}"
        "{{ '[/INST]' if m['role'] == 'user' else ' ' + eos_token }}{% endfor %}",
    )  # fmt: skip


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_space_that_a_tokenizer_puts_before_a_text_is_put_where_the_template_has_it(scheme):
    tokenizer = AnchoredTokenizer.adopt(metaspace(scheme))
    turns = [Message("user", "Tell me"), Message("assistant", "Hi"), Message("user", "Tell")]
    ids = stock_ids(tokenizer.hf, turns)
    assert prompt_ids(tokenizer, turns) == ids
    first = tokenizer.hf.convert_ids_to_tokens(ids[1])
    assert first == ("▁Tell" if scheme == "always" else "Tell")
    assert tokenizer.chat.end == "</s>"


def test_white_space_that_a_special_token_takes_along_is_taken_along():
    from tokenizers import AddedToken

    backend = byte_level(None)
    names = ["<|end|>", "<|user|>", "<|model|>"]
    backend.add_special_tokens([AddedToken(n, rstrip=True, normalized=False) for n in names])
    template = (
        "{% for m in messages %}{{ '<|' + m['role'].replace('assistant', 'model') + '|>\n' }}"
        "{{ m['content'] + '<|end|>\n' }}{% endfor %}"
        "{{ '<|model|>\n' if add_generation_prompt else '' }}"
    )
    tokenizer = AnchoredTokenizer.adopt(
        PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|end|>", chat_template=template
        )
    )
    turns = [Message("user", "  Tell me "), Message("assistant", "Hi"), Message("user", "Tell")]
    assert prompt_ids(tokenizer, turns) == stock_ids(tokenizer.hf, turns)


def test_a_conversation_that_the_template_refuses_is_an_error_that_says_why():
    tokenizer = AnchoredTokenizer.adopt(FAMILIES["gemma3"].tokenizer())
    twice = [Message("user", "a"), Message("user", "b"), Message("assistant", "c")]
    with pytest.raises(DataError, match="refuses a conversation of user, user: user and assistant"):
        conversation_pieces(twice, OBJECTIVES["standard"], tokenizer.chat)
    with pytest.raises(DataError, match="there is nothing before the answer"):
        conversation_pieces(twice[2:], OBJECTIVES["standard"], tokenizer.chat)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('only tools') }}", "only tools; change its turns; this package"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "drops the answer"),
        ("{% for m in messages %", "refuses a conversation"),
        ("{{ 1 // 0 }}", "refuses a conversation of user, assistant: integer division"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template, reason):
    hf = FAMILIES["qwen3"].tokenizer()
    hf.chat_template = template
    with pytest.raises(ConfigError, match=reason):
        AnchoredTokenizer.adopt(hf)
