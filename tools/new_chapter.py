"""Begin a chapter: `make new-chapter NAME=17_my_title`.

Writes book/17_my_title.ipynb from course/TEMPLATE_chapter.md, which keeps all house rules, and
enters it in `_toc.yml`, behind the last numbered chapter, and in course/quizzes.yml.
"""

import json
import re
import sys
from pathlib import Path

from notebooks import normalise, replace
from repository import ROOT

# Cells in turn, apart by `===`: text, or code after `>>>`.
TEMPLATE = ROOT / "course" / "TEMPLATE_chapter.md"
FIGURE = {
    "mystnb": {
        "image": {"alt": "Three points in the plane, one on each axis and one opposite to both."},
        "figure": {"name": "fig-{key}", "caption": "The heads of three clients."},
    }
}
QUIZ = """{name}:
  - q: The first question?
    a: Its answer, in a sentence.
  - q: The second question?
    a: Its answer.
  - q: The third question?
    a: Its answer.
"""


def cells(name: str) -> list[dict]:
    key = name[3:].replace("_", "-")
    text = TEMPLATE.read_text(encoding="utf-8")
    text = text.format(title=name[3:].replace("_", " ").capitalize(), key=key)
    made = []
    for source in text.strip("\n").split("\n===\n"):
        if source.startswith(">>>"):
            metadata = {}
            if "plt.show()" in source:
                metadata = json.loads(json.dumps(FIGURE).replace("{key}", key))
            empty = {"execution_count": None, "outputs": []}
            made.append({"cell_type": "code", "source": source[3:], "metadata": metadata, **empty})
        else:
            label = re.match(r":::\{\w+\} .*\n:label: (\S+)", source)
            cell = {"cell_type": "markdown", "source": source, "metadata": {}}
            made.append(cell | ({"id": label[1]} if label else {}))
    return made


def begin(name: str, root: Path = ROOT) -> Path:
    """Write the chapter, and enter it where chapters are listed."""
    if not re.fullmatch(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"Invalid NAME={name}: not of the form 17_my_title.")
    path = root / "book" / f"{name}.ipynb"
    if path.exists():
        raise ValueError(f"Invalid NAME={name}: {path.name} exists. Use another name.")
    toc = root / "_toc.yml"
    lines = toc.read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if re.search(r"file: book/\d\d_", line))
    lines.insert(last + 1, f"      - file: book/{name}\n")
    toc.write_text("".join(lines), encoding="utf-8")
    with (root / "course" / "quizzes.yml").open("a", encoding="utf-8") as file:
        file.write(QUIZ.format(name=name))
    notebook = {"cells": cells(name), "metadata": {}}
    replace(path, normalise(notebook, path, root).encode())
    return path


if __name__ == "__main__":
    try:
        path = begin(sys.argv[1] if len(sys.argv) == 2 else "")
    except ValueError as error:
        sys.exit(str(error))
    place = path.relative_to(ROOT)
    print(f"wrote {place}. Change it, then: make chapter NB={place}")
