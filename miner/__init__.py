"""Mine hard negatives from any dual encoder's vectors: exact, bounded, reproducible to the byte.

    import miner
    found = miner.mine(images, texts, pairs, k=50)

`mine`, `Mined`, `Table` and `BadInput` are imported when they are first asked for: `import miner` imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miner.arrays import Mined, Table, mine
    from miner.artifacts.errors import BadInput

__all__ = ["BadInput", "Mined", "Table", "__version__", "mine"]

__version__ = "0.1.0"

_WHERE = {"mine": "arrays", "Mined": "arrays", "Table": "arrays", "BadInput": "artifacts.errors"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
