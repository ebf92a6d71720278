"""Names, paths and sizes as schedulers take them; templates, and how their values are quoted."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from miner.artifacts.errors import BadInput

__all__ = ["bad_path", "bash_line", "below", "dns_name", "fill", "gib", "image_name", "mount_of"]

_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/-]*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?", re.ASCII)
_URL = re.compile(r"(s3|gs)://[^\s/@?#\\]+(/[^\s?#\\]*)?")  # credentials have no place in it


def dns_name(option: str, name: str, most: int = 63) -> str:
    """`name` if Kubernetes takes it for a label, RFC 1123 beginning with a letter. Raises BadInput."""
    if not _DNS.fullmatch(name) or len(name) > most:
        raise BadInput(
            f"{option} {name!r} is not a name for this: at most {most} lower case letters, digits and '-', the first a "
            "letter, the last not '-'."
        )
    return name


def image_name(image: str) -> str:
    """`image` if it can be the name of a container image. Raises BadInput."""
    if not _IMAGE.fullmatch(image):
        raise BadInput(f"--image {image!r} is not the name of an image; write it as registry/quintain:1.0.")
    return image


def gib(memory: str) -> int:
    """`16G` or `16Gi` as a number of GiB. Raises BadInput."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})(G|Gi|GiB)", memory)
    if match is None:
        raise BadInput(f"--memory {memory!r} is not a number of GiB; write it as 16G.")
    return int(match[1])


def bad_path(path: str, *, url: bool) -> str:
    """What is wrong with a path, or with a URL where one is allowed; "" if nothing."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    if not path:
        return "is empty"
    if "\0" in path:
        return "holds a zero byte"
    if "://" in path:
        return "" if url and _URL.fullmatch(path) else "is no URL that can be used here"
    if not path.startswith("/"):
        return "is not absolute"
    return "goes through '..'" if ".." in PurePosixPath(path).parts else ""


def mount_of(volume: str) -> tuple[str, str]:
    """`claim:/data` as the claim's name and where it is mounted. Raises BadInput."""
    claim, colon, mount = volume.partition(":")
    if not colon or not re.fullmatch(r"(/[\w.-]+)+", mount, re.ASCII) or ".." in mount:
        raise BadInput(f"--volume {volume!r} is not CLAIM:/PATH; write it as quintain:/data.")
    return dns_name("--volume", claim), mount


def below(mount: str, what: str, path: str) -> None:
    """Raises BadInput for a path that no volume of the container holds."""
    if "://" not in path and not PurePosixPath(path).is_relative_to(mount):
        raise BadInput(f"{what} {path!r} is not below {mount}, where the volume is mounted; see --volume CLAIM:/PATH.")


def bash_line(command: list[str]) -> str:
    """A command on one line of a crontab, for bash: no newline, and no % or backslash that cron reads for itself."""
    return " ".join(_crontab_word(word) for word in command)


def _crontab_word(word: str) -> str:
    if word.isprintable() and "%" not in word and "\\" not in word:
        return shlex.quote(word)
    octal = (c if c.isprintable() and c not in "%\\'" else "".join(f"\\{b:03o}" for b in c.encode()) for c in word)
    return "$'" + "".join(octal) + "'"


def fill(template: str, **values: Any) -> str:
    """A Jinja2 template with its values; `y` writes one as a YAML scalar in double quotes, `q` as a word of a shell."""
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["y"] = _yaml
    environment.filters["q"] = shlex.quote
    return environment.from_string(template).render(**values)


def _yaml(text: str) -> str:
    import yaml

    return str(yaml.safe_dump(text, default_style='"', width=10**9, allow_unicode=True)).strip()
