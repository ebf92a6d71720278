"""Code of the user's: `module:function`, found in the current folder or on Python's path, and what it raises."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.artifacts.errors import BadInput

__all__ = ["Factory"]


@dataclass(frozen=True)
class Factory:
    """`name` is `module:function`; `what` says in errors what asked for it. Nothing is imported before `__call__`."""

    name: str
    what: str

    @property
    def file(self) -> Path:
        """The module's file. Raises BadInput when there is none."""
        here, module = str(Path.cwd()), self.name.partition(":")[0]
        if here not in sys.path:
            sys.path.append(here)
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError as missing:
            if missing.name is not None and module != missing.name and not module.startswith(f"{missing.name}."):
                raise BadInput(f"{self.what}: {self.name}: importing its package ended with {missing!r}.") from missing
            spec = None
        except ValueError:
            spec = None
        except Exception as error:  # a package's own code runs when a module in it is looked for
            raise BadInput(f"{self.what}: {self.name}: importing its package ended with {error!r}.") from error
        if spec is None or spec.origin is None or not spec.has_location:
            raise BadInput(
                f"{self.what}: there is no module {module!r}, neither in the current folder {here} nor on Python's "
                "path; change folder, or add the module's to PYTHONPATH."
            )
        return Path(spec.origin)

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """What the function returns. Raises BadInput when it is not there, and for whatever the user's code raises."""
        module_name, _, function = self.name.partition(":")
        file = self.file
        with self.doing("importing it"):
            module = importlib.import_module(module_name)
        if not callable(found := getattr(module, function, None)):
            known = [name for name, value in vars(module).items() if callable(value)]
            nearest = difflib.get_close_matches(function, known, 1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise BadInput(f"{self.what}: {file} has no function {function!r}.{hint}")
        with self.doing("calling it"):
            return found(*arguments, **settings)

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """What the user's own code raises inside, as a BadInput that says where."""
        try:
            yield
        except Exception as error:  # the user's own code may raise anything
            file = str(self.file)
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            where = f" in line {lines[-1]} of {file}" if lines else ""
            raise BadInput(f"{self.what}: {self.name}: {what} ended{where} with {error!r}.") from error
