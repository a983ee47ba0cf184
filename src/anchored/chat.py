"""A model's own chat template: conversations as special tokens and the text between them.

A template is rendered with the messages in it, so their text ends up next to its special tokens.
Every spelling of a special token in a message is therefore broken up before rendering and restored
after it: what a user writes stays text, and a conversation without such spellings renders exactly
as by `apply_chat_template`. Role names that a template writes as plain text (OLMo-2's `<|user|>`)
are text here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from anchored.errors import ConfigError, DataError

ROLES = ("system", "user", "assistant")
Turns = Sequence[dict[str, str]]

_ANSWER = "An answer 1."
_PROBE: Turns = (
    {"role": "user", "content": " Who is Mara?\n\n1 + 2 "},
    {"role": "assistant", "content": "A miller."},
    {"role": "user", "content": "Größe?"},
)
_RESERVED = re.compile(
    r"[<\[]\|?(reserved|unused|extra|special|dummy|placeholder)[a-z_]*\d+\|?[>\]]", re.IGNORECASE
)
_MARKS = range(0xF0000, 0xFFFFE)  # private use: no text contains all of them
# The default date in Llama 3's templates. With the current date, prepared data and seeded samples
# would differ from one day to the next. It is a macro because `apply_chat_template` turns a
# function in its arguments into text, and because `strftime` depends on the locale of the process.
_DAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday"}
_DAY |= {"%a": "Fri", "%w": "5", "%u": "5", "%j": "208", "%H": "12", "%I": "12", "%M": "00"}
_DAY |= {"%S": "00", "%p": "PM", "%F": "2024-07-26", "%T": "12:00:00", "%-d": "26", "%-m": "7"}
_DAY |= {"%e": "26", "%D": "07/26/24", "%x": "07/26/24", "%X": "12:00:00", "%h": "Jul"}
_DAY |= {"%c": "Fri Jul 26 12:00:00 2024", "%-H": "12", "%-I": "12", "%-M": "0", "%Z": "UTC"}
_ONE_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace('{code}', '{value}')" for code, value in _DAY.items())
    + " }}{% endmacro %}\n"
)
_THOUGHT = re.compile(r"[<\[](/?)(?:think|thinking|thought|reasoning)[>\]]", re.IGNORECASE)
_WHOLE_THOUGHT = re.compile(
    rf"{_THOUGHT.pattern}.*{_THOUGHT.pattern}\s*", re.IGNORECASE | re.DOTALL
)


class Stretch(NamedTuple):
    """A part of a rendered conversation: one special token, or the text up to the next."""

    text: str
    special: bool


class ChatTemplate:
    """The chat template of `hf`, rendered so that no message can write a special token.

    Args:
        hf: a tokenizer with a chat template.

    Attributes:
        end: the special token that ends an answer; eos if the template has none.

    Raises:
        ConfigError: the template cannot be rendered.
    """

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        self._hf = hf
        special = [t for t in hf.added_tokens_decoder.values() if t.special and len(t.content) > 1]
        self._special = re.compile(
            "|".join(map(_pattern, sorted(special, key=lambda t: -len(t.content))))
        )
        spellings = [token.content for token in special]
        self._spelt = re.compile("|".join(map(re.escape, spellings)))
        self._beginnings = {text[:n] for text in spellings for n in range(1, len(text))}
        self._longest = max(map(len, spellings), default=0)
        self.end = self._find_end()

    def stretches(self, turns: Turns, answer_next: bool) -> list[Stretch]:
        """Render `turns` ({role, content}); with `answer_next`, up to the start of an answer.

        Raises:
            DataError: the template refuses the conversation.
        """
        mark = _unused_mark("".join(turn["content"] for turn in turns))
        guarded = [
            {"role": turn["role"], "content": self._guarded(turn["content"], mark)}
            for turn in turns
        ]
        found = self._split(self._render(guarded, answer_next))
        return [Stretch(text.replace(mark, ""), special) for text, special in found]

    def probe(self) -> list[Stretch]:
        """Render a fixed conversation; templates that render it alike count as the same."""
        return self.stretches(_PROBE, True)

    def probe_ids(self) -> list[int]:
        """Encode the same conversation by `apply_chat_template`."""
        encoded: Any = self._hf.apply_chat_template(
            list(_PROBE), chat_template=undated(self._hf), add_generation_prompt=True
        )
        return encoded["input_ids"]

    def opened_thought(self) -> str | None:
        """Return the tag (`<think>`) by which a prompt opens a thought that the answer must end."""
        behind = self._render(_PROBE, True).rpartition(_PROBE[-1]["content"])[2]
        tags = list(_THOUGHT.finditer(behind))
        return tags[-1][0] if tags and not tags[-1][1] else None

    def answer_header(self) -> str:
        """Return the header before an answer that a generation prompt leaves to the model.

        Such a header is a channel (`<|channel|>final<|message|>`), recognised by its special
        tokens. A thought is left out, because an answer without one has no thought block.
        """
        turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER})
        prompt, whole = self._render(turns[:1], True), self._render(turns, answer_next=False)
        before, found, _ = whole.removeprefix(prompt).rpartition(_ANSWER)
        header = _WHOLE_THOUGHT.sub("", before)
        is_one = found and whole.startswith(prompt) and self._special.search(header)
        return header if is_one else ""

    def _guarded(self, content: str, mark: str) -> str:
        """Put `mark` inside each special token that `content` spells, or ends with a part of.

        The template could complete such a part. White space stays at the ends, because many
        templates trim it.
        """
        while self._spelt.search(content):  # one spelling may contain another
            content = self._spelt.sub(lambda at: at[0][0] + mark + at[0][1:], content)
        bare = content.rstrip()
        for n in range(1, min(self._longest, len(bare) + 1)):
            if bare[-n:] in self._beginnings:
                at = len(bare) - n + 1
                return content[:at] + mark + content[at:]
        return content

    def _render(self, turns: Turns, answer_next: bool) -> str:
        if not turns:
            raise DataError(f"{self._name}: there is nothing before the answer; give it a prompt")
        try:
            text: Any = self._hf.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=undated(self._hf),
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        except Exception as error:  # a template is a program and may fail in any way
            reason = " ".join(str(error).split())[:200]
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"{self._name} refuses a conversation of {roles}: {reason}; change its turns"
            ) from None
        return text

    @property
    def _name(self) -> str:
        return f"chat template of tokenizer {self._hf.name_or_path!r}"

    def _split(self, rendered: str) -> Iterator[Stretch]:
        at = 0
        for match in self._special.finditer(rendered):
            if match.start() > at:
                yield Stretch(rendered[at : match.start()], special=False)
            yield Stretch(match[0].strip(), special=True)
            at = match.end()
        if at < len(rendered):
            yield Stretch(rendered[at:], special=False)

    def _find_end(self) -> str:
        turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER})
        try:
            _, found, behind = self._render(turns, answer_next=False).rpartition(_ANSWER)
        except DataError as error:
            raise ConfigError(f"{error}; this package cannot use it") from None
        if not found:
            raise ConfigError(f"{self._name} drops the answer; use a tokenizer with another one")
        match = self._special.search(behind)
        return match[0].strip() if match else str(self._hf.eos_token)


def _pattern(token: AddedToken) -> str:
    """Match a token as `tokenizers` does: with the white space at its sides that it strips."""
    left, right = (r"\s*" if strips else "" for strips in (token.lstrip, token.rstrip))
    return f"{left}{re.escape(token.content)}{right}"


def _unused_mark(text: str) -> str:
    return next(mark for mark in map(chr, _MARKS) if mark not in text)


def undated(hf: PreTrainedTokenizerBase) -> str:
    """Return the chat template of `hf`, changed to write 26 July 2024 as the current date."""
    template = hf.get_chat_template()
    return _ONE_DAY + template if "strftime_now" in template else template


def reserved_tokens(hf: PreTrainedTokenizerFast) -> list[str]:
    """List a tokenizer's reserved tokens (`<|reserved_special_token_5|>`, `<unused5>`).

    They are in the order of their ids. Those that already have a role, or that the chat template
    uses, are left out.
    """
    taken = {str(token) for token in hf.special_tokens_map.values() if isinstance(token, str)}
    template = str(hf.chat_template or "")
    return [
        token.content
        for _, token in sorted(hf.added_tokens_decoder.items())
        if _RESERVED.fullmatch(token.content)
        and token.content not in taken
        and token.content not in template
    ]


def own_template(tokens: Mapping[str, str]) -> str:
    """Return the template of this package's format, given the spellings of its control tokens."""
    names = ", ".join(f"'{role}': {json.dumps(tokens[role])}" for role in ROLES)
    return (
        "{{ bos_token or eos_token }}"
        f"{{% set roles = {{{names}}} %}}"
        "{% for message in messages %}{{ roles[message['role']] }}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ roles['assistant'] }}{% endif %}"
    )


def annotating(template: str, opening: str, closing: str) -> str:
    """Return `template` for inference: it opens an annotation where the answer starts.

    It drops the annotations of earlier answers, which a client may have sent back.
    """
    closing = json.dumps(closing)
    cut = (
        "{%- set history = namespace(messages=[]) -%}{%- for message in messages -%}"
        f"{{%- if message['role'] == 'assistant' and not loop.last and {closing} in "
        "(message['content'] or '') -%}"
        "{%- set history.messages = history.messages + "
        f"[dict(message, content=message['content'].split({closing})[-1])] -%}}"
        "{%- else -%}{%- set history.messages = history.messages + [message] -%}{%- endif -%}"
        "{%- endfor -%}{%- set messages = history.messages -%}{{ '' }}"
    )
    return cut + beginning(template, opening)


def beginning(template: str, text: str) -> str:
    """Return `template` with `text` after a prompt, where the answer starts."""
    # Jinja drops one line break at the end of a template; before our addition it would be text.
    template = template.removesuffix("\n")
    return f"{template}{{{{ {json.dumps(text)} if add_generation_prompt else '' }}}}"
