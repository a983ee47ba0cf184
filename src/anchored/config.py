"""Run configurations: one YAML file per run, `a.b=c` overrides, and the versions in use."""

from __future__ import annotations

import difflib
import importlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from anchored import __version__
from anchored.errors import ConfigError

M = TypeVar("M", bound=BaseModel)
C = TypeVar("C", bound="Config")

_REPORTED = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "trl",
    "peft",
    "numpy",
    "safetensors",
    "pydantic",
)
_TYPES = frozenset({"str", "int", "float", "bool"})  # pydantic's names for branches of a union


class Config(BaseModel):
    """Base of every stage's configuration: immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _Loader(yaml.SafeLoader):
    """YAML without two traps: `1e-4` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                )
            if key_node.tag != "tag:yaml.org,2002:merge":
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes text which `_Loader` would otherwise read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> Any:
    """Return the parsed contents of a YAML file.

    Raises:
        ConfigError: the file is missing, is not UTF-8, is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: not readable as YAML: {reason}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Return one value from the command line, read as YAML.

    Raises:
        ConfigError: the value is not YAML; the message names `where`.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{where}: the value is not YAML; quote it") from None


def load_function(name: str, field: str) -> Callable[..., Any]:
    """Import the function that `field` names as `module:function`.

    Modules in the working directory are found too.

    Raises:
        ConfigError: there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"{field}: {name!r}: write module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{field}: {name!r}: no module {error.name!r} to import") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(f"{field}: {name!r}: {module} has no function {function}")
    return found


def to_yaml(config: Config) -> str:
    """Return the resolved configuration as YAML, with every field in its order of declaration."""
    return yaml.dump(
        config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True
    )


def load_config(
    cls: type[C],
    path: Path | None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, str] = {},
) -> C:
    """Load the configuration in a YAML file and apply `a.b=c` overrides; `c` is read as YAML.

    Without a file, the overrides are the whole configuration. `flags` is passed to `validated`.

    Raises:
        ConfigError: the file or an override cannot be read, or a field is unknown, missing or out
            of range.
    """
    data = read_yaml(path) if path else {}
    if data is None:
        data = {}
    if isinstance(data, dict):
        for override in overrides:
            _override(data, override)
    return validated(cls, data, source=str(path or "command line"), flags=flags)


def validated(cls: type[M], data: Any, source: str, flags: Mapping[str, str] = {}) -> M:
    """Build an instance of `cls` from parsed YAML.

    Args:
        cls: the model to build.
        data: its fields.
        source: where the fields come from, for errors.
        flags: for a field (`a.b`), the command-line option that an error names instead.

    Raises:
        ConfigError: a field is wrong; the message names `source`, the first wrong field, its value
            and the way out.
    """
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"the single value {data!r:.120}"
        raise ConfigError(f"{source}: holds {kind}; write `field: value` lines")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(cls, error, flags)}") from None


def _override(data: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not all(name.split(".")):
        raise ConfigError(f"override {override!r}: write field=value, or outer.inner=value")
    value = parse_yaml(text, f"override {override!r}")
    *parents, last = name.split(".")
    target: Any = data
    for parent in parents:
        if _slot(target, parent, override, new_ok=True) is None:
            target[parent] = {}
        target = _slot(target, parent, override)
    _slot(target, last, override, new_ok=True)
    target[int(last) if isinstance(target, list) else last] = value


def _slot(target: Any, name: str, override: str, new_ok: bool = False) -> Any:
    """Return the value of `name` in a mapping, or the item at that position in a list."""
    if isinstance(target, dict):
        return target.get(name) if new_ok else target[name]
    if isinstance(target, list):
        if name.isdecimal() and int(name) < len(target):
            return target[int(name)]
        raise ConfigError(f"override {override!r}: no item {name}, the list has {len(target)}")
    raise ConfigError(f"override {override!r}: {name!r} lies inside {target!r}: no fields there")


def _explain(cls: type[BaseModel], error: ValidationError, flags: Mapping[str, str]) -> str:
    """Describe the first problem in one line (field, value, way out) and count the others."""
    problems = _of_meant_branches(cls, error)
    first, location = problems[0], _without_tags(cls, problems[0]["loc"])
    flag = _flag(location, flags)
    field = flag or ".".join(map(str, location))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown field{_suggestion(cls, first['loc'])}{more}"
    if first["type"] == "missing":
        way_out = "give it" if flag else f"add `{first['loc'][-1]}: ...`"
        return f"{field}: missing; {way_out}{more}"
    message = first["msg"].removeprefix("Value error, ")
    several = first["type"] == "value_error" and isinstance(first["input"], dict)
    parts = (field, "" if several else repr(first["input"])[:120])  # no value for several fields
    shown = "".join(f"{part}: " for part in parts if part)
    return f"{shown}{message[:1].lower()}{message[1:]}{more}"


def _of_meant_branches(cls: type[BaseModel], error: ValidationError) -> list[Any]:
    """Return the problems without those of union branches that the value does not belong to.

    When a field inside a mapping is wrong, it does not help to add that the mapping is not a path.
    """
    problems = error.errors()
    places = [_without_tags(cls, problem["loc"]) for problem in problems]

    def is_deeper_elsewhere(place: tuple[int | str, ...]) -> bool:
        return any(len(at) > len(place) and at[: len(place)] == place for at in places)

    return [
        problem
        for problem, place in zip(problems, places, strict=True)
        if len(place) == len(problem["loc"]) or not is_deeper_elsewhere(place)
    ]


def _without_tags(cls: type[BaseModel], location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop the parts that name branches of a union: types, and our own models."""
    kept: list[int | str] = []
    for part in location:
        models = {model.__name__ for model in _models_at(cls, tuple(kept))} if kept else set()
        if part not in models | _TYPES and "[" not in str(part):
            kept.append(part)
    return tuple(kept)


def _flag(location: tuple[int | str, ...], flags: Mapping[str, str]) -> str | None:
    """Return the option that set a field, or the list which the field is an item of."""
    names = (".".join(map(str, location[:end])) for end in range(len(location), 0, -1))
    return next((flags[name] for name in names if name in flags), None)


def _suggestion(cls: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Return `; did you mean x?` from the fields of the model that has the unknown name."""
    known = _fields_at(cls, location[:-1])
    if not known:
        return ""
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the fields are {', '.join(known)}"


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    return sorted({name for model in _models_at(cls, location) for name in model.model_fields})


def _models_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[Any]:
    models: list[Any] = [cls]
    for part in location:
        models = [
            candidate
            for model in models
            if part in model.model_fields
            for candidate in _models_in(model.model_fields[part].annotation)
        ] or models  # a list position or a union's tag is not a field: keep the models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the main libraries.

    In a checkout, the git commit is part of the version. Versions are read from package metadata,
    so that nothing heavy is imported.
    """
    found = {"anchored": __version__ + _commit(), "python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Return `+g<commit>` in a checkout of this package, with `.dirty` if its files differ."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "describe", "--always", "--dirty=.dirty", "--exclude=*"]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return f"+g{answer.stdout.strip()}" if answer.returncode == 0 else ""
