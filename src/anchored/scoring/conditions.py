"""Conditions on figures under which a command fails, for continuous integration: `--fail-if`.

`distinct_k<5` looks at every set. `drop distinct_k>0.5` and `drop distinct_k>10%` look at how far
each other set falls below the first; a drop is a change towards less diversity or, for a metric of
quality, towards worse texts.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchored.errors import ConditionMet, ConfigError
from anchored.formatting import is_number
from anchored.metrics.table import METRICS, family
from anchored.scoring.backends import ReadersConfig

_FORM = re.compile(r"\s*(drop\s)?\s*([\w.]+)\s*(<=|>=|<|>)\s*([^\s%<>=]+)\s*(%)?\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NO_SCORES = ("none", "perplexity")  # the values of --quality that score no text
_OF_SETS = ("truncation_rate",)
_OF_EVALUATION = ("gap_closed", "collapse_reduction", "adoption", *_OF_SETS)
_COMPARED = ("gap_closed", "collapse_reduction")  # figures of a comparison, not of a model
_WAY = "write METRIC<VALUE, or 'drop METRIC>VALUE' against the first file; a drop may be N%"

Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes:
        text: the condition as the user wrote it.
        drop: True if it is on a drop against the first set.
        metric: name of the figure.
        sign: `<`, `<=`, `>` or `>=`.
        value: the limit; a share if `relative`.
        relative: True if the drop is a share of the first set's figure.
    """

    text: str
    drop: bool
    metric: str
    sign: str
    value: float
    relative: bool

    def met(self, found: float) -> bool:
        """Return True if the condition holds for this figure or drop."""
        return _COMPARE[self.sign](found, self.value)


def parse(texts: Sequence[str], of_evaluation: bool = False) -> tuple[Condition, ...]:
    """Parse conditions.

    Args:
        texts: the conditions.
        of_evaluation: True to know the figures of `anchored evaluate`, too.

    Raises:
        ConfigError: a condition is malformed, or its metric or value is unknown.
    """
    return tuple(_parse(text, of_evaluation) for text in texts)


def _parse(text: str, of_evaluation: bool) -> Condition:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise ConfigError(f"--fail-if {text!r}: is not a condition; {_WAY}")
    drop, metric, sign, value, per_cent = parts.groups()
    known = [*METRICS, *(_OF_EVALUATION if of_evaluation else _OF_SETS)]
    if family(metric) not in known:
        raise ConfigError(
            f"--fail-if {text!r}: metric {metric!r} is unknown; use one of {', '.join(known)}"
        )
    if per_cent and not drop:
        raise ConfigError(f"--fail-if {text!r}: only a drop has a limit in %; {_WAY}")
    if drop and not _worse(metric):
        raise ConfigError(
            f"--fail-if {text!r}: {metric} measures neither diversity nor quality, so that it has "
            f"no drop; write {metric}{sign}VALUE"
        )
    limit = _number(text, value) / (100 if per_cent else 1)
    return Condition(text.strip(), bool(drop), metric, sign, limit, bool(per_cent))


def _number(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"--fail-if {text!r}: {value!r} is not a number; {_WAY}")
    return number


def check(
    conditions: Sequence[Condition], config: ReadersConfig, sets: int, roles: bool = False
) -> None:
    """Check that this run computes what the conditions are on, before anything is read.

    Args:
        conditions: the conditions.
        config: the backends of the run.
        sets: the number of files or models.
        roles: True if the models have the roles that `gap_closed` compares.

    Raises:
        ConfigError: a figure needs a backend that is not chosen, or a drop has one set only.
    """
    for one in conditions:
        if one.drop and sets < 2:
            raise ConfigError(
                f"--fail-if {one.text!r}: a drop is against the first one, and there is only one; "
                "name a second one"
            )
        if one.metric in _OF_EVALUATION and one.metric not in _OF_SETS and not roles:
            raise ConfigError(
                f"--fail-if {one.text!r}: {one.metric} compares models called base and sft; name "
                "them so, or give --base and --sft"
            )
        if way := _not_computed(one.metric, config):
            raise ConfigError(f"--fail-if {one.text!r}: {one.metric} would not be computed; {way}")


def _not_computed(metric: str, config: ReadersConfig) -> str | None:
    """Return the way out if this configuration leaves the metric out."""
    declared = METRICS.get(metric)
    if family(metric) == "vendi":
        orders = ["vendi" if q == 1 else f"vendi_{q:g}" for q in config.vendi_orders]
        return None if metric in orders else "choose its order with --vendi-q"
    if declared is None:
        return None
    if declared.source == "quality":
        kind = config.quality.partition(":")[0]
        there = kind == "perplexity" if metric == "perplexity" else kind not in _NO_SCORES
        return None if there else "choose a --quality that gives it"
    if declared.source == "readings" and config.attributes == "none":
        return "choose --attributes offline or judge"
    return None


def require_none(conditions: Sequence[Condition], results: Results) -> None:
    """Raise if any of the conditions holds.

    Raises:
        ConditionMet: one holds; the message names the sets and their figures.
        ConfigError: the figure of a condition is missing, so that nobody can tell.
    """
    met = [said for one in conditions for said in _met(one, results)]
    if met:
        raise ConditionMet("; ".join(met))


def _met(one: Condition, results: Results) -> Iterator[str]:
    first, *others = results["models"]
    for name in others if one.drop else results["models"]:
        value = _figure(one, results, name)
        if value is None:
            continue
        if not one.drop and one.met(value):
            yield f"--fail-if {one.text!r} holds: {name} has {one.metric} {value:.4g}"
        elif one.drop:
            reference = _figure(one, results, first)
            assert reference is not None
            fall = _fall(one, reference, value)
            if one.met(fall):
                size = f"{100 * fall:.4g}%" if one.relative else f"{fall:.4g}"
                yield (
                    f"--fail-if {one.text!r} holds: {name} has {one.metric} {value:.4g} against "
                    f"{reference:.4g} of {first}, a drop of {size}"
                )


def _figure(one: Condition, results: Results, name: str) -> float | None:
    """Return a set's figure; None for the comparison of a set that is not compared."""
    if one.metric in _COMPARED:
        compared = results["comparisons"].get(name, {}).get(one.metric)
        if compared is None:
            return None
        value = compared["low" if compared.get("lower_bound") else "mean"]
    else:
        value = results["models"][name].get(one.metric)
    if not is_number(value):
        raise ConfigError(
            f"--fail-if {one.text!r}: {name} has no {one.metric} in this run (see the notes), so "
            "the condition cannot be checked; remove it, or give what the metric needs"
        )
    return value


def _fall(one: Condition, first: float, other: float) -> float:
    fall = _worse(one.metric) * (other - first)
    if not one.relative or not fall:
        return fall
    return fall / abs(first) if first else math.copysign(math.inf, fall)


def _worse(metric: str) -> int:
    """Return the sign of a change towards less diversity or worse texts; 0 if there is none."""
    if declared := METRICS.get(family(metric)):
        return -(declared.more_diverse or declared.better)
    return -1 if metric == "adoption" else 0
