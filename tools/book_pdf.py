"""Sphinx extension: what the PDF needs beside Jupyter Book's LaTeX.

Numbers as on the site, statements with their names, proofs without boxes, tables of results set as
tables, and the code that the site folds left out. `make pdf` builds it.
"""

from bs4 import BeautifulSoup
from docutils import nodes
from prf_links import number
from sphinx.util.texescape import escape
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node
from sphinx_proof.nodes import NODE_TYPES, proof_node

STATEMENTS = tuple(NODE_TYPES.values())
FORMAT = "latex"
PREAMBLE = r"""
\newenvironment{bookstatement}{%
  \def\FrameCommand{{\color{gray}\vrule width 1.2pt}\hspace{9pt}}%
  \MakeFramed{\advance\hsize-\width \FrameRestore}}{\endMakeFramed}
\setlength{\emergencystretch}{3em}
\AtBeginDocument{%
  \counterwithin{figure}{chapter}\counterwithin{equation}{chapter}%
  \renewcommand{\thefigure}{\ifnum\value{chapter}>0 \thechapter.\fi\arabic{figure}}}
"""
NARROW = 92
"""Characters of a table's row in small print; a wider one is set smaller still."""


def raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format=FORMAT)


def statement(env, node: nodes.Element) -> list[nodes.Node]:
    """A statement, proof, exercise or solution as a rule in the margin, with its name in bold."""
    title, *content = node.children
    if isinstance(node, STATEMENTS):
        kind, counter = node["realtype"], node["countertype"]
        page = env.proof_list.get(node["label"], {}).get("docname", "")
    elif isinstance(node, exercise_enumerable_node):
        kind = counter = "exercise"
        page = env.sphinx_exercise_registry[node["label"]]["docname"]
        title = title[-1] if len(title) > 1 else nodes.title()
    else:
        kind, counter, page = "", "", ""
    given = [child.deepcopy() for child in getattr(title, "children", [])]
    name = kind.title()
    if counter and node["ids"]:
        name = f"{name} {number(env, page, counter, node['ids'][0])}".strip()
    space = nodes.Text(" ") if name and given else nodes.Text("")
    heading = nodes.paragraph("", "", nodes.strong("", name), space, *given)
    anchor = nodes.target("", "", ids=node["ids"], names=[])
    begin = r"\begin{bookstatement}"
    if kind == "exercise":  # as sphinx-exercise refers to it
        begin = rf"\phantomsection\label{{exercise:{node['label']}}}" + begin
    return [anchor, raw(begin), heading, *content, raw(r"\end{bookstatement}")]


def tabular(table) -> str:
    """A table of results (a BeautifulSoup element) in LaTeX."""

    def text(cell) -> str:
        words = escape(" ".join(cell.get_text(" ").split()), "xelatex")
        return rf"\textbf{{{words}}}" if cell.find("strong") and cell.name == "td" else words

    head = table.select("thead th, thead td")
    rows = table.select("tbody tr")
    body = [row.select("th, td") for row in rows if "block" not in row.get("class", [])]
    widths = [max(len(cell.get_text()) for cell in column) for column in zip(*body, strict=True)]
    left = ["l" if "left" in cell.get("style", "") else "r" for cell in body[-1]]
    size = r"\footnotesize" if sum(widths) + 2 * len(widths) < NARROW else r"\scriptsize"
    heads = " & ".join(map(text, head)) + r"\\ \hline"
    across = rf"\multicolumn{{{len(left)}}}{{@{{}}l}}"
    lines = [rf"\par\smallskip\begingroup{size}\setlength{{\tabcolsep}}{{4pt}}"]
    lines.append(rf"\begin{{longtable}}[l]{{@{{}}{''.join(left)}@{{}}}}")
    if table.caption:
        lines.append(rf"{across}{{\textbf{{{text(table.caption)}}}}}\\*[2pt]")
    lines += [rf"\hline {heads}\endfirsthead", rf"\hline {heads}\endhead"]
    for row in rows:
        if "block" in row.get("class", []):
            lines.append(rf"\noalign{{\smallskip}}{across}{{\textbf{{{text(row.th)}}}}}\\*")
        else:
            lines.append(" & ".join(map(text, row.select("th, td"))) + r"\\")
    lines += [r"\hline", r"\end{longtable}"]
    if table.tfoot:
        lines.append(rf"\vspace{{-1.5ex}}\noindent {text(table.tfoot.td)}\par")
    return "\n".join([*lines, r"\endgroup"])


def mend(app, doctree, page):
    """Turn the assembled book into what LaTeX sets well."""
    if app.builder.format != FORMAT:
        return
    for html in list(doctree.findall(nodes.raw)):
        table = html["format"] == "html" and BeautifulSoup(html.astext(), "html.parser").table
        if table and "results" in table.get("class", []):
            html.replace_self(raw(tabular(table)))
    kinds = (*STATEMENTS, proof_node, exercise_enumerable_node, solution_node)
    for node in list(doctree.findall(nodes.Element)):
        if isinstance(node, kinds):
            node.replace_self(statement(app.env, node))
    for section in list(doctree.findall(nodes.section)):
        if is_page(section) and not numbered(app.env, section):
            at = section.parent.index(section)
            section.parent.insert(at, raw(r"\setcounter{secnumdepth}{-2}"))
            section.parent.insert(at + 2, raw(r"\setcounter{secnumdepth}{1}"))
    for link in list(doctree.findall(nodes.reference)):
        if "colab.research" in link.get("refuri", "") and len(link.parent) == 1:
            link.parent.parent.remove(link.parent)


def is_page(section: nodes.section) -> bool:
    return section.parent.tagname == "start_of_file"


def numbered(env, section: nodes.section) -> bool:
    """Whether the contents give a page, or one of a part's pages, a number."""
    inside = [start["docname"] for start in section.findall() if start.tagname == "start_of_file"]
    pages = inside or [section.parent["docname"]]
    return any(env.toc_secnumbers.get(page, {}).get("") for page in pages)


def prepare(app):
    if app.builder.format == FORMAT:
        app.config.numfig_secnum_depth = 1  # the parts are no part of a number


def configure(app, config):
    config.latex_elements.setdefault("preamble", "")
    config.latex_elements["preamble"] += PREAMBLE


def setup(app):
    app.connect("config-inited", configure, priority=100)
    app.connect("builder-inited", prepare, priority=900)
    app.connect("doctree-resolved", mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
