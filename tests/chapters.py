"""Read the book's notebooks and pages the way the tests of their form need them."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from myst import FENCE, STATEMENTS, Directive, directives

PREFIXES = {"theorem": "thm", "proposition": "prop", "lemma": "lem", "corollary": "cor"}


def num_words(text: str) -> int:
    """Words of prose: no solutions, code, displayed mathematics, addresses or directive lines.

    An inline formula counts as one word.
    """
    text = FENCE.sub(lambda f: "" if f["name"] in {"solution", "code-block"} else f[0], text)
    text = re.sub(r"^(`{3,}).*?^\1[ \t]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\\begin\{(align|equation)(\*?)\}.*?\\end\{\1\2\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$]+\$", "formula", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"^(:{3,}.*|:[\w-]+:.*)$", "", text, flags=re.MULTILINE)
    return len(re.findall(r"[^\W_][\w'\u2019–.,-]*", text))


@dataclass(frozen=True)
class Chapter:
    path: Path

    @cached_property
    def notebook(self) -> dict:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def cells(self) -> list[dict]:
        if self.path.suffix == ".md":
            source = self.path.read_text(encoding="utf-8")
            return [{"cell_type": "markdown", "source": source, "metadata": {}}]
        return [cell | {"source": "".join(cell["source"])} for cell in self.notebook["cells"]]

    @cached_property
    def code(self) -> list[dict]:
        return [cell for cell in self.cells if cell["cell_type"] == "code"]

    @cached_property
    def text(self) -> str:
        return "\n\n".join(c["source"] for c in self.cells if c["cell_type"] == "markdown")

    @cached_property
    def directives(self) -> list[Directive]:
        return directives(self.text)

    def section(self, heading: str) -> str:
        """The text below a level-2 heading, up to the next one; empty without such a heading.

        A comment of Python at the start of a line reads as a heading: put it behind the code.
        """
        match = re.search(
            rf"^## {re.escape(heading)}[ \t]*\n(.*?)(?=^#{{1,2}} |\Z)",
            self.text,
            re.MULTILINE | re.DOTALL,
        )
        return match[1] if match else ""

    @property
    def statements(self) -> list[Directive]:
        """Its theorems, propositions, lemmas and corollaries."""
        return [d for d in self.directives if d.name.removeprefix("prf:") in STATEMENTS]


def images(cell: dict) -> list[dict]:
    """The stored outputs of a code cell that hold a picture."""
    return [
        output
        for output in cell.get("outputs", [])
        if any(kind.startswith("image/") for kind in output.get("data", {}))
    ]
