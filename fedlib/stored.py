"""Stored results: what chapters read of studies that take hours."""

__all__ = ["PROVENANCE", "load_result"]

import json
from importlib import resources

from fedlib._checks import check_type

PROVENANCE = ("command", "commit", "date", "device", "seeds", "versions", "wall_seconds")
"""What every stored result says about itself."""


def load_result(name: str) -> dict:
    """Load a result stored with the book.

    Args:
        name: the experiment's name, for example "puzzle".

    Returns:
        The stored record; ``["provenance"]`` says how it was made.

    Raises:
        FileNotFoundError: if no such result is stored.

    Example:
        >>> sorted(load_result("puzzle"))
        ['chosen', 'design', 'final', 'provenance', 'tuning']
    """
    check_type("name", name, str, 'Use name="puzzle", say.')
    folder = resources.files("fedlib.results")
    file = folder / f"{name}.json"
    names = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".json"))
    if name not in names:
        raise FileNotFoundError(
            f'Invalid name="{name}": no such stored result. Use one of {names}, or run '
            f"python -m fedlib.experiments {name}."
        )
    return json.loads(file.read_text())
