"""Run every program in a solution in the state that its chapter ends in, and store what it prints.

    python tools/solutions.py [NOTEBOOK ...]     # all of _toc.yml by default

What is stored in tests/solutions.json is to be compared with the solution's text, by a person;
whenever nbval has run a chapter, tests/nbval_solutions.py holds its solutions to it.
"""

import json
import sys
from pathlib import Path

from editions import PYTHON
from myst import directives
from notebooks import load
from repository import ROOT, notebooks

STORED = ROOT / "tests" / "solutions.json"
# In a copy of the chapter's names, so that one block does not see what another leaves behind.
RUN = "exec(compile({source!r}, {label!r}, 'exec'), dict(globals()))"


def blocks(path: Path, directive: str = "solution") -> dict[str, str]:
    """The program in each solution of a chapter, or in each `exercise`, by the exercise's label."""
    found = {}
    for cell in load(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for item in directives(cell["source"]):
                if item.name == directive and (code := PYTHON.findall(item.body)):
                    label = item.title if directive == "solution" else item.options["label"]
                    found[label] = "\n".join(code)
    return found


def as_cells(code: dict[str, str]) -> list[str]:
    """The sources of the cells that run such blocks."""
    return [RUN.format(source=source, label=label) for label, source in code.items()]


def store(printed: dict[str, str]) -> None:
    """Renew the entries of some solutions; forget those that are no longer in the book."""
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    known = {label for path in notebooks() for label in blocks(path)}
    kept = {label: text for label, text in sorted((stored | printed).items()) if label in known}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    STORED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    from refresh import execute

    for path in [Path(name).resolve() for name in sys.argv[1:]] or notebooks():
        if code := blocks(path):
            _, said = execute(path, as_cells(code))
            store(dict(zip(code, said, strict=True)))
            print(f"ran the solutions of {path.stem}", flush=True)
