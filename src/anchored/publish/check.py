"""Selects, scrubs and checks the files of a model folder before they go to the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from anchored.errors import DataError
from anchored.models import RECORD
from anchored.publish import CARD, PLACE

# Formats that run code when they are loaded, and code itself.
REFUSED = frozenset(
    {
        ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5",
        ".keras", ".py", ".pyc", ".sh", ".bat", ".ps1", ".exe", ".so", ".dll", ".dylib",
    }
)  # fmt: skip
# First bytes, by suffix, of the binary files that may be sent: weights, SentencePiece, pictures.
_BINARY = {
    ".gguf": b"GGUF",
    ".model": b"\n",
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".jpeg": b"\xff\xd8\xff",
    ".gif": b"GIF8",
    ".webp": b"RIFF",
}
_LONGEST_LINE = 2**24  # characters searched at once
SECRETS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{30,}",
    "an OpenAI or Anthropic key": r"sk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}",
    "an AWS key": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "a Google key": r"AIza[A-Za-z0-9_-]{35}",
    "a Weights & Biases key": r"(?i:wandb[a-z_]*key)\W{1,5}[0-9a-f]{40}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"[a-z][a-z0-9+.-]*://[^\s/:@\"]+:[^\s/@\"]+@",
}
_SECRET_NAMES = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD)$")
_SHORTEST_SECRET = 12
_PATH_FIELDS = ("_name_or_path", "name_or_path")
_RUN_FIELDS = ("config", "preferences")


@dataclass(frozen=True)
class Upload:
    """One file of a push.

    Args:
        name: path relative to the model folder.
        source: path of the file.
        text: scrubbed content to send instead, without local paths; None to send it as it is.
    """

    name: str
    source: Path
    text: str | None = None

    @property
    def size(self) -> int:
        """Number of bytes to send."""
        return self.source.stat().st_size if self.text is None else len(self.text.encode())


def uploads(folder: Path, repo: str) -> list[Upload]:
    """Return the files of a model folder, without hidden files and subfolders.

    Raises:
        DataError: a settings file is not JSON.
    """
    names = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    return [Upload(path.name, path, _scrubbed(path, repo)) for path in names]


def _scrubbed(path: Path, repo: str) -> str | None:
    """Return scrubbed content: the repository's name in the card, no local paths in settings."""
    if path.name == CARD:
        return path.read_text(encoding="utf-8", errors="replace").replace(PLACE, repo)
    if path.name not in (RECORD, "config.json", "tokenizer_config.json"):
        return None
    data = _settings(path)
    for field in (*_PATH_FIELDS, *(_RUN_FIELDS if path.name == RECORD else ())):
        if field in data:
            data[field] = _without_paths(data[field])
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; fix or remove it") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: has {type(data).__name__}, not an object; fix or remove it")
    return data


def _without_paths(data: Any) -> Any:
    """Return nested settings with every absolute path cut to its last part."""
    if isinstance(data, dict):
        return {key: _without_paths(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_without_paths(value) for value in data]
    if not isinstance(data, str):
        return data
    if PureWindowsPath(data).drive:
        return PureWindowsPath(data).name
    return PurePosixPath(data).name if data.startswith(("/", "~/", "file:/")) else data


def problems(files: list[Upload], environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the reasons against a push, one line each; a secret is named by kind, never shown."""
    names = [file.name for file in files]
    if not any(name.endswith(".safetensors") for name in names):
        yield "no weights in safetensors; save the model with `save_pretrained`"
    if "config.json" not in names:
        yield "no config.json to load the model by; save the model with `save_pretrained`"
    for file in files:
        if Path(file.name).suffix.lower() in REFUSED or _is_script(file):
            yield f"{file.name}: pickle or code, which runs when it is loaded; remove the file"
        elif not _is_known_binary(file):
            yield from (f"{file.name}: {found}" for found in _in_text(file, environment))


def _is_script(file: Upload) -> bool:
    return _beginning(file).startswith(b"#!")


def _is_known_binary(file: Upload) -> bool:
    suffix, head = Path(file.name).suffix.lower(), _beginning(file)
    if suffix == ".safetensors":
        return head[8:9] == b"{"  # a JSON header follows its length
    return suffix in _BINARY and head.startswith(_BINARY[suffix])


def _beginning(file: Upload) -> bytes:
    with file.source.open("rb") as opened:
        return opened.read(16)


def _in_text(file: Upload, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets in a text file; other files cannot be searched, and may be pickles."""
    try:
        yield from _secrets(_lines(file), environment)
    except UnicodeDecodeError:
        yield "not safetensors, GGUF, a picture or UTF-8 text, so it may hide anything; remove it"


def _lines(file: Upload) -> Iterator[str]:
    """Yield the lines to send, with a few MB in memory at a time, however large the file.

    Raises:
        UnicodeDecodeError: the file is not UTF-8 text. NUL is refused, although it is valid UTF-8,
            since UTF-16 text contains it.
    """
    if file.text is not None:
        yield from file.text.split("\n")
        return
    with file.source.open(encoding="utf-8", newline="\n") as opened:
        while line := opened.readline(_LONGEST_LINE):
            if "\0" in line:
                raise UnicodeDecodeError("utf-8", b"\0", 0, 1, "NUL")
            yield line


def _secrets(lines: Iterable[str], environment: Mapping[str, str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        for kind, pattern in SECRETS.items():
            if re.search(pattern, line):
                yield f"line {number} looks like {kind}; remove it"
        for name, value in environment.items():
            if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST_SECRET and value in line:
                yield f"line {number} contains the value of ${name}; remove it"
