"""Full-scale experiments: ``python -m fedlib.experiments NAME`` re-runs one stored table.

A chapter shows what is stored and re-runs a small part of it live.
"""

from fedlib.experiments import cifar, puzzle, table

__all__ = ["cifar", "puzzle", "table"]
