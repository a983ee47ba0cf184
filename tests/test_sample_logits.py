"""Logits to a token: exact masks, their order, and inversion."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from anchored.sampling import decode
from anchored.sampling import logits as logits_module
from anchored.sampling.logits import Sampling, draw, exact_dtype, truncate


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def kept(scores: torch.Tensor) -> list[int]:
    return scores[0].isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 1, 2, 3]),
        (Sampling(top_p=0.75), [0, 1]),
        (Sampling(top_p=0.85), [0, 1, 2]),
        (Sampling(min_p=0.25), [0, 1, 2]),
        (Sampling(min_p=0.35), [0, 1]),
        (Sampling(temperature=0), [0]),
        (Sampling(temperature=0, top_p=0.9, min_p=0.1), [0]),
    ],
)
def test_what_is_kept_of_50_30_15_5_percent(sampling, expected):
    assert kept(truncate(logits(0.5, 0.3, 0.15, 0.05), sampling)) == expected


def test_top_p_keeps_tokens_where_they_stand_and_not_by_rank():
    assert kept(truncate(logits(0.05, 0.3, 0.15, 0.5), Sampling(top_p=0.75))) == [1, 3]


def test_min_p_comes_before_top_p():
    # Of .4 .3 .2 .06 .04 min-p .2 keeps three, .44 .33 .22, of which top-p .75 keeps two; top-p
    # first would keep three, and min-p all of them.
    scores = logits(0.4, 0.3, 0.2, 0.06, 0.04)
    assert kept(truncate(scores, Sampling(min_p=0.2, top_p=0.75))) == [0, 1]
    assert kept(truncate(scores, Sampling(top_p=0.75))) == [0, 1, 2]


def test_temperature_comes_before_min_p():
    # At temperature 2, .6 .3 .1 become .47 .33 .19: the floor of .3 lies at .14, not at .18.
    scores = logits(0.6, 0.3, 0.1)
    assert kept(truncate(scores, Sampling(min_p=0.3))) == [0, 1]
    assert kept(truncate(scores, Sampling(temperature=2, min_p=0.3))) == [0, 1, 2]


def test_temperature_divides_the_logits():
    scores = torch.tensor([[1.0, -2.0, 0.5]])
    torch.testing.assert_close(truncate(scores, Sampling(temperature=0.5)), scores * 2)
    assert truncate(scores, Sampling()) is scores


def test_temperature_0_takes_the_first_of_equals():
    assert kept(truncate(torch.tensor([[1.0, 3.0, 3.0]]), Sampling(temperature=0))) == [1]


@pytest.mark.parametrize(
    "fields", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 1}, {"top_k": 5}]
)
def test_impossible_samplings_are_refused(fields):
    with pytest.raises(ValidationError):
        Sampling(**fields)


def test_draw_inverts_the_cumulated_probabilities():
    scores = logits(0.25, 0.5, 0.25).repeat(6, 1)
    numbers = torch.tensor([0.0, 0.24, 0.26, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert draw(scores, numbers).tolist() == [0, 0, 1, 1, 2, 2]


def test_draw_never_takes_what_was_cut_off():
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(1001, 1)
    numbers = torch.linspace(0, 1 - 2**-53, 1001, dtype=torch.float64)
    assert set(draw(scores, numbers).tolist()) == {1, 3}


def test_draw_follows_the_probabilities():
    torch.manual_seed(0)
    scores = torch.randn(1, 50) * 2
    numbers = torch.rand(200_000, dtype=torch.float64)
    drawn = draw(scores.expand(200_000, -1), numbers).bincount(minlength=50) / 200_000
    assert (drawn - scores.softmax(-1)[0]).abs().max() < 0.005


def test_where_there_is_no_double_precision_the_numbers_stay_below_one(monkeypatch):
    assert exact_dtype(torch.device("mps")) == torch.float32
    assert exact_dtype(torch.device("cpu")) == torch.float64
    for module in (decode, logits_module):
        monkeypatch.setattr(module, "exact_dtype", lambda device: torch.float32)
    monkeypatch.setattr(decode.random.Random, "random", lambda self: 1 - 2**-53)
    numbers = decode._uniforms(["seed"], 1, torch.device("cpu"))[0]
    assert numbers.dtype == torch.float32
    assert draw(logits(0.25, 0.5, 0.25), numbers).tolist() == [2]


def test_draw_marks_rows_that_hold_no_numbers():
    scores = torch.tensor([[0.0, torch.nan], [0.0, 0.0], [-torch.inf, -torch.inf]])
    assert draw(scores, torch.full((3,), 0.7, dtype=torch.float64)).tolist() == [-1, 1, -1]
