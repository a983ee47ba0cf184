"""Tokenizers, trained here or adopted, with control tokens that no text can produce.

An existing tokenizer keeps its own chat template and gets an opening and a closing token for
annotations. These are reserved tokens if it has some, so that the vocabulary does not grow, or new
ones. A tokenizer without a template gets the tokens of our conversation format too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from anchored.chat import ChatTemplate, annotating, beginning, own_template, reserved_tokens
from anchored.errors import ConfigError, DataError, TokenizerMismatch
from anchored.files import as_os_error

CONTROL_TOKENS = {
    "system": "<|system|>",
    "user": "<|user|>",
    "assistant": "<|assistant|>",
    "open": "<|annotation|>",
    "close": "<|/annotation|>",
}
END_OF_TEXT = "<|endoftext|>"
RECORD = "anchored_tokenizer.json"
# Encoded before a text that follows a control token; a text that spells it is cut in two.
_AHEAD = "<|anchored:ahead|>"

PROBE = (
    "Once upon a time, Mara's 2 ships sailed.\n\nThe end?",
    "\ntopic: family_relationships\nplace:",
    "  Größe\tnaïve — “quoted” 東京 Привет مرحبا 👩‍🚀\r\n",
    "def f(x):\n    return x**2  # 3.14",
    "<|user|><|annotation|></s><|endoftext|>",
)


@dataclass(frozen=True)
class ControlIds:
    """The ids that only this package writes.

    `bos` and `pad` equal `eos` if a tokenizer has no such token; a pad token that is also the
    unknown token does not count. Role tokens are None if the model has its own chat template. `eos`
    ends a document and `end` an answer; they differ if the template has an end-of-turn token.
    """

    bos: int
    eos: int
    pad: int
    system: int | None
    user: int | None
    assistant: int | None
    open: int
    close: int
    end: int

    def named(self) -> dict[str, int]:
        """Return the ids that are not None, by name."""
        return {name: number for name, number in asdict(self).items() if number is not None}

    @property
    def ends(self) -> list[int]:
        """The ids that may end a sequence."""
        return sorted({self.eos, self.end})


class AnchoredTokenizer:
    """A `transformers` tokenizer with control ids that encoding a text never yields.

    Args:
        hf: the tokenizer, with the control tokens added; use `train`, `adopt` or `load` to get one.
        tokens: the spellings of our control tokens in it, by name.
        chat: its own chat template; None if conversations are written in this package's format.

    Attributes:
        control_ids: the ids of control pieces: ours by name, special tokens by spelling.
        fresh: ids of control tokens that no model has learnt yet.
    """

    def __init__(
        self,
        hf: PreTrainedTokenizerFast,
        tokens: Mapping[str, str] = CONTROL_TOKENS,
        chat: ChatTemplate | None = None,
    ) -> None:
        self.hf, self.tokens, self.chat = hf, tokens, chat
        self.fresh: list[int] = []
        eos: Any = hf.eos_token_id
        ids: dict[str, Any] = {
            name: hf.convert_tokens_to_ids(tokens[name]) if name in tokens else None
            for name in CONTROL_TOKENS
        }
        bos: Any = hf.bos_token_id if hf.bos_token_id is not None else eos
        # Text can yield the unknown token, so it cannot be a control token.
        has_pad = hf.pad_token_id not in (None, hf.unk_token_id)
        pad: Any = hf.pad_token_id if has_pad else eos
        end: Any = hf.convert_tokens_to_ids(chat.end) if chat else eos
        self.control = ControlIds(bos=bos, eos=eos, pad=pad, **ids, end=end)
        special = {t.content: i for i, t in hf.added_tokens_decoder.items() if t.special}
        special.pop(str(hf.unk_token), None)
        self.control_ids = special | self.control.named()
        self._spellings = {
            number: str(hf.convert_ids_to_tokens(number)) for number in self.control_ids.values()
        }
        self._plain = Tokenizer.from_str(hf.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_padding()
        self._plain.no_truncation()
        self._behind = self._encoder_behind_a_control_token()

    def _encoder_behind_a_control_token(self) -> Tokenizer | None:
        """Build the encoder of `encode_behind`, or return None if it would make no difference.

        SentencePiece may put a space at the start of a text, but not after a control token.
        """
        behind = Tokenizer.from_str(self._plain.to_str())
        behind.encode_special_tokens = True
        behind.add_tokens([AddedToken(_AHEAD, normalized=False)])
        ahead: Any = behind.token_to_id(_AHEAD)
        self._spellings[ahead] = _AHEAD
        for text in ("a a", " a"):
            at_start = self._plain.encode(text, add_special_tokens=False).ids
            if behind.encode(_AHEAD + text, add_special_tokens=False).ids[1:] != at_start:
                return behind
        return None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> AnchoredTokenizer:
        """Train a byte-level BPE of `vocab_size` entries, including control tokens, on `texts`."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
        backend.decoder = decoders.ByteLevel()  # pyright: ignore
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT, *CONTROL_TOKENS.values()],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        return cls.adopt(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT))

    @classmethod
    def adopt(
        cls, hf: PreTrainedTokenizerFast, record: Mapping[str, Any] | None = None
    ) -> AnchoredTokenizer:
        """Give any fast tokenizer the control tokens that it needs.

        A tokenizer with a chat template needs two, for annotations; one without needs all five. Its
        reserved tokens are used if there are enough; otherwise tokens are added, and
        `models.build.load_model` grows a model's embedding to match.

        Args:
            hf: the tokenizer, changed in place.
            record: the record that `save` wrote beside it, which decides all of this.

        Raises:
            ConfigError: the tokenizer has no end-of-sequence token or no fast (Rust) backend, or
                its chat template cannot be used.
        """
        if hf.eos_token_id is None or not hf.is_fast:
            raise ConfigError(
                f"tokenizer {hf.name_or_path!r}: needs an eos_token and a fast backend "
                "(tokenizer.json)"
            )
        is_ours = not _has_own_template(hf) if record is None else not record.get("template")
        if record and record.get("template"):
            hf.chat_template = record["template"]
        tokens = (record or {}).get("tokens") or _control_tokens(hf, is_ours)
        known = hf.get_vocab().keys() & set(CONTROL_TOKENS.values())
        fresh = [] if record else [token for token in tokens.values() if token not in known]
        added = [AddedToken(token, special=True, normalized=False) for token in tokens.values()]
        hf.add_special_tokens(
            {"extra_special_tokens": added},  # pyright: ignore
            replace_extra_special_tokens=False,
        )
        if is_ours and (record or hf.chat_template is None):
            hf.chat_template = own_template(tokens)
        chat = None if is_ours else ChatTemplate(hf)
        if chat and not record and (header := chat.answer_header()):
            hf.chat_template = beginning(hf.get_chat_template(), header)
        tokenizer = cls(hf, tokens, chat)
        tokenizer.fresh = [tokenizer.control_ids[token] for token in fresh]
        if tokenizer.chat is not None:
            tokenizer._check_chat(tokenizer.chat)
        return tokenizer

    def _check_chat(self, chat: ChatTemplate) -> None:
        """Check that conversations get the ids that `apply_chat_template` gives them."""
        ids: list[int] = []
        for text, special in chat.probe():
            ids += [self.control_ids[text]] if special else self.encode_behind([text])[0]
        if ids != chat.probe_ids():
            raise ConfigError(
                f"tokenizer {self.hf.name_or_path!r}: its chat template gives other ids in parts "
                "than as a whole; this package cannot use it"
            )

    def encode(self, text: str) -> list[int]:
        """Encode `text` as plain text: spellings of control tokens become ordinary pieces.

        Raises:
            DataError: `text` spells a control token that the tokenizer cannot write otherwise.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts as `encode` does, in parallel in Rust."""
        texts = list(texts)
        found = [e.ids for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
        return self._cleared(texts, found)

    def encode_behind(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts that follow a control token, as the parts of a prompt do."""
        if self._behind is None:
            return self.encode_batch(texts)
        ahead = [_AHEAD + text for text in texts]
        found = self._behind.encode_batch_fast(ahead, add_special_tokens=False)
        return self._cleared(texts, [encoding.ids[1:] for encoding in found])

    def _cleared(self, texts: Sequence[str], found: Sequence[list[int]]) -> list[list[int]]:
        return [
            ids if self._spellings.keys().isdisjoint(ids) else self._without_control(text, ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _without_control(self, text: str, ids: list[int]) -> list[int]:
        """Encode `text` again with every spelling of a control token in `ids` cut in two.

        If the vocabulary itself contains the spelling, as with SentencePiece's `</s>`, disabling
        special tokens does not prevent the tokenizer from producing it.
        """
        spelt = {self._spellings[i] for i in self._spellings.keys() & set(ids)}
        inside = "|".join(
            f"(?<={re.escape(word[:1])})(?={re.escape(word[1:])})" for word in spelt if word[1:]
        )
        parts = re.split(inside, text) if inside else [text]
        found = self._plain.encode_batch_fast(parts, add_special_tokens=False)
        joined = [i for encoding in found for i in encoding.ids]
        if not self._spellings.keys().isdisjoint(joined):
            raise DataError(
                f"text {text[:60]!r}: tokenizer {self.hf.name_or_path!r} can write {sorted(spelt)} "
                "only as its control token; remove the text or use another tokenizer"
            )
        return joined

    def decode(self, ids: Sequence[int]) -> str:
        """Decode `ids`; control tokens are written out, so remove them by id first."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def decode_pieces(self, ids: Sequence[int]) -> str:
        """Decode pieces that were encoded separately, as those of an annotation are.

        SentencePiece puts a space before each piece; it is removed if the piece itself starts with
        a line break or a space.
        """
        text = self.decode(ids)
        for lead in ("\n", " "):
            joint = self.decode([*self.encode(":"), *self.encode(f"{lead}:")])[1:-1]
            if joint.endswith(lead):
                text = text.replace(joint, lead)
        return text

    def __len__(self) -> int:
        """Return the vocabulary size with control tokens: the rows an embedding needs."""
        return len(self.hf)

    def probe(self) -> list[list[int]]:
        """Encode fixed multi-script strings, which identify the tokenizer of data or a model."""
        return self.encode_batch(PROBE)

    @property
    def fingerprint(self) -> str:
        """A short hash over the probe, the control ids and the rendered probe conversation.

        An `end` that equals eos is left out, so that older data without this id still matches.
        """
        control = self.control.named()
        if control["end"] == control["eos"]:
            del control["end"]
        data = [self.probe(), control, len(self), *([self.chat.probe()] if self.chat else [])]
        return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]

    def save(self, folder: Path, annotated: bool = False) -> None:
        """Write the `transformers` files and the record that `load` reads and checks.

        Args:
            folder: the folder to write to.
            annotated: True for a model that annotates its answers. The chat template then opens an
                annotation where an answer starts, and drops those of earlier answers.

        Raises:
            OSError: the disk is full.
        """
        template: Any = self.hf.chat_template
        if annotated:
            tokens = self.tokens["open"], self.tokens["close"]
            self.hf.chat_template = annotating(self.hf.get_chat_template(), *tokens)
        try:
            self.hf.save_pretrained(folder)
        except Exception as error:
            if failed := as_os_error(error, folder):
                raise failed from error
            raise
        finally:
            self.hf.chat_template = template
        record = {
            "control": self.control.named(),
            "tokens": dict(self.tokens),
            "template": template if self.chat else None,
            "fingerprint": self.fingerprint,
            "probe": self.probe(),
        }
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path) -> AnchoredTokenizer:
        """Load a tokenizer from a folder or hub id, whether `save` wrote it or not.

        Raises:
            ConfigError: it cannot be loaded.
            TokenizerMismatch: it encodes the saved probe differently now.
        """
        record = tokenizer_record(source)
        with loading("tokenizer", source):
            hf: Any = (PreTrainedTokenizerFast if record else AutoTokenizer).from_pretrained(
                str(source), trust_remote_code=False
            )
        tokenizer = cls.adopt(hf, record)
        if record:
            tokenizer.check(record["fingerprint"], f"{source}/{RECORD}")
        return tokenizer

    def check(self, fingerprint: str, source: str) -> None:
        """Check that this is the tokenizer that `source` was made with.

        Raises:
            TokenizerMismatch: the fingerprint differs from `fingerprint`.
        """
        if fingerprint != self.fingerprint:
            raise TokenizerMismatch(
                f"{source}: made with tokenizer {fingerprint}, but this one "
                f"({self.hf.name_or_path or 'in memory'}) is {self.fingerprint}: same text, other "
                "ids; use the tokenizer saved beside it or prepare the data again"
            )


def tokenizer_record(source: str | Path) -> dict[str, Any] | None:
    """Return the record that `save` wrote in a folder or hub id, or None if there is none."""
    path = file_of(source, RECORD)
    return json.loads(path.read_text(encoding="utf-8")) if path else None


def file_of(source: str | Path, name: str) -> Path | None:
    """Return the path of a file in a folder or hub id, downloaded if needed, or None."""
    path: Any = Path(source) / name
    if not Path(source).exists():
        quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
        flags = {f"_raise_exceptions_for_{fault}": value for fault, value in quiet.items()}
        try:
            path = cached_file(str(source), name, **flags)
        except (OSError, ValueError):  # no such repository: loading from it reports that
            path = None
    return Path(path) if path is not None and Path(path).is_file() else None


def _has_own_template(hf: PreTrainedTokenizerFast) -> bool:
    ours = hf.get_vocab().keys() >= set(CONTROL_TOKENS.values())
    return hf.chat_template is not None and not ours


def _control_tokens(hf: PreTrainedTokenizerFast, is_ours: bool) -> dict[str, str]:
    """Choose a spelling for each control token: an existing, a reserved or a new token.

    The last reserved tokens are taken, because other tools tend to take the first.
    """
    names: Collection[str] = CONTROL_TOKENS if is_ours else ("open", "close")
    known = hf.get_vocab()
    missing = [name for name in names if CONTROL_TOKENS[name] not in known]
    reserved = reserved_tokens(hf)[-len(missing) :] if missing else []
    instead = dict(zip(missing, reserved, strict=True)) if len(reserved) == len(missing) else {}
    return {name: instead.get(name, CONTROL_TOKENS[name]) for name in names}


@contextmanager
def loading(what: str, source: str | Path) -> Iterator[None]:
    """Turn any exception of `transformers` while loading into one line.

    Raises:
        ConfigError: the body raised an exception.
    """
    try:
        yield
    except Exception as error:  # a wrong field in a configuration may fail anywhere
        raise load_error(what, source, error) from error


def load_error(what: str, source: str | Path, error: Exception) -> ConfigError:
    """Shorten an error of `from_pretrained` to one line; say so if the folder does not exist."""
    name, path = str(source), Path(source)
    reason = " ".join(str(error).split())[:200]
    if "trust_remote_code" in str(error):
        reason = "needs custom code (auto_map), which is never run; use one without it"
    elif not isinstance(error, (OSError, ValueError, ImportError)):
        reason = f"transformers cannot load it ({type(error).__name__}: {reason}); use another one"
    elif not path.exists():
        deep = name.count("/") > 1 or ("/" in name and path.parent.is_dir())
        reason = "no such folder" + ("" if deep else f", and not found on the hub: {reason}")
    return ConfigError(f"{what} {name!r}: {reason}")
