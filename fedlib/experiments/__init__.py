"""Full-scale experiments: ``python -m fedlib.experiments NAME`` re-runs one stored table.

A chapter shows what is stored and re-runs a small part of it live.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlib.experiments import cifar, puzzle, table

__all__ = ["cifar", "puzzle", "table"]


def __getattr__(name: str) -> Any:
    """Load a module when it is first asked for."""
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
