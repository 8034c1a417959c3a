"""Run every block of code in a solution, in the state that its chapter ends in.

    python tools/solutions.py [NOTEBOOK ...]     # stores what they print in tests/solutions.json

What is stored is to be compared with what the solution's text says, by a person; the test then
holds the blocks to it.
"""

import json
import re
import sys
from pathlib import Path

import nbformat
from myst import directives
from nbclient import NotebookClient
from notebooks import load
from repository import ROOT, notebooks

STORED = ROOT / "tests" / "solutions.json"
# In a copy of the chapter's names, so that one block does not see what another leaves behind.
RUN = "exec(compile({source!r}, {label!r}, 'exec'), dict(globals()))"


def blocks(path: Path) -> dict[str, str]:
    """The Python code of each solution of a chapter, by the exercise's label."""
    found = {}
    for cell in load(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for item in directives(cell["source"]):
                code = re.findall(r"^```python\n(.*?)^```", item.body, re.MULTILINE | re.DOTALL)
                if item.name == "solution" and code:
                    found[item.title] = "\n".join(code)
    return found


def printed(path: Path) -> dict[str, str]:
    """What each solution of a chapter prints."""
    chapter, code = load(path), blocks(path)
    chapter["cells"] = [cell for cell in chapter["cells"] if cell["cell_type"] == "code"]
    empty = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    for number, (label, source) in enumerate(code.items()):
        run = RUN.format(source=source, label=label)
        chapter["cells"].append(empty | {"id": f"solution-{number}", "source": run})
    notebook = nbformat.from_dict(chapter)
    NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    last = notebook.cells[len(notebook.cells) - len(code) :]
    return {
        label: "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for label, cell in zip(code, last, strict=True)
    }


if __name__ == "__main__":
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {}
    for path in [Path(name).resolve() for name in sys.argv[1:]] or notebooks():
        if blocks(path):
            stored |= printed(path)
            print(f"ran the solutions of {path.stem}", flush=True)
            text = json.dumps(dict(sorted(stored.items())), indent=1, ensure_ascii=False)
            STORED.write_text(text + "\n", encoding="utf-8")
