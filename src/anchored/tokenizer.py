"""Tokenizers, trained here or existing ones; control tokens are ids that no text can produce."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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

CHAT_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

PROBE = (
    "Once upon a time, Mara's 2 ships sailed.\n\nThe end?",
    "\ntopic: family_relationships\nplace:",
    "  Größe\tnaïve — “quoted” 東京 Привет مرحبا 👩‍🚀\r\n",
    "def f(x):\n    return x**2  # 3.14",
    "<|user|><|annotation|></s><|endoftext|>",
)


@dataclass(frozen=True)
class ControlIds:
    """The ids only this package writes.

    `bos` and `pad` equal `eos` where a tokenizer has no token of its own for them. A `pad` that is
    its unknown token too is not.
    """

    bos: int
    eos: int
    pad: int
    system: int
    user: int
    assistant: int
    open: int
    close: int


class AnchoredTokenizer:
    """A `transformers` tokenizer, its control ids, and encoding that never yields one from text.

    Args:
        hf: the tokenizer, with the control tokens added; use `train`, `adopt` or `load` to get one.
    """

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        self.hf = hf
        eos: Any = hf.eos_token_id
        ids: dict[str, Any] = {
            name: hf.convert_tokens_to_ids(token) for name, token in CONTROL_TOKENS.items()
        }
        bos: Any = hf.bos_token_id if hf.bos_token_id is not None else eos
        # What text may yield as unknown cannot be ours.
        has_pad = hf.pad_token_id not in (None, hf.unk_token_id)
        pad: Any = hf.pad_token_id if has_pad else eos
        self.control = ControlIds(bos=bos, eos=eos, pad=pad, **ids)
        numbers = asdict(self.control).values()
        self._spellings = {number: str(hf.convert_ids_to_tokens(number)) for number in numbers}
        self._plain = Tokenizer.from_str(hf.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_padding()
        self._plain.no_truncation()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> AnchoredTokenizer:
        """A byte-level BPE of `vocab_size` entries, control tokens included, from `texts`."""
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
    def adopt(cls, hf: PreTrainedTokenizerFast) -> AnchoredTokenizer:
        """Any fast tokenizer; the control tokens it lacks are added.

        `train.models.load_model` grows a model's embedding to match.

        Raises:
            ConfigError: the tokenizer has no end-of-sequence token or no fast (Rust) backend.
        """
        if hf.eos_token_id is None or not hf.is_fast:
            raise ConfigError(
                f"tokenizer {hf.name_or_path!r}: needs an eos_token and a fast backend "
                "(tokenizer.json)"
            )
        hf.add_special_tokens(
            {"extra_special_tokens": list(CONTROL_TOKENS.values())},  # pyright: ignore
            replace_extra_special_tokens=False,
        )
        if hf.chat_template is None:
            hf.chat_template = CHAT_TEMPLATE
        return cls(hf)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as plain text: control tokens spelt in it become ordinary pieces.

        Raises:
            DataError: the tokenizer has no other way to write what `text` spells.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, in parallel in Rust."""
        texts = list(texts)
        found = [e.ids for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
        return [
            ids if self._spellings.keys().isdisjoint(ids) else self._without_control(text, ids)
            for text, ids in zip(texts, found, strict=True)
        ]

    def _without_control(self, text: str, ids: list[int]) -> list[int]:
        """`text` encoded anew with every spelling of a control token in `ids` cut in two.

        Where the vocabulary itself holds the spelling, as with SentencePiece's `</s>`, disabling
        special tokens does not keep the model from finding it.
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
        """The text of `ids`; control tokens are written out, so cut them away by id first."""
        return self._plain.decode(list(ids), skip_special_tokens=False)

    def decode_pieces(self, ids: Sequence[int]) -> str:
        """The text of pieces that were encoded apart, as those of an annotation are.

        SentencePiece puts a space before each piece; before a line break or a space of the piece's
        own it is one too many, and taken out.
        """
        text = self.decode(ids)
        for lead in ("\n", " "):
            joint = self.decode([*self.encode(":"), *self.encode(f"{lead}:")])[1:-1]
            if joint.endswith(lead):
                text = text.replace(joint, lead)
        return text

    def __len__(self) -> int:
        """Size of the vocabulary with the control tokens: the rows a model's embedding needs."""
        return len(self.hf)

    def probe(self) -> list[list[int]]:
        """Ids of fixed multi-script strings, compared when a tokenizer meets data or a model."""
        return self.encode_batch(PROBE)

    @property
    def fingerprint(self) -> str:
        """Short hash over the probe and the control ids."""
        data = json.dumps([self.probe(), asdict(self.control), len(self)])
        return hashlib.sha256(data.encode()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """The `transformers` files, and the probe's ids to be checked at load.

        Raises:
            OSError: the disk is full.
        """
        try:
            self.hf.save_pretrained(folder)
        except Exception as error:
            if failed := as_os_error(error, folder):
                raise failed from error
            raise
        record = {
            "control": asdict(self.control),
            "fingerprint": self.fingerprint,
            "probe": self.probe(),
        }
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path) -> AnchoredTokenizer:
        """From a folder written by `save`, any other tokenizer folder, or a hub id.

        Raises:
            ConfigError: nothing there that can be loaded.
            TokenizerMismatch: a saved probe is encoded differently now.
        """
        record = Path(source) / RECORD
        try:
            hf: Any = (
                PreTrainedTokenizerFast if record.is_file() else AutoTokenizer
            ).from_pretrained(str(source))
        except (OSError, ValueError) as error:
            raise load_error("tokenizer", source, error) from None
        tokenizer = cls.adopt(hf)
        if record.is_file():
            tokenizer.check(
                json.loads(record.read_text(encoding="utf-8"))["fingerprint"], str(record)
            )
        return tokenizer

    def check(self, fingerprint: str, source: str) -> None:
        """Sees that this is the tokenizer that `source` was made with.

        Raises:
            TokenizerMismatch: its fingerprint is not `fingerprint`.
        """
        if fingerprint != self.fingerprint:
            raise TokenizerMismatch(
                f"{source}: made with tokenizer {fingerprint}, but this one "
                f"({self.hf.name_or_path or 'in memory'}) is {self.fingerprint}: same text, other "
                "ids; use the tokenizer saved beside it or prepare the data again"
            )


def load_error(what: str, source: str | Path, error: Exception) -> ConfigError:
    """One line for what `from_pretrained` says in many; of a path, whether it is there at all."""
    name, path = str(source), Path(source)
    reason = " ".join(str(error).split())[:200]
    if not path.exists():
        deep = name.count("/") > 1 or ("/" in name and path.parent.is_dir())
        reason = "no such folder" + ("" if deep else f", and not found on the hub: {reason}")
    return ConfigError(f"{what} {name!r}: {reason}")
