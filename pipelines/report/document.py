"""The document: the template with style, scripts and data in it.

Its policy allows the scripts and the style that are ours or Plotly's by their hashes, pictures as data, and nothing
else: no network at all, but for the page that `pipelines serve` serves, which may talk to its server. Plotly, a
maintained plotting library whose wheel brings the script, lies in the page compressed and runs once charts come into
view; it is never given a caption or an id, which its labels would read as markup.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

__all__ = ["fill"]

_FOLDER = Path(__file__).parent
SCRIPTS = ("data.js", "verdicts.js", "item.js", "detail.js", "list.js", "lists.js", "charts.js", "page.js")


def fill(*, packed: str, pictures: Mapping[str, str], charts: Mapping[str, Any], served: bool, **values: Any) -> str:
    """The page; see `page.html.j2` for the values."""
    import jinja2
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_FOLDER / "page.css").read_text(encoding="utf8")
    parts = [(_FOLDER / "js" / name).read_text(encoding="utf8") for name in SCRIPTS]
    script = '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"
    own, nobody = "'self'", "'none'"
    library, library_hash, brought = _plotly()
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}' '{_hash('')}'; "
        f"script-src '{_hash(script)}' '{library_hash}'; "
        f"connect-src {own if served else nobody}; base-uri 'none'; form-action 'none'"
    )

    def embedded(value: Any) -> Any:
        # < > & ' become \u003c ..., so that nothing in it can end the script element.
        return htmlsafe_json_dumps(
            value, dumps=json.dumps, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
        )

    return environment.get_template("page.html.j2").render(
        **values,
        style=Markup(style),  # our own files: nothing of the dataset is in them
        script=Markup(script),
        policy=policy,
        packed=packed,
        pictures=embedded(pictures),
        charts=embedded(charts),
        library=library,
        brought=brought,
    )


@lru_cache(maxsize=1)
def _plotly() -> tuple[str, str, list[str]]:
    """(Plotly's script as gzip in base64, its hash, ids under which it looks for style sheets of maps before it brings
    its own, which the policy would refuse)."""
    text = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf8")
    brought = re.findall(r'if\(!document\.getElementById\("([0-9a-f]{64})"\)\)', text)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode("ascii"), _hash(text), brought


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
