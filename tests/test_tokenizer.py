"""Tokenizers: control ids come from us alone, and a changed tokenizer is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_letters, punctuation

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from anchored.annotation import Annotation
from anchored.errors import ConfigError, DataError, TokenizerMismatch
from anchored.sampling import engine
from anchored.segments import OBJECTIVES, Message, assemble, conversation_segments
from anchored.tokenizer import CONTROL_TOKENS, END_OF_TEXT, PROBE, AnchoredTokenizer, load_error

TEXTS = ["Tell me a story. Mara slept at the mill.\n\nThe end. hero: Mara"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(TEXTS, 280)


def foreign(*added: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows nothing of us."""
    words = ["[UNK]", "</s>", "Tell", "me", *added]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def test_the_vocabulary_has_the_size_asked_for_control_tokens_included(tokenizer):
    assert len(tokenizer) == 280 == tokenizer.hf.backend_tokenizer.get_vocab_size()
    assert len(set(vars(tokenizer.control).values())) == 6  # bos and pad are eos here


def test_spelt_control_tokens_are_plain_text_and_decode_to_themselves(tokenizer):
    control = set(vars(tokenizer.control).values())
    for text in (*CONTROL_TOKENS.values(), END_OF_TEXT, *PROBE):
        ids = tokenizer.encode(text)
        assert control.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode_batch([text, text]) == [ids, ids]


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert AnchoredTokenizer.train(TEXTS, 280).fingerprint == tokenizer.fingerprint


def test_save_and_load_keep_every_id(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    loaded = AnchoredTokenizer.load(tmp_path)
    assert loaded.control == tokenizer.control
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.probe() == tokenizer.probe()


def test_auto_tokenizer_on_a_saved_folder_gives_our_ids(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *PROBE[:-1]):
        assert auto(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)


def test_the_chat_template_is_the_prefix_that_the_sampler_feeds(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    turns = (
        Message("system", "Be brief."),
        Message("user", "Tell me."),
        Message("assistant", "No."),
        Message("user", "Tell me a story."),
    )
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = auto.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    standard = (*turns, Message("assistant", ""))
    segments = conversation_segments(standard, tokenizer, OBJECTIVES["standard"])
    assert ids == assemble(segments).input_ids
    requests = [engine.Request(turns), engine.Request(turns, annotated=True)]
    assert engine._prefixes(requests, tokenizer) == [ids, [*ids, tokenizer.control.open]]


def test_the_chat_template_of_a_whole_conversation_is_the_standard_sequence(tokenizer):
    turns = [Message("user", "Tell me."), Message("assistant", "No.", Annotation())]
    chat = [{"role": turn.role, "content": turn.content} for turn in turns]
    segments = conversation_segments(turns, tokenizer, OBJECTIVES["standard"])
    assert tokenizer.hf.apply_chat_template(chat)["input_ids"] == assemble(segments).input_ids


def test_an_adopted_tokenizer_gets_the_control_tokens_it_lacks():
    adopted = AnchoredTokenizer.adopt(foreign("<|user|>"))
    assert len(adopted) == 5 + 4  # <|user|> was there, as an ordinary word
    assert adopted.control.eos == adopted.control.bos == adopted.control.pad == 1
    assert adopted.control.user == 4
    assert adopted.control.close == 8


def test_an_adopted_tokenizer_keeps_the_special_tokens_it_has():
    hf = foreign("<extra>")
    hf.add_special_tokens({"extra_special_tokens": ["<extra>"]})
    adopted = AnchoredTokenizer.adopt(hf)
    assert {"<extra>", *CONTROL_TOKENS.values()} <= set(adopted.hf.all_special_tokens)


def unigram(*pieces: str) -> PreTrainedTokenizerFast:
    """As SentencePiece makes them: `<s>` and `</s>` stand in the vocabulary itself."""
    scores = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), *((p, -2.0) for p in ("▁", *pieces))]
    backend = Tokenizer(models.Unigram(scores, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize("text", ["</s>", "Hello </s>", "<s></s></s>a", "</s", "<|user|></s>"])
def test_text_never_yields_a_control_token_that_the_vocabulary_itself_spells(text):
    tokenizer = AnchoredTokenizer.adopt(unigram(*ascii_letters, *punctuation))
    control = set(vars(tokenizer.control).values())
    assert {1, 2} < control
    assert control.isdisjoint(tokenizer.encode(text))
    assert control.isdisjoint(tokenizer.encode_batch(["a", text])[1])
    assert tokenizer.encode_batch(["a", text])[0] == tokenizer.encode("a")


def test_a_pad_token_that_is_the_unknown_one_is_left_to_text():
    """Without bytes to fall back on, text yields it."""
    hf = unigram(*ascii_letters)
    hf.add_special_tokens({"pad_token": "<unk>"})
    tokenizer = AnchoredTokenizer.adopt(hf)
    assert (tokenizer.control.pad, tokenizer.control.eos) == (2, 2)
    assert tokenizer.fingerprint
    assert 0 in tokenizer.encode("東")


def test_a_control_token_that_cannot_be_spelt_otherwise_is_refused():
    hf = unigram("a")
    hf.add_special_tokens({"eos_token": "a"})
    with pytest.raises(DataError, match=r"can write \['a'\] only as its control token"):
        AnchoredTokenizer.adopt(hf).encode("a")


def test_a_tokenizer_without_end_of_sequence_is_refused():
    hf = PreTrainedTokenizerFast(tokenizer_object=foreign().backend_tokenizer)
    with pytest.raises(ConfigError, match="needs an eos_token"):
        AnchoredTokenizer.adopt(hf)


def test_a_folder_with_nothing_to_load_is_one_clear_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in (str(tmp_path / "nothing"), "runs/nothing", "./nothing", "a/b/c"):
        with pytest.raises(ConfigError) as caught:
            AnchoredTokenizer.load(name)
        assert str(caught.value) == f"tokenizer {name!r}: no such folder"
    for name in ("nothing", "owner/nothing"):
        with pytest.raises(ConfigError, match=r": no such folder, and not found on the hub: \w"):
            AnchoredTokenizer.load(name)
    with pytest.raises(ConfigError, match=r"tokenizer 'runs': (?!no such)\w"):
        AnchoredTokenizer.load("runs")


def test_what_a_repository_on_the_hub_holds_is_not_taken_for_its_absence():
    for error, said in (
        (KeyError("z"), "transformers cannot load it (KeyError: 'z'); use another"),
        (ValueError("pass trust_remote_code=True"), "needs custom code (auto"),
    ):
        assert str(load_error("model", "owner/name", error)).startswith(
            f"model 'owner/name': {said}"
        )


def test_a_folder_whose_pre_tokenizer_changed_is_refused(tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(TokenizerMismatch, match="same text, other ids"):
        AnchoredTokenizer.load(tmp_path)


def test_another_vocabulary_has_another_fingerprint(tokenizer):
    other = AnchoredTokenizer.train(TEXTS, 281)
    with pytest.raises(TokenizerMismatch, match=f"made with tokenizer {other.fingerprint}"):
        tokenizer.check(other.fingerprint, "data")
