"""The page "Your own method in 40 lines": every block runs, in order, and each is short."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "book" / "own_method.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_every_block_runs_and_checks_itself():
    names = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    assert all("assert" in block for block in BLOCKS[1:])
    assert set(names["result"].state) == {"params", "own"}


def test_no_method_takes_more_than_forty_lines():
    for block in BLOCKS:
        code = block.split("\n\n\nalgorithm = ")[0]
        assert sum(bool(line.strip()) for line in code.splitlines()) <= 40
