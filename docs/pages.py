"""What pages hold that the code says better: MkDocs calls `on_page_markdown` and `on_page_content` for every page.

<!-- settings -->             every setting of every section of a run file, of every rule, layout and scheduler
<!-- says: MODULE -->         the docstring of a module, word for word
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer import registry

_SECTIONS = {
    "run": "pipelines.settings.RunConfig", "fit": "trainer.fit_section.FitConfig",
    "encode": "pipelines.settings.EncodeConfig", "index": "pipelines.settings.IndexConfig",
    "mine": "pipelines.mine_section.MineConfig", "analyze": "pipelines.settings.AnalyzeConfig",
    "stop": "pipelines.stop.StopConfig", "watch": "pipelines.trackers.WatchConfig",
    "executor": "pipelines.resources.ExecutorConfig",
}  # fmt: skip
_INSIDE = {"executor.encode and executor.mine": "pipelines.resources.ActorConfig"}
_CHOICES = {
    "[data] format": "trainer.data", "[model] name": "trainer.models", "[loss] name": "trainer.losses",
    "[watch] trackers": "pipelines.trackers", "[mine] rules, --rule": "miner.filters",
    "miner export --format": "miner.export", "trainer evaluate --positives": "trainer.judgements",
}  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its comments filled in."""
    markdown = re.sub(r"<!-- says: ([\w.]+) -->", lambda found: _fenced(_docstring(found[1])), markdown)
    return markdown.replace("<!-- settings -->", settings()) if "<!-- settings -->" in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Pictures of the README's parts, which lie beside the pages."""
    return html.replace('src="docs/', 'src="')


def settings() -> str:
    """Markdown: a heading per section and choice, and a table of its settings."""
    return "\n\n".join(_all())


def _all() -> Iterator[str]:
    for section, where in _SECTIONS.items():
        yield f"## [{section}]"
        yield _about(_named(where))
    for section, where in _INSIDE.items():
        yield f"### {section}"
        yield _about(_named(where))
    for heading, package in _CHOICES.items():
        yield f"## {heading}"
        for name in registry.names(package):
            module = registry.module(package, name)
            said = (module.__doc__ or "").strip().partition("\n\n")[0]
            shown = name.replace("_", "-") if package in ("miner.filters", "miner.export") else name
            yield f"### {heading.partition(']')[0].strip('[')}: {shown}"
            yield " ".join(said.split())
            yield _about(module.Config)


def _named(where: str) -> Any:
    module, _, name = where.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _about(config: Any) -> str:
    own = config.__dict__.get("__doc__") or ""
    said = "" if own.startswith(f"{config.__name__}(") else inspect.cleandoc(own)
    inherited = [
        inspect.cleandoc(owner.__doc__)
        for owner in config.__mro__[1:]
        if owner.__module__.startswith(("trainer.", "pipelines.", "miner.")) and owner.__dict__.get("__doc__")
    ]
    rows = list(_rows(config))
    table = ["| setting | type | default | |", "| --- | --- | --- | --- |", *rows] if rows else ["No settings."]
    return "\n\n".join([*(_fenced(text) for text in [said, *inherited] if text), "\n".join(table)])


def _rows(config: Any) -> Iterator[str]:
    if is_dataclass(config):
        for field in fields(config):
            default = "must be given" if field.default is MISSING else repr(field.default)
            yield _row(field.name, str(field.type), default, "")
        return
    assert issubclass(config, BaseModel)
    for name, field in config.model_fields.items():
        kind = inspect.formatannotation(field.annotation)
        limits = ", ".join(re.sub(r"^(\w+)\((.*)\)$", r"\2", repr(limit)) for limit in field.metadata)
        default = "must be given" if field.is_required() else repr(field.get_default(call_default_factory=True))
        yield _row(name, kind, default, "; ".join(filter(None, [field.description or "", limits])))


def _row(name: str, kind: str, default: str, more: str) -> str:
    kind = re.sub(r"\b(typing|pathlib|collections\.abc)\.", "", kind)
    cells = (cell.replace("|", "\\|") for cell in (f"`{name}`", f"`{kind}`", f"`{default}`", more))
    return "| " + " | ".join(cells) + " |"


def _docstring(module: str) -> str:
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    return ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```"
