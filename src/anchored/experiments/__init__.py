"""Run studies, each described by one configuration: bases, treatments, samples, metrics, report.

The storyworld study is part of the package. The others are in the folder `studies` of the
repository, and are run from a checkout of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from anchored.config import Config, load_config, read_yaml
from anchored.errors import ConfigError

STORYWORLD = "storyworld"
STUDIES = {"real-text": "studies.real_text", "dpo": "studies.dpo"}  # modules by name
CHECKOUT = Path(__file__).resolve().parents[3]  # in a checkout, the folder that contains `src`

Run = Callable[[Any, Path], dict[str, Any]]


def run(config: Path, out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run or resume the study that the field `experiment` of the YAML file names.

    Returns:
        The content of `out`/results.json.

    Raises:
        ConfigError: the study is unknown or not in this installation, or its configuration is
            wrong.
        AnchoredError: see the study's own `run`.
    """
    data = read_yaml(config)
    name = data.get("experiment") if isinstance(data, dict) else None
    known = (STORYWORLD, *STUDIES)
    if name not in known:
        raise ConfigError(f"{config}: experiment: {name!r} is not one of {', '.join(known)}")
    cls, study = _storyworld() if name == STORYWORLD else _from_checkout(config, name)
    return study(load_config(cls, config, overrides), out)


def _storyworld() -> tuple[type[Config], Run]:
    from anchored.experiments import demo

    return demo.DemoConfig, demo.run


def _from_checkout(config: Path, name: str) -> tuple[type[Config], Run]:
    """Return the configuration class and the function of a study of the repository."""
    if not (CHECKOUT / "studies" / "__init__.py").is_file():
        raise ConfigError(
            f"{config}: experiment: {name!r} is not part of the installed package; run it from a "
            "checkout of the repository, installed with pip install -e '.[all]'"
        )
    if str(CHECKOUT) not in sys.path:  # inherited by the processes that run the study's stages
        sys.path.append(str(CHECKOUT))
    return import_module(STUDIES[name]).STUDY
