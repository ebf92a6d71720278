"""What an object store answers when something is wrong, as one sentence that says what to do.

The library's own text is never passed on, nor chained to: it quotes requests, and in them may stand a session token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from miner.artifacts.errors import BadInput, Retryable

__all__ = ["AccessRefused", "ObjectChanged", "StoreUnreachable", "spoken"]

_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_METADATA_SERVICES = ("/latest/api/token", "/latest/meta-data", "computeMetadata", "/v2/credentials")
_BAD_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN); profiles in ~/.aws are not read",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
}


class AccessRefused(BadInput, OSError):
    """The store answered, and will not do this: a setting, a name or a right is wrong."""


class StoreUnreachable(Retryable, OSError):
    """The store did not answer, or answered that it cannot now."""


class ObjectChanged(StoreUnreachable):
    """What was being read was replaced meanwhile."""


@contextmanager
def spoken(url: str, name: str = "", endpoint: str = "") -> Iterator[None]:
    """Turn what obstore raises about `name` into a FileNotFoundError, an AccessRefused or a StoreUnreachable."""
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        raise (_bucket_missing(url) if "<Code>NoSuchBucket<" in str(error) else _absent(url, name)) from None
    except (BaseError, TimeoutError, ConnectionError) as error:
        raise _translated(error, url, endpoint) from None


def _absent(url: str, name: str) -> FileNotFoundError:
    return FileNotFoundError(2, "No such object", f"{url}/{name}".rstrip("/"))


def _bucket_missing(url: str) -> AccessRefused:
    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    return AccessRefused(f"{url}: there is no bucket {bucket!r} at this {scheme} service; create it, or correct that.")


def _translated(error: Exception, url: str, endpoint: str) -> OSError:
    text, kind = str(error), type(error).__name__
    code = found.group(1) if (found := _CODE.search(text)) else ""
    status = found.group(1) if (found := _STATUS.search(text)) else ""
    said = ", ".join(word for word in (status, code) if word)
    variables = _VARIABLES[url.partition(":")[0]]
    at = f" at {endpoint}" if endpoint else ""
    if any(service in text for service in _METADATA_SERVICES):
        return AccessRefused(f"{url}: no credentials were found; set {variables}.")
    if "source: BadScheme" in text:
        return AccessRefused(
            f"{url}: the endpoint{at} is not https; for a server you trust, set AWS_ALLOW_HTTP=true "
            "(GOOGLE_ALLOW_HTTP=true for gs://)."
        )
    if code == "NoSuchBucket":
        return _bucket_missing(url)
    if code in _OTHER_REGION or "redirect without LOCATION" in text:
        return AccessRefused(f"{url}: the bucket is in another region ({said or 301}); set AWS_REGION to the bucket's.")
    if code in _BAD_CREDENTIALS or status == "401":
        return AccessRefused(f"{url}: the credentials were refused ({said}); check {variables}, or renew them.")
    if status == "403":
        return AccessRefused(
            f"{url}: access denied ({said}); the credentials are wrong or lack a right: they must be allowed to read, "
            f"write, list and delete there. They come from {variables}."
        )
    if kind == "PreconditionError":
        return ObjectChanged(f"{url}: an object changed while it was read; run the same command again.")
    if status == "501" or kind == "NotSupportedError":
        return AccessRefused(f"{url}: this server cannot do what was asked ({said or kind}); use another store.")
    if status.startswith("4") and status not in ("408", "409", "425", "429"):
        return AccessRefused(f"{url}: the request was refused ({said}); check the name of the store and its settings.")
    if said:
        return StoreUnreachable(f"{url}: the server{at} answers with errors ({said}); run the same command later.")
    return StoreUnreachable(
        f"{url}: the object store{at} cannot be reached, or broke off; check the network and the endpoint, and run the "
        "same command again."
    )
