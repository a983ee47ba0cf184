"""Text embedders by name. Figures from different embedders are not comparable: report the name."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchored.config import validated
from anchored.endpoint import Endpoint, EndpointConfig, blocking, run_all
from anchored.errors import ConfigError
from anchored.files import folder_digest
from anchored.journal import Journal, content_key
from anchored.metrics.embedding import Embedder, unit
from anchored.models.static_vectors import static_ids, static_model_name, token_statistics

SENTENCE_TRANSFORMERS = "sentence-transformers:"
ENDPOINT = "endpoint:"
EMBEDDED_AT_ONCE = 64  # texts per request


def load_embedder(name: str, key_env: str = "OPENAI_API_KEY") -> Embedder:
    """Load the embedder called `name`.

    Args:
        name: `static`, `sentence-transformers:<folder or hub id>`, optionally `@<revision>`, or
            `endpoint:<url>#<model>`.
        key_env: the environment variable with the endpoint's key.

    Raises:
        ConfigError: no such embedder, or its model cannot be loaded.
    """
    if name == "static":
        return StaticEmbedder()
    if name.startswith(SENTENCE_TRANSFORMERS) and name != SENTENCE_TRANSFORMERS:
        source, _, revision = name.removeprefix(SENTENCE_TRANSFORMERS).partition("@")
        return SentenceTransformerEmbedder(source, revision or None)
    if name.startswith(ENDPOINT):
        url, _, model = name.removeprefix(ENDPOINT).rpartition("#")
        fields = {"url": url, "model": model, "key_env": key_env}
        return EndpointEmbedder(validated(EndpointConfig, fields, f"embedder {name!r}"))
    raise ConfigError(
        f"embedder {name!r}: unknown; use static, {SENTENCE_TRANSFORMERS}<folder or hub id> or "
        f"{ENDPOINT}<url>#<model>"
    )


class StaticEmbedder:
    """Weighted sums of static word vectors: thousands of texts per second, without torch.

    Sums of word vectors all share one direction, the more so the longer the texts, which hides
    differences between them. So the vectors are scaled to length 1, the mean of English prose is
    subtracted, and they are scaled to length 1 again; see `token_statistics`.

    The last column is 1 for texts without any known word (empty, or only emoji) and 0 for all
    others, so that such texts equal each other and differ from everything else.
    """

    def __init__(self) -> None:
        self.name = static_model_name()
        self._tokens, self._mean = token_statistics()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return unit vectors [N, D]."""
        vectors = np.zeros((len(texts), len(self._mean) + 1))
        for vector, ids in zip(vectors, static_ids(texts), strict=True):
            distinct, counts = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
            summed = counts @ self._tokens[distinct]
            if length := np.linalg.norm(summed):
                vector[:-1] = summed / length - self._mean
            else:
                vector[-1] = 1
        return unit(vectors)

    @staticmethod
    def wordless(vectors: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of the vectors [N, D] are of texts without any known word [N]."""
        return vectors[:, -1] == 1


class SentenceTransformerEmbedder:
    """A sentence-transformers model from a folder or the hub, in single precision.

    Args:
        source: a folder, or a hub id, which is downloaded on first use.
        revision: revision of the hub id.

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
        """Return vectors [N, D] as the model computes them."""
        vectors = self._model.encode(list(texts), batch_size=32, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float64)


class EndpointEmbedder:
    """A model served at `/embeddings`; vectors are fetched in advance, then looked up.

    A server does not identify its weights, so `name` is the server's name of the model.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.name = f"{config.model} by /embeddings"
        self._vectors: dict[str, NDArray[np.float64]] = {}

    def fetch(self, texts: Iterable[str], journal: Path | None = None) -> None:
        """Request the vectors of texts that neither this object nor the journal has.

        Raises:
            EndpointError: a request finally failed; earlier results are in the journal.
            DataError: the journal is damaged or in use.
        """
        with Journal(journal) as rows:
            keys = {text: self._key(text) for text in texts if text not in self._vectors}
            left = [text for text, key in keys.items() if rows.get(key) is None]
            blocking(self._ask(left, rows))
            self._vectors |= {text: _unpacked(rows[key]["vector"]) for text, key in keys.items()}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return vectors [N, D] in single precision as the server sends them."""
        self.fetch(texts)
        return np.stack([self._vectors[text] for text in texts])

    def _key(self, text: str) -> str:
        return content_key({"text": text, "model": self.config.model, "task": "embedding"})

    async def _ask(self, texts: Sequence[str], journal: Journal) -> None:
        batches = [texts[i : i + EMBEDDED_AT_ONCE] for i in range(0, len(texts), EMBEDDED_AT_ONCE)]

        def keep(batch: Sequence[str], vectors: list[list[float]]) -> None:
            for text, vector in zip(batch, vectors, strict=True):
                journal.put(self._key(text), {"vector": _packed(vector)})

        if batches:
            async with Endpoint(self.config) as endpoint:
                await run_all(batches, endpoint.embed, keep, at_once=self.config.concurrency)


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


def _unpacked(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)


def _load(source: str, revision: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError:
        raise ConfigError(
            f"embedder {source!r}: sentence-transformers is not installed; "
            "pip install sentence-transformers, or use --embedder static"
        ) from None
    from anchored.models.build import quiet_transformers

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
    """Return the hub's commit, or a digest of the folder's weights and settings."""
    if not Path(source).is_dir():
        configs = (getattr(part, "config", None) for part in model.modules())
        return next((c for c in (getattr(x, "_commit_hash", None) for x in configs) if c), None)
    return folder_digest(Path(source))
