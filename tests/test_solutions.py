"""The programs of solutions: every one is stored, and a different print is seen.

tests/nbval_solutions.py runs them, after nbval has run their chapter.
"""

import json
import os
import re
import subprocess
import sys

import nbval_solutions
import pytest
import solutions
from repository import ROOT, notebooks

PROGRAMS = {label for path in notebooks() for label in solutions.blocks(path)}


def test_every_program_is_stored_and_no_other():
    assert set(nbval_solutions.stored()) == PROGRAMS


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("a 0.50 b", "a 0.505 b", ""),
        ("a 100", "a 101", ""),
        ("a 0.50", "a 0.55", "0.55 and not 0.50"),
        ("a 0.02", "a 0.03", ""),
        ("a 0.0213", "a 0.03", "0.03 and not 0.0213"),
        ("7.7e-05", "7.8e-05", ""),
        ("7.7e-05", "9.7e-05", "9.7e-05 and not 7.7e-05"),
        ("20 -1", "20 1", "1 and not -1"),
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


def notebook(solution: str, starter: str) -> str:
    """A chapter of one cell, one exercise with a starter, and its solution."""
    texts = [
        f":::{{exercise}} A\n:label: ex-a\n\n```python\n{starter}\n```\n:::",
        f":::{{solution}} ex-a\n:label: sol-a\n\n```python\n{solution}\n```\n:::",
    ]
    cells = [{"cell_type": "code", "source": "x = 1", "outputs": [], "execution_count": 1}]
    cells += [{"cell_type": "markdown", "source": text} for text in texts]
    cells = [cell | {"metadata": {}, "id": f"c{number}"} for number, cell in enumerate(cells)]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def test_programs_run_where_their_chapter_ends(tmp_path):
    """What prints something else, raises or, being a starter, prints at all, fails."""
    (tmp_path / "stored.json").write_text(json.dumps({"ex-a": "1\n"}))
    stored = f"solutions.STORED = pathlib.Path({str(tmp_path)!r}, 'stored.json')"
    (tmp_path / "conftest.py").write_text(f"import pathlib, solutions\n{stored}\n")
    cases = {
        "right": ("print(x)", "y = x"),
        "other": ("print(x + 1)", "y = x"),
        "raises": ("print(z)", "y = x"),
        "talks": ("print(x)", "print(x)"),
        "broken": ("print(x)", "y = z"),
    }
    for name, pair in cases.items():
        (tmp_path / f"{name}.ipynb").write_text(notebook(*pair))
    plugins = ["--nbval", "--nbval-current-env", "-p", "nbval_pictures", "-p", "nbval_solutions"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rfp",
            "-p",
            "no:cacheprovider",
            *plugins,
            tmp_path,
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(str(ROOT / n) for n in ("tests", "tools"))},
        capture_output=True,
        text=True,
    )
    failed = set(re.findall(r"^FAILED (\w+)\.ipynb::(\w+) ex-a", done.stdout, re.MULTILINE))
    expected = {("other", "solution"), ("raises", "solution")}
    assert failed == expected | {("talks", "exercise"), ("broken", "exercise")}, done.stdout
    assert len(re.findall("^PASSED", done.stdout, re.MULTILINE)) == 3 * len(cases) - len(failed)
