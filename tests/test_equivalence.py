from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anchored.errors import ConfigError
from anchored.metrics.equivalence import (
    ComparedText,
    EmbeddingThreshold,
    Exact,
    WordOverlap,
    greedy,
    overlap,
    short_rule,
)
from anchored.models.equivalence_classifier import Classifier


def test_each_text_joins_the_first_class_whose_first_member_it_matches() -> None:
    near = {(0, 1), (1, 2), (0, 3), (2, 3)}  # 2 matches 1, but 1 heads no class; 3 matches 0 and 2
    labels = greedy(range(5), lambda i, heads: ((head, i) in near for head in heads))
    assert labels == [0, 0, 1, 0, 2]


def test_exact_classes_ignore_outer_space_alone() -> None:
    assert Exact().partition(["Orion", "Vega", " Orion\n", "orion"]) == [0, 1, 0, 2]


def brute_force_v1(texts: list[str]) -> list[int]:
    """NoveltyBench v1.0's loops over texts of up to five words; equal texts are always the same."""
    labels = [-1] * len(texts)
    classes = 0
    for i in range(len(texts)):
        if labels[i] >= 0:
            continue
        labels[i] = classes
        for j in range(i + 1, len(texts)):
            first, second = (t.strip().lower().split() for t in (texts[i], texts[j]))
            longer = max(len(first), len(second))
            shared = 2 * len(set(first) & set(second)) >= longer
            if labels[j] == -1 and (first == second or shared):
                labels[j] = classes
        classes += 1
    return labels


def test_short_texts_are_partitioned_as_v1_does_whatever_the_threshold() -> None:
    rng = random.Random(0)
    for _ in range(100):
        texts = [
            " ".join(rng.choices(["the", "Fox", "fox", "sea", "a"], k=rng.randint(0, 5)))
            for _ in range(10)
        ]
        for threshold in (0.1, 0.9):
            assert WordOverlap(threshold).partition(texts) == brute_force_v1(texts)


def test_overlap_is_common_words_over_those_of_the_richer_text() -> None:
    assert overlap(frozenset("abc"), frozenset("bcde")) == 2 / 4
    assert overlap(frozenset("aaa"), frozenset("aaa")) == 1.0
    assert overlap(frozenset(), frozenset()) == 1.0


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a b c d e", "a b c", True),
        ("a b c d e", "a b", False),
        ("a b c d e f", "a b", None),
        ("a b c d e", "a b c d e f", None),
    ],
)
def test_texts_of_at_most_five_words_go_by_v1s_rule(
    first: str, second: str, same: bool | None
) -> None:
    assert short_rule(ComparedText.of(first), ComparedText.of(second)) is same


def test_longer_texts_go_by_the_threshold() -> None:
    texts = ["one two three four five six", "one two three four nine ten", "one 2 3 4 5 6"]
    assert WordOverlap(0.5).partition(texts) == [0, 0, 1]
    assert WordOverlap(0.7).partition(texts) == [0, 1, 2]
    assert WordOverlap(0.1).partition(texts) == [0, 0, 0]
    assert WordOverlap(0.7).name == "distinct word overlap >= 0.7, 0.5 up to 5 words"


NASTY = [
    "",
    " ",
    "!?",
    "the",
    "the " * 5,
    "the " * 300,
    "a b " * 40,
    "0 " * 9,
    "猫" * 50,
    "日本" * 9,
]


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_equal_texts_share_a_class_under_every_backend(text: str, threshold: float) -> None:
    assert Exact().partition([text, text]) == [0, 0]
    assert WordOverlap(threshold).partition([text] * 8) == [0] * 8
    vectors = np.array([[0.6, 0.8], [0.6, 0.8]])
    backend = EmbeddingThreshold(Compass(), 1.1)  # no cosine reaches it
    assert backend.partition_vectors([text, text], vectors) == [0, 0]
    assert backend.partition_vectors([text, f"{text} x"], vectors) == [0, 1]


def test_texts_without_spaces_are_compared_by_their_words() -> None:
    moulds = [f"这是一个关于{hero}的故事，他很喜欢水果。" for hero in ("老人", "女孩", "木匠")]
    assert WordOverlap().partition(moulds) == [0, 0, 0]
    assert WordOverlap().partition(["我喜欢苹果", "我讨厌下雨天", "我喜欢香蕉"]) == [0, 1, 0]


def test_one_text_looping_longer_than_another_is_the_same_answer() -> None:
    assert WordOverlap().partition(["the cat sat " * n for n in (3, 30, 300)]) == [0, 0, 0]


class Compass:
    name = "compass"

    def embed(self, texts: Any) -> np.ndarray:
        return np.array([[np.cos(float(t)), np.sin(float(t))] for t in texts])


def test_embedding_classes_hold_what_is_close_to_their_first_member() -> None:
    backend = EmbeddingThreshold(Compass(), threshold=np.cos(0.11))
    assert backend.partition(["0", "0.1", "0.2", "0.3"]) == [0, 0, 1, 1]
    assert EmbeddingThreshold(Compass(), 0.9).name == "cosine >= 0.9 by compass"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised DeBERTa-v2 of two labels with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        DebertaV2Config,
        DebertaV2ForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    torch.manual_seed(0)
    config = DebertaV2Config(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=300, type_vocab_size=2, pad_token_id=0,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        initializer_range=0.5, num_labels=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("classifier") / "tiny"
    DebertaV2ForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sentences(seed: int, count: int, most: int = 30) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(f"w{rng.randrange(40)}" for _ in range(rng.randint(6, most))) for _ in range(count)
    ]


def alone(classifier: Classifier, first: str, second: str) -> float:
    """One pair without padding, ids put together by hand: [CLS] first [SEP] second [SEP]."""
    ids = {f"w{i}": i + 4 for i in range(40)}
    one, two = ([ids[w] for w in text.split()][:128] for text in (first, second))
    row = torch.tensor([[2, *one, 3, *two, 3]])
    types = torch.tensor([[0] * (len(one) + 2) + [1] * (len(two) + 1)])
    with torch.inference_mode():
        logits = classifier._model(input_ids=row, token_type_ids=types).logits
    return float(logits.softmax(-1)[0, 1])


def test_classifier_probabilities_do_not_depend_on_the_batch(folder: Path) -> None:
    classifier = Classifier(str(folder))
    texts = sentences(1, 12)
    pairs = list(zip(texts[:6], texts[6:], strict=True))
    expected = [alone(classifier, *pair) for pair in pairs]
    assert np.std(expected) > 0.01  # the tiny model does tell pairs apart
    assert classifier.probabilities(pairs) == pytest.approx(expected, abs=1e-5)


def test_classifier_reads_128_tokens_of_each_text(folder: Path) -> None:
    classifier = Classifier(str(folder))
    long = " ".join(f"w{i % 40}" for i in range(128))
    other = sentences(2, 1)[0]
    beyond, within = f"{long} w1 w2 w3", long.replace("w5", "w6")
    one, two, three = classifier.probabilities([(long, other), (beyond, other), (within, other)])
    assert one == two
    assert one != pytest.approx(three, abs=1e-6)


def test_classifier_partition_is_v1s_loop_over_its_probabilities(folder: Path) -> None:
    texts = [*sentences(3, 12), "w1 w2", "w2 w3", "w4"]
    middle = float(np.median(Classifier(str(folder)).probabilities([(texts[0], t) for t in texts])))
    classifier = Classifier(str(folder), threshold=middle, batch_size=2)

    def same(first: str, second: str) -> bool:
        by_words = short_rule(ComparedText.of(first), ComparedText.of(second))
        return alone(classifier, first, second) > middle if by_words is None else by_words

    labels, heads = [], []
    for text in texts:
        match = [c for c, head in enumerate(heads) if same(head, text)]
        labels.append(match[0] if match else len(heads))
        heads += [] if match else [text]
    assert 2 < len(heads) < len(texts) - 1
    assert classifier.partition(texts) == labels


def test_classifier_name_states_model_threshold_and_window(folder: Path) -> None:
    expected = "tiny p > 0.102, first 128 tokens, word overlap up to 5 words"
    assert Classifier(str(folder)).name == expected


def test_a_classifier_of_pickled_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    Classifier(str(tmp_path))
    weights.unlink()
    with pytest.raises(
        ConfigError, match=r"has only pickled weights \(pytorch_model\.bin\), which"
    ):
        Classifier(str(tmp_path))


def test_a_missing_classifier_and_one_of_other_labels_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    with pytest.raises(ConfigError, match="equivalence classifier '/no/such'"):
        Classifier("/no/such")
    config: Any = AutoConfig.from_pretrained(folder)
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has 3 labels; it needs two"):
        Classifier(str(tmp_path))
