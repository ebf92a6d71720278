"""Files that appear whole, under their own names, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from miner.artifacts.errors import BadInput
from miner.artifacts.store import LocalStore

__all__ = ["appearing", "refuse_existing"]


def refuse_existing(paths: Sequence[Path], *, force: bool) -> None:
    """Raises BadInput when one of `paths` is a folder, or exists and may not be replaced."""
    for path in paths:
        if path.is_dir():
            raise BadInput(f"{path}: this is a folder; give the name of a file to write.")
        if path.exists() and not force:
            raise BadInput(f"{path}: this file exists and is not overwritten; choose another name or add --force.")


@contextmanager
def appearing(paths: Sequence[Path], *, force: bool) -> Iterator[dict[Path, Path]]:
    """By path a temporary file to write in its place; all move there, in this order, when the block ends without error.

    So when the last one is there, all are. Raises BadInput as `refuse_existing` does.
    """
    refuse_existing(paths, force=force)
    made = {path.parent for path in paths if not path.parent.exists()}
    drafts = {path: LocalStore(path.parent).scratch(".", path.suffix) for path in paths}
    try:
        yield drafts
        for path, draft in drafts.items():
            LocalStore(path.parent).put(path.name, draft)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
