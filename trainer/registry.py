"""Choices by module name: a loss, a model or a data format is one file of its package, and needs no list of names."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from miner.artifacts.errors import BadInput

__all__ = ["configure", "module", "names", "read_toml", "said", "spoken", "validated"]

# A comma within quotes, brackets or braces belongs to the value: "a,b.json", ["a", "b"], train-{0,1}.tar.
_ASSIGNMENT = re.compile(r"""(?:[^,"'\[{]|"[^"]*"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|["'\[{])+""")


def names(package: str) -> list[str]:
    """Names of the modules of `package`, sorted; a leading underscore hides one."""
    path = importlib.import_module(package).__path__
    return sorted(found.name for found in pkgutil.iter_modules(path) if not found.name.startswith("_"))


def module(package: str, name: str) -> ModuleType:
    """The module behind a name. Raises BadInput for a name that does not exist, with the nearest one."""
    known = names(package)
    if name not in known:
        what = package.rpartition(".")[2]
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise BadInput(f"{name!r} is not one of the {what}: {', '.join(known)}.{hint}")
    return importlib.import_module(f"{package}.{name}")


def spoken(text: str) -> tuple[str, dict[str, Any]]:
    """`goal:triplet=nca,pair=lin` -> ("goal", {"triplet": "nca", "pair": "lin"}); values as TOML has them, or words.

    Raises BadInput for another form, or a key that is set twice.
    """
    name, texts = said(text)
    return name, {key: _value(value) for key, value in texts.items()}


def said(text: str) -> tuple[str, dict[str, str]]:
    """What `spoken` makes values of, with every value as it is written: 1.10 and 1_000 may be names of folders.

    Raises BadInput for another form, or a key that is set twice.
    """
    name, _, rest = text.partition(":")
    settings: dict[str, str] = {}
    for assignment in _ASSIGNMENT.findall(rest):
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals:
            raise BadInput(f"{text!r}: {assignment!r} is not KEY=VALUE; write NAME:KEY=VALUE,KEY=VALUE.")
        if key in settings:
            raise BadInput(f"{text!r}: {key} is set twice; set it once.")
        settings[key] = value
    return name.strip(), settings


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def configure(package: str, name: str, settings: Mapping[str, Any]) -> Any:
    """The frozen `Config` of a module, validated. Raises BadInput naming each wrong setting."""
    return validated(module(package, name).Config, settings, f"{package.rpartition('.')[2]} {name}")


def read_toml(path: Path, kind: str, hint: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises BadInput; `kind` and `hint` say what is missing and what to do."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as gone:
        raise BadInput(f"{path}: there is no such {kind}; {hint}") from gone
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as broken:
        raise BadInput(f"{path}: not valid TOML: {broken}.") from broken


def validated(config: Any, settings: Mapping[str, Any], where: str) -> Any:
    """`config(**settings)`; what pydantic refuses becomes one BadInput sentence with the nearest known key."""
    from pydantic import ValidationError

    try:
        return config(**settings)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"]) or "settings"
            if fault["type"] == "extra_forbidden":
                fields, last = _fields(config, fault["loc"][:-1]), str(fault["loc"][-1])
                nearest = difflib.get_close_matches(last, fields, 1)
                known = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(fields)}."
                faults.append(f"{key!r} is not a setting; {known}")
            elif fault["type"] == "missing":
                faults.append(f"{key} is missing; set it.")
            else:
                said = fault["msg"].removeprefix("Value error, ").rstrip(".")
                given = "" if _secret(config, fault["loc"]) else f" = {fault['input']!r}"
                faults.append(f"{key}{given}: {said}{'' if said.endswith('?') else '.'}")
        raise BadInput(f"{where}: " + " ".join(faults)) from error


def _secret(config: Any, path: Sequence[Any]) -> bool:
    """Whether a setting may hold what nobody else is to read: one that its `repr` leaves out."""
    field = getattr(config, "model_fields", {}).get(path[0]) if path else None
    return field is not None and not field.repr


def _fields(config: Any, path: Sequence[Any]) -> list[str]:
    """The settings of a section inside a section."""
    for name in path:
        config = config.model_fields[name].annotation if name in getattr(config, "model_fields", {}) else None
    return list(getattr(config, "model_fields", {}))
