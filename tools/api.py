"""Sphinx extension: the page of all public names, and links between them and the chapters.

A docstring's "Chapter 7" and "Theorem 7.1 (thm-representation)" become links; below stands which
chapters use the name. In the other direction, `fl.NAME` in a chapter's text and code links to its
entry. All of it is found when the site is built: nobody keeps a list.
"""

import re
from functools import cache
from html import unescape
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
PAGE = "book/api"
MODULES = ("linear", "plot", "puzzle", "reference", "stored", "widgets", "distributed")
MODULES += ("flower", "loopback")
"""Of fedlib, and what chapters call them."""

USED = re.compile(rf"\b(?:fl\.|(?=(?:{'|'.join(MODULES)})\.))((?:(?:{'|'.join(MODULES)})\.)?\w+)")
NAME = r'<span class="n">{}</span>'
DOT = r'<span class="o">\.</span>'
FL, MODULE, ANY = (NAME.format(name) for name in ("fl", f"({'|'.join(MODULES)})", r"(\w+)"))
CODE = re.compile(rf"(?:{FL}{DOT})?(?:{MODULE}{DOT})?{ANY}")
TEXT = re.compile(
    r'<code class="docutils literal notranslate"><span class="pre">fl\.([\w.]+)</span>'
)


@cache
def chapters() -> dict[int, Path]:
    """The numbered chapters by their numbers."""
    return {int(file.name[:2]): file for file in sorted((ROOT / "book").glob("[0-9][0-9]_*.ipynb"))}


@cache
def used() -> dict[str, list[int]]:
    """The chapters whose code uses a name, by the name as it is written behind `fl.`."""
    found = {}
    for number, file in chapters().items():
        cells = nbformat.read(file, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        for name in sorted({*USED.findall(code)}):
            found.setdefault(name, []).append(number)
    return found


def chapter_link(number: str) -> str:
    file = chapters().get(int(number))
    return f":doc:`{number} </book/{file.stem}>`" if file else number


def link_docstring(app, what, name, obj, options, lines):
    """Make links of what a docstring says of the book, and add where the book uses the name."""
    text = "\n".join(lines)
    text = re.sub(
        r"\b((?:Theorem|Proposition|Lemma|Corollary) [A-Z0-9.]+) \(((?:thm|prop|lem|cor)-[\w-]+)\)",
        r":any:`\1 <\2>`",
        text,
    )
    text = re.sub(
        r"(?<=Chapter )\d+|(?<=Chapters )\d+(?: (?:to|and) \d+)?",
        lambda found: re.sub(r"\d+", lambda n: chapter_link(n[0]), found[0]),
        text,
    )
    lines[:] = text.split("\n")
    numbers = used().get(name.removeprefix("fedlib."))
    if numbers and what in ("function", "class", "data", "exception"):
        where = ", ".join(chapter_link(str(number)) for number in numbers)
        lines += ["", f"Used in Chapter{'s' * (len(numbers) > 1)} {where}.", ""]


def link_code(app, pagename, templatename, context, doctree):
    """Link names of the library in a chapter's code and text to their entries."""
    if "body" not in context or pagename == PAGE or not pagename.startswith("book/"):
        return
    objects = app.env.domains["py"].objects
    page = app.builder.get_relative_uri(pagename, PAGE)

    def linked(text: str, *parts: str) -> str:
        name = ".".join(["fedlib", *(part for part in parts if part)])
        if name not in objects:
            return text
        return f'<a class="api" href="{page}#{name}">{text}</a>'

    def of_code(found: re.Match) -> str:
        dotted = "fl</span>" in found[0] or found[1]
        return linked(found[0], found[1], found[2]) if dotted else found[0]

    body = CODE.sub(of_code, context["body"])
    context["body"] = TEXT.sub(lambda found: linked(found[0], unescape(found[1])), body)


def leave_out_of_pdf(app):
    """The book on paper has no page of names."""
    if app.builder.format == "latex":
        app.config.exclude_patterns += [f"{PAGE}.md"]
        app.config.suppress_warnings += ["etoc.ref", "myst.xref_missing"]


def setup(app):
    for name in ("autodoc", "autosummary", "napoleon"):
        app.setup_extension(f"sphinx.ext.{name}")
    app.config.autodoc_typehints = "none"  # shapes and units are said in words
    app.config.autodoc_member_order = "bysource"
    app.config.napoleon_custom_sections = ["Reference"]
    app.config.napoleon_use_ivar = True
    app.config.napoleon_attr_annotations = False
    app.config.napoleon_use_rtype = False
    app.config.toc_object_entries = False
    # Python's and torch's own types have no page here.
    app.config.nitpick_ignore_regex = [("py:.*", ".*")]
    app.connect("builder-inited", leave_out_of_pdf)
    app.connect("autodoc-process-docstring", link_docstring, priority=400)  # before napoleon
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
