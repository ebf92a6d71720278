"""What can go wrong, as one tree; each branch is one exit code of every command.

    QuintainError          1   never raised itself
    ├── BadInput           3   the data, a file or a setting is wrong: the sentence says what to change
    ├── DamagedArtifact    4   bytes on disk are not the bytes that were committed
    ├── AnotherWriter      5   somebody else holds this run folder
    └── Retryable         75   nothing is wrong with the input: run the same command again

0 is done, 2 is wrong usage of the command line (click's own code).

A message says what was found, where, what was expected and what to do.
"""

from __future__ import annotations

import errno
from typing import ClassVar

__all__ = ["FULL", "AnotherWriter", "BadInput", "DamagedArtifact", "QuintainError", "Retryable", "says_enough"]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE}  # of a disk that takes no more data


class QuintainError(Exception):
    """Root of every error a user can cause or meet."""

    exit_code: ClassVar[int] = 1


class BadInput(QuintainError, ValueError):
    """The input is not what the command needs."""

    exit_code = 3


class DamagedArtifact(QuintainError):
    """A committed artifact no longer holds the bytes its manifest lists."""

    exit_code = 4


class AnotherWriter(QuintainError):
    """Another process is writing the same run."""

    exit_code = 5


class Retryable(QuintainError):
    """The machine failed, not the input: the same command may succeed later."""

    exit_code = 75


def says_enough(error: OSError) -> bool:
    """Whether a user can do something about it by its own words: it names a file, or is of a disk."""
    return error.errno is not None and (error.filename is not None or error.errno in FULL)
