"""Where artifacts are, as people write it: a path, `file://`, `s3://bucket/prefix` or `gs://bucket/prefix`.

What is no secret is read from the environment here and goes along to workers: endpoint, region, whether http is
allowed. Credentials stay in the environment of each process; they are never read here, shown or pickled.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args
from urllib.parse import unquote, urlsplit

from miner.artifacts.errors import BadInput
from miner.artifacts.object_store import ObjectStore, Scheme
from miner.artifacts.store import LocalStore, Store

__all__ = ["open_store", "shown"]

# By option of obstore: variables, the first that is set counts.
_SETTINGS: dict[Scheme, dict[str, tuple[str, ...]]] = {
    "s3": {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        "virtual_hosted_style_request": ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST",),
        "skip_signature": ("AWS_SKIP_SIGNATURE",),
        "disable_bulk_delete": ("AWS_DISABLE_BULK_DELETE",),
        "allow_http": ("AWS_ALLOW_HTTP",),
    },
    "gs": {
        "base_url": ("GOOGLE_BASE_URL",),
        "skip_signature": ("GOOGLE_SKIP_SIGNATURE",),
        "allow_http": ("GOOGLE_ALLOW_HTTP",),
    },
}
_SWITCHES = {"virtual_hosted_style_request", "skip_signature", "disable_bulk_delete", "allow_http"}
_WORDS = {"1": "true", "true": "true", "yes": "true", "on": "true", "0": "false", "false": "false", "no": "false"}
_ADDRESSES = {"endpoint", "base_url"}


def open_store(location: str, *, patience: float = 60.0, cache: Path | None = None) -> Store:
    """The store at `location`; nothing is asked of it yet.

    `patience` is for how many seconds an object store that does not answer is asked again; `cache` is where local
    copies of its objects lie, for tests. Raises BadInput for what is no location, for settings that
    are none, and where the package for object stores is not installed.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalStore(Path(_plain(location, location)))
    if scheme == "file":
        if not rest.startswith("/"):
            raise BadInput(f"{shown(location)}: a file:// location names this machine's files: write file:///folder.")
        return LocalStore(Path(_plain(unquote(rest), location)))
    for kind in get_args(Scheme):
        if scheme == kind:
            return _bucket(kind, location, rest, patience, cache)
    raise BadInput(
        f"{shown(location)}: {scheme}:// is no place for artifacts; give a folder, file://, s3://bucket/prefix or "
        "gs://bucket/prefix."
    )


def _bucket(scheme: Scheme, location: str, rest: str, patience: float, cache: Path | None) -> ObjectStore:
    if "@" in rest.partition("/")[0]:
        raise BadInput(
            f"{shown(location)}: credentials do not belong into a location; set them in the environment "
            f"({'AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY' if scheme == 's3' else 'GOOGLE_APPLICATION_CREDENTIALS'})."
        )
    if any(character in rest for character in "?#\\\0\r\n"):
        raise BadInput(f"{shown(location)}: no place for artifacts; write {scheme}://bucket/prefix, without ? or #.")
    if importlib.util.find_spec("obstore") is None:
        raise BadInput(f"{location}: object stores need one package more: pip install 'quintain[cloud]'.")
    bucket, _, prefix = rest.partition("/")
    parts = [part for part in prefix.split("/") if part]
    if not bucket or "." in parts or ".." in parts:
        raise BadInput(f"{location}: names no bucket and prefix; write {scheme}://bucket/prefix.")
    return ObjectStore(scheme, bucket, "/".join(parts), _settings(scheme, os.environ), patience, cache)


def _settings(scheme: Scheme, environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    found = {}
    for option, variables in _SETTINGS[scheme].items():
        variable = next((each for each in variables if environment.get(each)), None)
        if variable is None:
            continue
        value = environment[variable]
        if option in _SWITCHES:
            if value.lower() not in _WORDS:
                raise BadInput(f"{variable} is {value!r}; set it to true or false.")
            value = _WORDS[value.lower()]
        if option in _ADDRESSES:
            _check_address(variable, value)
        found[option] = value
    return tuple(sorted(found.items()))


def _check_address(variable: str, value: str) -> None:
    address = urlsplit(value)
    if address.username or address.password or address.query:
        raise BadInput(f"{variable} holds a password or a query; give the server's address alone.")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise BadInput(f"{variable} is {value!r}, which is no address; write https://host or https://host:port.")


def _plain(path: str, location: str) -> str:
    if not path or "\0" in path:
        raise BadInput(f"{location!r} is no folder; give a path, s3://bucket/prefix or gs://bucket/prefix.")
    return path


def shown(location: str) -> str:
    """The location without what may be a password or a signature."""
    scheme, separator, rest = location.partition("://")
    return location if not separator else f"{scheme}://{rest.rpartition('@')[2].partition('?')[0].partition('#')[0]}"
