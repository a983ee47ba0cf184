"""Studies, each one configuration: bases, treatments, samples, measures, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchored.config import load_config, read_yaml
from anchored.errors import ConfigError


def run(config: Path, out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs, or goes on with, the study that the field `experiment` of the YAML file names.

    Returns:
        What it wrote to `out`/results.json.

    Raises:
        ConfigError: no such study, or its configuration is wrong.
        AnchoredError: see the study's own `run`.
    """
    from anchored.experiments import demo, dpo, real_text

    studies = {
        "storyworld": (demo.DemoConfig, demo.run),
        "real-text": (real_text.RealTextConfig, real_text.run),
        "dpo": (dpo.DPOConfig, dpo.run),
    }
    data = read_yaml(config)
    name = data.get("experiment") if isinstance(data, dict) else None
    if name not in studies:
        raise ConfigError(f"{config}: experiment: {name!r} is not one of {', '.join(studies)}")
    cls, study = studies[name]
    return study(load_config(cls, config, overrides), out)
