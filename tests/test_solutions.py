"""The programs of solutions: every one is stored, and a different print is seen.

tests/nbval_solutions.py runs them, after nbval has run their chapter.
"""

import nbval_solutions
import pytest
import solutions
from repository import notebooks

PROGRAMS = {label for path in notebooks() for label in solutions.blocks(path)}


def test_every_program_is_stored_and_no_other():
    assert set(nbval_solutions.stored()) == PROGRAMS


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("a 0.50 b", "a 0.505 b", ""),
        ("a 100", "a 101", ""),
        ("a 0.50", "a 0.55", "0.55 and not 0.50"),
        ("a 0.50", "b 0.50", "and not\na 0.50"),
        ("1 2", "1 2 3", "and not\n1 2"),
        ("", "1", "printed\n1"),
        (None, "1", "no entry"),
    ],
)
def test_what_differs_is_told(old, new, fault):
    told = nbval_solutions.difference(old, new)
    assert fault in told
    assert bool(fault) == bool(told)


@pytest.mark.slow
def test_programs_run_where_their_chapter_ends(pytester):
    """A chapter of two cells, one solution and one starter, each right and wrong."""
    import json

    def notebook(solution: str, starter: str) -> str:
        markdown = [
            f":::{{exercise}} A\n:label: ex-a\n\n```python\n{starter}\n```\n:::",
            f":::{{solution}} ex-a\n:label: sol-a\n\n```python\n{solution}\n```\n:::",
        ]
        cells = [{"cell_type": "code", "source": "x = 1", "outputs": [], "execution_count": 1}]
        cells += [{"cell_type": "markdown", "source": text} for text in markdown]
        cells = [cell | {"metadata": {}, "id": f"c{n}"} for n, cell in enumerate(cells)]
        return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})

    stored = {"ex-a": "1\n"}
    pytester.makeconftest(
        f"import solutions, pathlib\n"
        f"solutions.STORED = pathlib.Path({str(pytester.path / 'stored.json')!r})"
    )
    pytester.path.joinpath("stored.json").write_text(json.dumps(stored))
    cases = {
        "right": ("print(x)", "y = x", {"passed": 3}),
        "other": ("print(x + 1)", "y = x", {"passed": 2, "failed": 1}),
        "raises": ("print(z)", "y = x", {"passed": 2, "failed": 1}),
        "talks": ("print(x)", "print(x)", {"passed": 2, "failed": 1}),
        "broken": ("print(x)", "y = z", {"passed": 2, "failed": 1}),
    }
    for name, (solution, starter, expected) in cases.items():
        path = pytester.path / f"{name}.ipynb"
        path.write_text(notebook(solution, starter))
        found = pytester.runpytest_subprocess(
            "--nbval",
            "--nbval-current-env",
            "-p",
            "nbval_pictures",
            "-p",
            "nbval_solutions",
            "-p",
            "no:cacheprovider",
            path,
        )
        found.assert_outcomes(**expected)
