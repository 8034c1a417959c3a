"""Every block of code in a solution runs where its chapter ends, and prints what was read there."""

import json
import re

import pytest
import solutions
from repository import notebooks

CHAPTERS = [path for path in notebooks() if solutions.blocks(path)]
STORED = json.loads(solutions.STORED.read_text("utf-8"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def test_every_solution_with_code_has_been_run_and_read():
    held = {label for path in CHAPTERS for label in solutions.blocks(path)}
    assert held == set(STORED), "Run tools/solutions.py, and compare with the text."


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_solutions_print_what_was_read(path):
    for label, shown in solutions.printed(path).items():
        before, now = STORED[label], shown
        assert NUMBER.sub("#", now).split() == NUMBER.sub("#", before).split(), label
        pairs = zip(NUMBER.findall(before), NUMBER.findall(now), strict=True)
        for old, new in pairs:
            assert float(new) == pytest.approx(float(old), rel=0.02, abs=0.02), f"{label}: {now}"
