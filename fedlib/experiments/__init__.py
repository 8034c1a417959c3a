"""Full-scale experiments: ``python -m fedlib.experiments NAME`` re-runs one stored table.

A chapter shows what is stored and re-runs a small part of it live.
"""

from fedlib.experiments.store import load_result

__all__ = ["load_result"]
