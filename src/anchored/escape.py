"""Text of models and users made safe to show: nothing invisible, endless or read as markup."""

from __future__ import annotations

import html
import unicodedata

MAX_LINE_CHARS = 1_500
MAX_TEXT_CHARS = 4_000
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t")


def visible(text: str) -> str:
    """`text` with control, format, bidirectional and surrogate characters written as `⟨U+202E⟩`.

    Line feeds and tabs stay. The result can be encoded as UTF-8 and holds no terminal escape.
    """
    if text.isascii() and text.isprintable():
        return text
    hidden = {c for c in set(text) - _KEPT if unicodedata.category(c) in _HIDDEN}
    return text.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in hidden}) if hidden else text


def cut(text: str, line_chars: int = MAX_LINE_CHARS, chars: int = MAX_TEXT_CHARS) -> str:
    """`text` cut to so many characters, and its over-long lines; each cut says how much is gone."""
    lines = [_cut_at(line, line_chars) for line in text[:chars].split("\n")]
    return "\n".join(lines) + _note(len(text) - chars)


def _cut_at(line: str, limit: int) -> str:
    return line[:limit] + _note(len(line) - limit)


def _note(hidden: int) -> str:
    return f" … [{hidden:,} more characters]" if hidden > 0 else ""


def shorten(text: str, chars: int) -> str:
    """One line of at most `chars` characters for labels, ending in `…` where something is gone."""
    line = " ".join(visible(text).split())
    return line if len(line) <= chars else f"{line[: chars - 1].rstrip()}…"


def escape(text: str) -> str:
    """`text` for HTML or SVG, in content and in quoted attributes alike."""
    return html.escape(visible(text), quote=True)
