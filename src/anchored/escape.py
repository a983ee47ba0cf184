"""Make text from models and users safe to show: nothing hidden, endless or read as markup."""

from __future__ import annotations

import html
import unicodedata

MAX_LINE_CHARS = 1_500
MAX_TEXT_CHARS = 4_000
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t")


def visible(text: str) -> str:
    """Write control, format, bidirectional and surrogate characters in `text` as `⟨U+202E⟩`.

    Line feeds and tabs stay. The result is valid UTF-8 and contains no terminal escape.
    """
    if text.isascii() and text.isprintable():
        return text
    hidden = {c for c in set(text) - _KEPT if unicodedata.category(c) in _HIDDEN}
    return text.translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in hidden}) if hidden else text


def cut(text: str, line_chars: int = MAX_LINE_CHARS, chars: int = MAX_TEXT_CHARS) -> str:
    """Cut `text` to `chars` characters and its lines to `line_chars`, with a note at each cut."""
    lines = [_cut_at(line, line_chars) for line in text[:chars].split("\n")]
    return "\n".join(lines) + _note(len(text) - chars)


def _cut_at(line: str, limit: int) -> str:
    return line[:limit] + _note(len(line) - limit)


def _note(hidden: int) -> str:
    return f" … [{hidden:,} more characters]" if hidden > 0 else ""


def shorten(text: str, chars: int) -> str:
    """Return `text` as a label: one line of at most `chars` characters, ending in `…` if cut."""
    line = " ".join(visible(text).split())
    return line if len(line) <= chars else f"{line[: chars - 1].rstrip()}…"


def escape(text: str) -> str:
    """Escape `text` for HTML or SVG, both in content and in quoted attributes."""
    return html.escape(visible(text), quote=True)
