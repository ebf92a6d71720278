"""Train, encode and evaluate one image-text retrieval model on one machine.

    import trainer
    model = trainer.fit(images, captions, pairs, model="vsepp", epochs=10)
    vectors = model.encode_images(images), model.encode_texts(captions)

`fit`, `Trained` and `BadInput` are imported when they are first asked for: `import trainer` imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miner.artifacts.errors import BadInput
    from trainer.trained import Trained, fit

__all__ = ["BadInput", "Trained", "fit"]

_WHERE = {"fit": "trainer.trained", "Trained": "trainer.trained", "BadInput": "miner.artifacts.errors"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
