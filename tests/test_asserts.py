"""No assert leaves a chapter unnoticed."""

import json

import asserts
import pytest
from repository import notebooks

STORED = json.loads(asserts.STORED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_chapters_assert_as_often_as_before(path):
    now = asserts.count(path)
    assert now == STORED.get(path.stem), (
        f"{path.stem} holds {now}, not {STORED.get(path.stem)}. "
        "If that is meant, run `.venv/bin/python tools/asserts.py` and commit tests/asserts.json."
    )


def test_every_count_belongs_to_a_chapter():
    assert STORED.keys() == {path.stem for path in notebooks()}


def test_asserts_are_counted_wherever_they_stand(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": "assert this"},
        {"cell_type": "code", "source": "# check: thm-a, thm-b\nassert a, b\nassert_(c)"},
        {"cell_type": "code", "source": "if x:\n    %pip list\n    assert y  # assert\n'assert z'"},
        {"cell_type": "code", "source": "def f():\n    for a in b:\n        assert a; assert b"},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert asserts.count(path) == {"asserts": 4, "checks": 1}
