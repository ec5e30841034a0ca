"""Foreign text made fit to be shown: on a terminal, in Markdown, and without the hub's tokens."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

# Control characters but tab and newline, what turns the direction of writing, line separators, lone surrogates.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{20,}")
_SHORTEST = 8
"""Letters of what is taken for a token; anything shorter would blot out common words."""


def visible(text: object) -> str:
    """Text whose control and direction characters stand as escapes, such as `\\x1b`, so that they have no effect."""
    return _INVISIBLE.sub(_escape, str(text))


def shown(text: object) -> str:
    """What may be printed of a text: `visible`, and without tokens."""
    return visible(without_tokens(str(text)))


def one_line(text: object) -> str:
    """`visible` text without line breaks and tabs."""
    return re.sub("[\t\n]", _escape, visible(text))


def markdown(text: object) -> str:
    """Text as Markdown that reads like it, also within a table: no element, and no link or picture with a name."""
    escaped = re.sub(r"[\\`|*~]|^[#>+-]|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(", r"\\\g<0>", one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def fenced(text: str, language: str = "") -> str:
    """A block of code in Markdown that holds the text, whatever fences stand in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text)}\n{fence}"


def in_code(text: object) -> str:
    """Text as code within a line of Markdown, whatever backticks stand in it."""
    shown = one_line(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    edge = "`" * (longest + 1)
    space = " " * (longest > 0)
    return f"{edge}{space}{shown}{space}{edge}"


def without_tokens(text: str) -> str:
    """Text in which every token of the Hugging Face hub is `***`: those known here, and whatever looks like one."""
    for token in sorted(_tokens(), key=len, reverse=True):
        text = text.replace(token, "***")
    return _TOKEN.sub("***", text)


def _tokens() -> set[str]:
    """Those that huggingface_hub would take: of the environment, and of the file that a login leaves."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    found = [os.environ.get(name, "") for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]
    with suppress(OSError, RuntimeError):
        file = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token")
        found.append(file.expanduser().read_text(encoding="utf-8", errors="replace"))
    return {token for text in found if len(token := text.strip()) >= _SHORTEST}


def _escape(found: re.Match[str]) -> str:
    letter = found[0]
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(letter)
    return short or (f"\\x{ord(letter):02x}" if ord(letter) < 256 else f"\\u{ord(letter):04x}")
