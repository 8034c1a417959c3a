"""Keep what a notebook file holds beside its text the same everywhere, so that diffs stay small.

    python tools/notebooks.py [NOTEBOOK ...]     # all of _toc.yml by default

Writes the Colab line and cell from `_config.yml`, one metadata block, stable cell ids.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml
from repository import ROOT, colab_cell, colab_link, notebooks

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
OPENS = r"\[(Open in Colab|Download this notebook)\]\("  # the line that colab_link writes
COLAB_TAGS = ["hide-input", "remove-output"]
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def load(path: Path) -> dict:
    """Read a notebook as plain JSON with joined sources: nbformat would invent random ids."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
    return notebook


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, or leave it as it is: the disk may be full."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        made = Path(folder, path.name)
        made.write_bytes(content)
        os.replace(made, path)


def is_colab_cell(cell: dict) -> bool:
    return cell["cell_type"] == "code" and cell["source"].startswith("# Colab set-up")


def normalise(notebook: dict, path: Path, root: Path = ROOT) -> str:
    """Return the text of the notebook file, normalised."""
    _add_colab(notebook["cells"], path, root)
    _add_quiz(notebook["cells"], path, root)
    _fill_ids(notebook["cells"])
    for cell in notebook["cells"]:
        cell["source"] = cell["source"].strip("\n")
        _join_streams(cell.get("outputs", []))
        kept = {key: cell["metadata"][key] for key in ("mystnb", "tags") if key in cell["metadata"]}
        cell["metadata"] = kept
    widgets = _keep_interactives(notebook)
    notebook["metadata"] = METADATA | ({"widgets": widgets} if widgets else {})
    notebook |= {"nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(notebook)
    # Widget ids are random: number them in order of creation.
    for number, old in enumerate(widgets.get(WIDGET_STATE, {}).get("state", {})):
        text = text.replace(old, f"{number:032x}")
    text = nbformat.writes(nbformat.from_dict(json.loads(text)), version=nbformat.NO_CONVERT)
    return text.rstrip("\n") + "\n"


def _keep_interactives(notebook: dict) -> dict:
    """Drop stored sliders that would move and change nothing: all but those of our interactives."""
    whole = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {})
    state, kept = whole.get("state", {}), set()
    alive = [key for key, model in state.items() if model["model_module"] == "anywidget"]
    while alive:
        kept.add(key := alive.pop())
        named = re.findall(r"IPY_MODEL_(\w+)", json.dumps(state[key]["state"]))
        alive += [other for other in named if other in state and other not in kept]
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            view = output.get("data", {}).get(WIDGET_VIEW)
            if view and view["model_id"] not in kept:
                del output["data"][WIDGET_VIEW]
    state = {key: model for key, model in state.items() if key in kept}
    return {WIDGET_STATE: whole | {"state": state}} if state else {}


def _join_streams(outputs: list[dict]) -> None:
    """Store what a cell prints in one piece: into how many a kernel cut it is chance."""
    for later in range(len(outputs) - 1, 0, -1):
        first, second = outputs[later - 1 : later + 1]
        if first["output_type"] == second["output_type"] == "stream" and (
            first["name"] == second["name"]
        ):
            first["text"] = ["".join([*first["text"], *second["text"]])]
            del outputs[later]


def _add_colab(cells: list[dict], path: Path, root: Path) -> None:
    title, _, rest = cells[0]["source"].partition("\n")
    lines = [line for line in rest.split("\n") if not re.match(OPENS, line)]
    body = "\n".join(lines).strip("\n")
    cells[0]["source"] = f"{title}\n\n{colab_link(path, root)}\n\n{body}"
    existing = next((cell for cell in cells if is_colab_cell(cell)), None)
    if existing is None:
        existing = {"cell_type": "code", "execution_count": None, "id": "colab", "outputs": []}
        cells.insert(1, existing)
    existing |= {"source": colab_cell(root), "metadata": {"tags": COLAB_TAGS}}


def _add_quiz(cells: list[dict], path: Path, root: Path) -> None:
    """Write the chapter's questions from course/quizzes.yml before its exercises."""
    source = root / "course" / "quizzes.yml"
    quizzes = yaml.safe_load(source.read_text(encoding="utf-8")) if source.exists() else {}
    text = "## Check yourself"
    for number, item in enumerate(quizzes.get(path.stem, []), 1):
        head = f":::{{admonition}} {number}. {item['q']}\n:class: quiz dropdown"
        text += f"\n\n{head}\n\n{item['a']}\n:::"
    old = [cell for cell in cells if cell.get("id") == "quiz"]
    for cell in old:
        cells.remove(cell)
    at = [n for n, cell in enumerate(cells) if cell["source"].startswith("## Exercises")]
    if path.stem in quizzes and at:
        cells.insert(at[0], {"cell_type": "markdown", "id": "quiz", "metadata": {}, "source": text})


def _fill_ids(cells: list[dict]) -> None:
    """Give every cell without an id of its own one that depends on its text alone."""
    seen = set()
    for cell in cells:
        name = cell.get("id")
        copies = 0
        while not name or name in seen:
            name = hashlib.sha256(f"{cell['source']}{copies}".encode()).hexdigest()[:8]
            copies += 1
        cell["id"] = name
        seen.add(name)


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or notebooks():
        old = path.read_text(encoding="utf-8")
        new = normalise(load(path), path)
        if new != old:
            replace(path, new.encode())
            print(f"normalised {path.relative_to(ROOT)}")
