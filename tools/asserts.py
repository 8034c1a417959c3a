"""Count what each chapter asserts, so that no assert goes unnoticed.

python tools/asserts.py       # store the counts, where a change is meant
"""

import ast
import json
import re
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager
from notebooks import load
from repository import ROOT, notebooks

STORED = ROOT / "tests" / "asserts.json"


def count(path: Path) -> dict[str, int]:
    """The number of `assert` statements and of `# check:` lines in a notebook's code."""
    code = [cell["source"] for cell in load(path)["cells"] if cell["cell_type"] == "code"]
    trees = [ast.parse(TransformerManager().transform_cell(source)) for source in code]
    return {
        "asserts": sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree)),
        "checks": sum(len(re.findall(r"^# check: ", source, re.MULTILINE)) for source in code),
    }


def counts() -> dict[str, dict[str, int]]:
    return {path.stem: count(path) for path in notebooks()}


if __name__ == "__main__":
    STORED.write_text(json.dumps(counts(), indent=2) + "\n", encoding="utf-8")
