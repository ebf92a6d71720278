"""Where something lies, as people say it: a path on this machine or the address of an object store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miner.artifacts.locations import open_store
from miner.artifacts.store import LocalStore, Store

__all__ = ["Place"]


@dataclass(frozen=True)
class Place:
    """A name in a store, of an artifact or of a folder of several; `place / "i2t"` lies below it."""

    store: Store
    name: str = "."

    @classmethod
    def of(cls, where: Place | Path | str) -> Place:
        """A path, `file://`, `s3://` or `gs://`; nothing is asked of it yet. Raises BadInput for what is none."""
        if isinstance(where, Place):
            return where
        return cls(LocalStore(where) if isinstance(where, Path) else open_store(where))

    def __truediv__(self, below: str) -> Place:
        return Place(self.store, below if self.name == "." else f"{self.name}/{below}")

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}".removesuffix("/.")

    @property
    def local(self) -> Path | None:
        """The path, where it is one of this machine."""
        return self.store.root / self.name if isinstance(self.store, LocalStore) else None

    @property
    def last(self) -> str:
        """The last part of where this is, to call it by."""
        return Path(str(self)).resolve().name if self.local is not None else str(self).rpartition("/")[2]

    def names(self) -> list[str]:
        """What lies directly below."""
        return self.store.names(self.name)

    def exists(self) -> bool:
        return self.store.exists(self.name)
