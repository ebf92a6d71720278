"""What `--data` says: `emoji`, a path whose format is recognised by what lies there, or FORMAT:KEY=VALUE,..."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput
from trainer import registry

__all__ = ["glance", "spoken"]

_PACKAGE = "trainer.data"


def spoken(text: str) -> Any:
    """The `Config` of the format that `text` names or that lies at the path `text`.

    Raises BadInput for a path that is not there, that no format or more than one recognises, an unknown format, or a
    wrong setting.
    """
    known = registry.names(_PACKAGE)
    name, colon, rest = text.partition(":")
    if name in known and (colon or name == "emoji" or not Path(text).exists()):
        return registry.configure(_PACKAGE, name, _settings(text, registry.module(_PACKAGE, name).Config))
    path = Path(_at_home(text))
    if path.exists():
        return _recognised(path, known)
    if colon and "=" in rest and "/" not in name:
        registry.module(_PACKAGE, name)  # says which formats there are
    raise BadInput(
        f"{text}: no such folder or file; give `emoji`, a path, or FORMAT:KEY=VALUE,... (formats: {', '.join(known)})."
    )


def glance(folder: Path) -> Iterator[Path]:
    """Some of what lies in a folder and below, which may be millions of files."""
    return islice(folder.rglob("*"), 2000)


def _settings(text: str, config: Any) -> dict[str, Any]:
    """Paths and names stay as written, even where a folder is called 2024 or 1.10; a ~ is the home folder."""
    (_, found), (_, written) = registry.spoken(text), registry.said(text)
    for key, value in found.items():
        kind = str(config.model_fields[key].annotation) if key in config.model_fields else ""
        if ("Path" in kind or "str" in kind) and not isinstance(value, list):
            found[key] = _at_home(value if isinstance(value, str) else written[key])
    return found


def _at_home(text: str) -> str:
    return str(Path(text).expanduser()) if text == "~" or text.startswith("~/") else text


def _recognised(path: Path, known: list[str]) -> Any:
    found, signs = {}, []
    for name in known:
        module = registry.module(_PACKAGE, name)
        recognise = getattr(module, "recognise", None)
        if recognise is None:
            continue
        signs.append(f"{name} ({module.SIGNS})")
        settings = recognise(path)
        if settings is not None:
            found[name] = settings
    if not found:
        raise BadInput(f"{path}: no known data here. Looked for: {'; '.join(signs)}. Or say FORMAT:KEY=VALUE,...")
    if len(found) > 1:
        ways = " or ".join(
            f"{name}:{','.join(f'{key}={value}' for key, value in settings.items())}"
            for name, settings in found.items()
        )
        raise BadInput(f"{path}: could be read as {' and as '.join(found)}; say which: {ways}.")
    name, settings = found.popitem()
    return registry.configure(_PACKAGE, name, settings)
