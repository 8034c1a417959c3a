"""Write the notebook editions: plain Markdown that Colab, GitHub, VS Code and Jupyter show.

    [INSTALL=REQUIREMENT] python tools/editions.py FOLDER

`FOLDER/colab` holds every chapter, with solutions folded; `FOLDER/student` the same without
solutions and with cells for answers. REQUIREMENT is what their set-up cell installs: by default
fedlib from this repository, at the tag or commit at hand; or the address of a wheel.
"""

import os
import posixpath
import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import nbformat
import yaml
from myst import EQUATION, NUMBERED, Directive, Plain, Target, blocks, directives
from notebooks import METADATA, OPENS, is_colab_cell, load
from pybtex.database import parse_file
from repository import ROOT, binder, colab_link, config, notebooks, pages, pin, setup_cell

EDITIONS = ("colab", "student")
ANSWER = "*Your answer:*"
PYTHON = re.compile(r"^```python\n(.*?)^```\n*", re.MULTILINE | re.DOTALL)


# ---- What labels stand for ----


def chapters(root: Path = ROOT) -> dict[str, int]:
    """The numbers of the numbered pages, by name."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = [part["chapters"] for part in toc["parts"] if part.get("numbered")]
    names = [chapter["file"] for part in parts for chapter in part]
    return {name: number for number, name in enumerate(names, 1)}


def cells(path: Path) -> list[dict]:
    if path.suffix == ".ipynb":
        return load(path)["cells"]
    return [{"cell_type": "markdown", "source": path.read_text("utf-8"), "metadata": {}}]


def targets(root: Path = ROOT) -> dict[str, Target]:
    """Every label of the book: numbers are counted as the site counts them."""
    numbers, found, site = chapters(root), {}, config(root)["html"]["baseurl"]
    for path in pages(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        prefix = f"{numbers[name]}." if name in numbers else ""
        counts: dict[str, int] = {}
        for kind, label in (pair for cell in cells(path) for pair in labelled(cell)):
            if kind.startswith("unnumbered "):
                found[label] = Target(kind.partition(" ")[2], f"{site}{name}.html#{label}")
                continue
            counts[kind] = counts.get(kind, 0) + 1
            if label:
                full = f"{kind.title()} {prefix}{counts[kind]}" if kind else label
                anchor = f"equation-{label}" if kind == "equation" else label
                found[label] = Target(full, f"{site}{name}.html#{anchor}")
    return found


def labelled(cell: dict) -> list[tuple[str, str]]:
    """Kind and label of what is numbered in a cell; places that are merely named have no kind."""
    if cell["cell_type"] == "code":
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        return [("figure", figure.get("name", ""))] if figure else []
    text = cell["source"]
    found = [
        (item.kind, item.options.get("label", ""))
        for item in directives(text)
        if item.kind in NUMBERED and "nonumber" not in item.options
    ]
    found += [
        (f"unnumbered {item.title or item.kind.title()}", item.options["label"])
        for item in directives(text)
        if item.kind in NUMBERED and {"nonumber", "label"} <= set(item.options)
    ]
    found += [("equation", equation["label"]) for equation in EQUATION.finditer(text)]
    named = re.findall(r"^\(([\w-]+)\)=", text, re.MULTILINE)
    headings = re.findall(r"^#{1,3} (.*)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in headings]
    boxes = [d.options["label"] for d in directives(text) if d.name == "solution" and d.options]
    return found + [("", label) for label in [*named, *slugs, *boxes]]


@cache
def bibliography(root: Path = ROOT) -> dict[str, tuple[str, str]]:
    """Who wrote an entry, and when, as the site says it."""
    from site_parts import AuthorYearLabels  # needs Sphinx

    entries = parse_file(str(root / "references.bib"), bib_format="bibtex").entries
    ordered = sorted(entries.values(), key=lambda entry: entry.key)
    labels = AuthorYearLabels().format_labels(ordered)
    pairs = zip(ordered, labels, strict=True)
    return {entry.key: tuple(label.rsplit(", ", 1)) for entry, label in pairs}


def translator(path: Path, root: Path, labels: dict[str, Target]) -> Plain:
    """The translator for one page."""
    site, folder = config(root)["html"]["baseurl"], path.relative_to(root).parent.as_posix()
    known = pages(root)

    def page(address: str) -> str:
        name, mark, anchor = address.partition("#")
        place = posixpath.normpath(posixpath.join(folder, name))
        if root / place not in known:
            raise ValueError(f"Invalid link {address} in {path.name}: no page of _toc.yml.")
        return f"{site}{Path(place).with_suffix('.html').as_posix()}{mark}{anchor}"

    def citation(key: str) -> tuple[str, str, str]:
        return *bibliography(root)[key], f"{site}book/bibliography.html#cite-{key}"

    return Plain(labels, page, citation)


# ---- Editions ----

OPTIONAL = "Optional on the shorter paths."


@cache
def optional(root: Path = ROOT) -> dict[str, list[str]]:
    """The sections that a class may leave out, by page."""
    path = root / "course" / "paths.yml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def mark_optional(text: str, headings: list[str]) -> str:
    """Say below a heading that its section may be left out."""
    for heading in headings:
        at = rf"^(#+ {re.escape(heading)}[ \t]*)$"
        text = re.sub(at, lambda found: f"{found[1]}\n\n*{OPTIONAL}*", text, flags=re.M)
    return text


def plain(path: Path, edition: str, requirement: str, plainly: Plain, root: Path = ROOT) -> dict:
    """One chapter in one edition."""
    notebook = load(path)
    made = []
    left_out = optional(root).get(path.relative_to(root).with_suffix("").as_posix(), [])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = mark_optional(cell["source"], left_out)
            made += markdown_cells(cell, edition, plainly)
        else:
            made += code_cells(cell, requirement, plainly)
    title, _, rest = made[0]["source"].partition("\n\n")
    rest = rest.partition("\n\n")[2] if re.match(OPENS, rest) else rest
    made[0]["source"] = f"{title}\n\n{colab_link(path, root, edition)}\n\n{rest}"
    metadata = METADATA | {key: v for key, v in notebook["metadata"].items() if key == "widgets"}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def markdown_cells(cell: dict, edition: str, plainly: Plain) -> list[dict]:
    """A cell of text; what belongs to exercises becomes cells of its own."""
    made, prose = [], []

    def close() -> None:
        if prose:
            made.append(markdown("\n\n".join(prose)))
            prose.clear()

    for part in blocks(cell["source"]):
        if isinstance(part, str) or part.name not in {"exercise", "solution"}:
            said = plainly.prose(part) if isinstance(part, str) else plainly.directive(part)
            prose.append(said.strip("\n"))
            continue
        close()
        if part.name == "exercise":
            made += exercise_cells(part, edition, plainly)
        elif edition != "student":
            made.append(markdown(plainly.directive(part).strip("\n")))
    close()
    for number, one in enumerate(made):
        one["id"] = f"{cell['id']}-{number}" if number else cell["id"]
    return made


def exercise_cells(item: Directive, edition: str, plainly: Plain) -> list[dict]:
    """An exercise, with its hint; room for an answer; and where its program starts, as code."""
    text = replace(item, body=PYTHON.sub("", item.body))
    made = [markdown(plainly.directive(text).strip("\n"))]
    if edition == "student":
        made.append(markdown(ANSWER))
    if starters := PYTHON.findall(item.body):
        name = plainly.target(item.options["label"]).name
        made.append(code(f"# {name}\n" + "\n".join(starters).rstrip("\n")))
    return made


def code_cells(cell: dict, requirement: str, plainly: Plain) -> list[dict]:
    """A cell of code, and the caption of its figure below it."""
    tags = cell["metadata"].get("tags", [])
    metadata = {"tags": tags} if tags else {}
    if "hide-input" in tags:
        metadata["jupyter"] = {"source_hidden": True}
    made = cell | {"metadata": metadata}
    if is_colab_cell(cell):
        made |= {"source": setup_cell(requirement)}
        metadata["tags"] = [*tags, "nbval-ignore-output"]  # pip says what it likes
    figure = cell["metadata"].get("mystnb", {}).get("figure", {})
    if not figure.get("caption"):
        return [made]
    name = plainly.target(figure["name"]).name
    caption = f"**{name}.** {plainly.prose(figure['caption'])}"
    return [made, markdown(caption) | {"id": f"{cell['id']}-caption"}]


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(text: str) -> dict:
    empty = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "metadata": {}, "source": text, **empty}


# ---- Files ----

README = """# Notebooks of *{title}*

Written by `make notebooks` from the book's sources; changes belong there. The book: {site}

- `colab/` – every chapter as a plain notebook, solutions folded.
- `student/` – the same without solutions, with cells for answers.

Each notebook installs `fedlib` in its first cell if it is missing: `{requirement}`.
All of them on Binder: {binder}
"""


def write(folder: Path, requirement: str = "", root: Path = ROOT) -> list[Path]:
    """Write all editions below a folder; return the notebooks."""
    url, commit = config(root)["repository"]["url"], pin(root)
    requirement = requirement or f"git+{url}{f'@{commit}' if commit else ''}"
    made, labels = [], targets(root)
    for edition in EDITIONS:
        shutil.rmtree(folder / edition, ignore_errors=True)
        (folder / edition).mkdir(parents=True)
        for path in notebooks(root):
            plainly = translator(path, root, labels)
            node = nbformat.from_dict(plain(path, edition, requirement, plainly, root))
            nbformat.validate(node)
            made.append(folder / edition / path.name)
            text = nbformat.writes(node, version=nbformat.NO_CONVERT)
            made[-1].write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    settings = config(root)
    facts = dict(title=settings["title"], site=settings["html"]["baseurl"], binder=binder(url))
    text = README.format(requirement=requirement, **facts)
    (folder / "README.md").write_text(text, encoding="utf-8")
    for source in (root / "binder").glob("*"):
        (folder / "binder").mkdir(exist_ok=True)
        text = source.read_text(encoding="utf-8").replace(f"git+{url}", requirement)
        (folder / "binder" / source.name).write_text(text, encoding="utf-8")
    return made


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Missing folder. Use: python tools/editions.py dist")
    number = len(write(Path(sys.argv[1]), os.environ.get("INSTALL", "")))
    print(f"wrote {number} notebooks below {sys.argv[1]}")
