"""Every block of code in a solution runs where its chapter ends, and prints what was read there."""

import json
import re

import pytest
import solutions
from repository import notebooks

CHAPTERS = [path for path in notebooks() if solutions.blocks(path)]
STORED = json.loads(solutions.STORED.read_text("utf-8"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def test_what_was_read_is_in_the_book():
    assert set(STORED) <= {label for path in CHAPTERS for label in solutions.blocks(path)}


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_solutions_print_what_was_read(path):
    for label, now in solutions.printed(path).items():  # all of them run
        before = STORED.get(label, now)
        assert NUMBER.sub("#", now).split() == NUMBER.sub("#", before).split(), label
        pairs = zip(NUMBER.findall(before), NUMBER.findall(now), strict=True)
        for old, new in pairs:
            assert float(new) == pytest.approx(float(old), rel=0.02, abs=0.02), f"{label}: {now}"
