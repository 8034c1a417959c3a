"""DECISIONS.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_holds_a_decision_exists():
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", text)
    assert len(named) > 50
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)


def test_every_decision_stands_in_a_room_and_says_what_was_decided():
    lines = (ROOT / "DECISIONS.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("## ") for line in lines) >= 8
    for line in lines:
        assert not line.startswith("- ") or line.startswith("- **"), line
