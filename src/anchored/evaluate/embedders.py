"""Embedders by name. Figures from different ones do not compare: `name` goes beside each."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from anchored.errors import ConfigError
from anchored.evaluate.embedding import StaticEmbedder
from anchored.files import folder_digest

SENTENCE_TRANSFORMERS = "sentence-transformers:"


class Embedder(Protocol):
    """Texts to vectors; `name` states backend, model, version and how much of a text is read."""

    name: str

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """One row a text [N, D], the same whatever the other texts are."""
        ...


def load_embedder(name: str) -> Embedder:
    """`static`, or `sentence-transformers:<folder or hub id>`, optionally `@<revision>`.

    Raises:
        ConfigError: no such embedder, or its model cannot be loaded.
    """
    if name == "static":
        return StaticEmbedder()
    if name.startswith(SENTENCE_TRANSFORMERS) and name != SENTENCE_TRANSFORMERS:
        source, _, revision = name.removeprefix(SENTENCE_TRANSFORMERS).partition("@")
        return SentenceTransformerEmbedder(source, revision or None)
    raise ConfigError(
        f"embedder {name!r}: unknown; use static or {SENTENCE_TRANSFORMERS}<folder or hub id>"
    )


class SentenceTransformerEmbedder:
    """A sentence-transformers model from a folder or the hub, in single precision.

    Args:
        source: a folder, or a hub id, which is downloaded on first use.
        revision: of the hub id.

    Raises:
        ConfigError: sentence-transformers is not installed, or there is no such model.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        self._model = _load(source, revision)
        version = metadata.version("sentence-transformers")
        label = f"{_label(source)}@{_revision(source, self._model) or revision or 'unknown'}"
        cut = self._model.max_seq_length
        self.name = f"{label}, sentence-transformers {version}, first {cut or 'all'} tokens"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Vectors [N, D] as the model gives them."""
        vectors = self._model.encode(list(texts), batch_size=32, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)


def _load(source: str, revision: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ConfigError(
            f"embedder {source!r}: sentence-transformers is not installed; "
            "pip install sentence-transformers, or use --embedder static"
        ) from None
    from anchored.train.models import quiet_transformers

    try:
        with quiet_transformers():
            return SentenceTransformer(
                source, revision=revision, model_kwargs={"use_safetensors": True}
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"embedder {source!r}: {' '.join(str(error).split())[:200]}") from None


def _label(source: str) -> str:
    return Path(source).resolve().name if Path(source).is_dir() else source


def _revision(source: str, model: Any) -> str | None:
    """The hub's commit, or a digest of the folder's weights and settings."""
    if not Path(source).is_dir():
        configs = (getattr(part, "config", None) for part in model.modules())
        return next((c for c in (getattr(x, "_commit_hash", None) for x in configs) if c), None)
    return folder_digest(Path(source))
