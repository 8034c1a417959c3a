"""Sphinx extension: what the built site adds to Jupyter Book's pages.

Permanent links and previews of statements, their index and their place in the search; citations
labelled as the text cites; code that draws or checks, folded under a line that says so; a head
that search engines and other sites can read; print margins; and nothing that points to the
repository's address while that is still the placeholder.
"""

import json
import posixpath
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import pictures
import pybtex.plugin
from bs4 import BeautifulSoup
from docutils import nodes
from PIL import Image
from prf_links import number
from pybtex.style.formatting.alpha import Style as AlphaStyle
from pybtex.style.labels import BaseLabelStyle
from repository import PLACEHOLDER
from sphinx.domains import Index, IndexEntry, ObjType
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_enumerable_node
from sphinx_proof.domain import ProofDomain
from sphinx_proof.nodes import NODE_TYPES

TEMPLATES = Path(__file__).parent / "templates"
STATEMENTS = tuple(NODE_TYPES.values())
# sphinx-proof and sphinx-exercise give these to every statement, so that no page is valid HTML.
REPEATED_IDS = {"proof-content", "exercise-content", "solution-content", "proof"}


DOTS = 110  # per inch, at which figures are shown; they hold twice as many
PDF = "book.pdf"  # where `make pdf` leaves it, below _build and then below the site
SMALLEST = 9  # pixels of text in figures on a phone


# ---- Citations: in the list as in the text ----


class AuthorYearLabels(BaseLabelStyle):
    """`McMahan et al., 2017`; a letter follows where two entries would read the same."""

    def format_labels(self, sorted_entries):
        labels = [self.label(entry) for entry in sorted_entries]
        for position, label in enumerate(labels):
            same = [other for other, text in enumerate(labels) if text == label]
            yield label + (chr(ord("a") + same.index(position)) if len(same) > 1 else "")

    @staticmethod
    def label(entry) -> str:
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [
            " ".join(str(part) for part in person.rich_prelast_names + person.rich_last_names)
            for person in people
        ]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        return f"{who or entry.key}, {entry.fields.get('year', 'undated')}"


class BookStyle(AlphaStyle):
    default_label_style = "author_year"


# ---- Statements: title, permanent link, index, search ----


def plain(node: nodes.Node) -> str:
    """The text of a node on one line, formulas without their TeX commands."""
    text = []
    for part in node.findall(nodes.Text):
        inside_formula = isinstance(part.parent, (nodes.math, nodes.math_block))
        text.append(re.sub(r"\\[a-zA-Z]+\s?|[{}\\]", "", part) if inside_formula else part)
    return " ".join("".join(text).split())


def statements(env) -> list[tuple[str, str, str, str]]:
    """Every numbered statement and exercise in reading order: kind, full title, page, anchor."""
    found = []
    for page in reading_order(env):
        for node in env.get_doctree(page).findall(nodes.Element):
            if isinstance(node, STATEMENTS):
                kind, counter, title = node["realtype"], node["countertype"], node[0]
            elif isinstance(node, exercise_enumerable_node):
                kind = counter = "exercise"
                title = node[0][-1] if len(node[0]) > 1 else nodes.Text("")
            else:
                continue
            label, name = node["ids"][0], plain(title).strip("() ")
            full = f"{kind.title()} {number(env, page, counter, label)}"
            found.append((kind, f"{full} ({name})" if name else full, page, label))
    return found


def reading_order(env) -> list[str]:
    order = [env.config.root_doc]
    for page in order:
        order += [below for below in env.toctree_includes.get(page, []) if below not in order]
    return order


class StatementIndex(Index):
    """The page of all statements, chapter by chapter."""

    name, localname, shortname = "prf", "Statements and exercises", "statements"

    def generate(self, docnames=None):
        env, groups = self.domain.env, {}
        for kind, title, page, anchor in statements(env):
            chapter = ".".join(map(str, env.toc_secnumbers.get(page, {}).get("", ())))
            chapter = (
                f"{chapter}. {plain(env.titles[page])}" if chapter else plain(env.titles[page])
            )
            entry = IndexEntry(title, 0, page, anchor, "", "", kind)
            groups.setdefault((page, chapter), []).append(entry)
        return list(groups.items()), False


def objects(self):
    """What Sphinx's search finds by name."""
    for kind, title, page, anchor in statements(self.env):
        yield title, title, kind, page, anchor, 1


# ---- Code: what draws a figure or checks a statement is folded ----


def code_cells(document) -> list[nodes.container]:
    cells = document.findall(nodes.container)
    return [cell for cell in cells if cell.get("nb_element") == "cell_code" and cell.children]


class FoldCells(SphinxPostTransform):
    """Fold by one rule, whatever the tags; a line says what the code is for.

    Colab's set-up does nothing here, and is left out; so is folded code on paper.
    """

    default_priority = 150  # before myst-nb folds what is marked
    formats = ("html", "latex")

    def run(self, **kwargs):
        names = {anchor: full for _, full, _, anchor in statements(self.env)}
        for cell in code_cells(self.document):
            source = cell.children[0].astext()
            if source.startswith("# Colab set-up"):
                cell.parent.remove(cell)
                continue
            purpose = fold(cell, source, names)
            if purpose and self.app.builder.format == "latex":  # paper does not unfold
                cell.pop(0)
            elif purpose:
                cell["hide_mode"] = "input"
                cell["prompt_show"], cell["prompt_hide"] = f"Show the {purpose}", "Hide the code"


def fold(cell: nodes.container, source: str, names: dict[str, str]) -> str:
    """What a cell's code is for, if it is to be folded."""
    check = re.match("# check: (.+)", source)
    if check:
        return "code that checks " + " and ".join(names[label] for label in check[1].split(", "))
    if any(cell.findall(nodes.image)):
        return "code of this figure"
    if "hide_mode" in cell and re.search(r"^fl\.widgets\.[A-Z]", source, re.MULTILINE):
        return "code of this interactive"
    return "code" if "hide_mode" in cell else ""


class FiguresFirst(SphinxPostTransform):
    """Show a figure above the code that draws it, if that is folded; an interactive as well."""

    default_priority = 250  # after the code is folded
    formats = ("html",)

    def run(self, **kwargs):
        for cell in code_cells(self.document):
            if cell.get("prompt_show", "").startswith("Show the code of this"):
                cell.append(cell.pop(0))


# ---- Pages ----


def pointing_nowhere(app) -> bool:
    return PLACEHOLDER in app.config.html_theme_options.get("repository_url", "")


def mend(app, doctree, page):
    """Permanent links for statements, an id once only, and no link that cannot work."""
    if app.builder.format != "html":
        return
    for node in doctree.findall(nodes.Element):
        if REPEATED_IDS & set(node.get("ids", ())):
            node["ids"] = [name for name in node["ids"] if name not in REPEATED_IDS]
        if isinstance(node, (*STATEMENTS, exercise_enumerable_node)):
            kind = node.get("realtype", "exercise")
            link = (
                f'<a class="headerlink" href="#{node["ids"][0]}" title="Link to this {kind}">#</a>'
            )
            node[0] += nodes.raw("", link, format="html")
    if pointing_nowhere(app):
        for link in list(doctree.findall(nodes.reference)):
            if PLACEHOLDER in link.get("refuri", ""):
                if len(link.parent) == 1 and isinstance(link.parent, nodes.paragraph):
                    link.parent.parent.remove(link.parent)
                else:
                    link.replace_self(link.children)


def description(doctree) -> str:
    """The page's first paragraph of prose, to its last whole sentence within 200 characters."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = plain(paragraph)
        if len(text) >= 80:
            whole = re.match(r".{40,199}[.?!](?=\s|$)", text)
            return whole.group() if whole else text[:199].rsplit(" ", 1)[0] + " …"
    return ""


def css_string(text: str) -> str:
    return '"' + re.sub(r'["\\<\n]', lambda found: f"\\{ord(found.group()):x} ", text) + '"'


def last_commits(folder: str) -> dict[str, str]:
    """Date of the last commit of every file, by path; empty where git does not know."""
    command = ["git", "-C", folder, "log", "--format=:%cs", "--name-only", "--relative"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    dates, day = {}, ""
    for line in lines.splitlines():
        if line.startswith(":"):
            day = line[1:]
        elif line:
            dates.setdefault(line, day)
    return dates


def finish_page(app, page, template, context, doctree):
    """Fill in what our layout.html prints."""
    context["metatags"] = ""  # docutils' second viewport
    title = re.sub(r"<[^>]+>", "", context.get("title", ""))
    context["base"] = app.config.html_baseurl
    context["pdf"] = "" if pdf(app) is None else context["pathto"](PDF, 1)
    context["description"] = description(doctree) if doctree else ""
    context["margins"] = {
        "top-left": css_string(app.config.html_title or app.config.project),
        "top-right": css_string(BeautifulSoup(title, "html.parser").get_text()),
        "bottom-left": css_string(f"{app.config.author} · {app.config.text_licence}"),
    }
    if doctree:
        source = Path(app.env.doc2path(page)).relative_to(app.srcdir).as_posix()
        day = app.site_dates.get(source)
        if day:
            changed = date.fromisoformat(day)
            context["last_updated"] = f"{changed.day} {changed:%B %Y}"
    if pointing_nowhere(app):
        context["header_buttons"] = [
            button
            for button in context.get("header_buttons", [])
            if button.get("label") not in {"launch-buttons", "source-buttons"}
            and PLACEHOLDER not in button.get("url", "")
        ]
    if "body" in context:
        # docutils calls the bibliography a list whose children are no list items.
        # myst-nb names every fold "Toggle hidden content", over the line that says what is in it.
        body = context["body"].replace(' aria-label="Toggle hidden content"', "")
        body = re.sub(r' role="(list(?=" class="citation-list)|doc-biblioentry)"', "", body)
        context["body"] = size_images(app, body)


def pdf(app) -> Path | None:
    """The whole book as PDF, if `make pdf` made it."""
    path = Path(app.srcdir, "_build", PDF)
    return path if path.is_file() else None


def size_images(app, body: str) -> str:
    """Say how large each picture is, so that text does not jump; load all but the first late.

    A box around each lets it scroll on a phone, where its smallest text would become unreadable.
    """
    files = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
    count = 0

    def sized(found):
        nonlocal count
        count += 1
        late = 'loading="lazy" ' if count > 1 else ""
        size = picture_size(files.get(found["name"]))
        if not size:
            return f"<img {late}{found['rest']}>"
        width, height, least = size
        box = f'<span class="picture" style="--least: {least}px">'
        rest = re.sub(r' style="[^"]*"', "", found["rest"])  # the same size, but a fixed one
        return f'{box}<img width="{width}" height="{height}" {late}{rest}></span>'

    tag = r'<img (?P<rest>[^>]*src="[^"]*_images/(?P<name>[^"/]+)"[^>]*)>'
    return re.sub(tag, sized, body)


def picture_size(path: Path | None) -> tuple[int, int, int] | None:
    """Width, height, and the width at which text is no smaller than 9 pixels, in CSS pixels."""
    if path is None or path.suffix != ".png" or not path.is_file():
        return None
    with Image.open(path) as image:
        dots, points = image.info.get("dpi", (DOTS, DOTS))[0], pictures.smallest_text(image)
        width, height = (round(n * DOTS / dots) for n in image.size)
    return width, height, round(width * min(1, SMALLEST / (points * DOTS / 72))) if points else 0


# ---- The whole site ----


def previews(page: str, html: str) -> dict[str, str]:
    """What a link into this page may show beforehand: address -> HTML, without links and ids."""
    soup, found = BeautifulSoup(html, "html.parser"), {}
    article = soup.find("article")
    targets = (
        "div.proof[id], div.exercise[id], figure[id], div.math[id], div.citation[id], "
        "dl:not(.py) > dt[id]"  # not the names of the library: a class holds its methods
    )
    for target in article.select(targets) if article else []:
        anchor = target["id"]
        if target.name == "dt":
            target = target.find_next_sibling("dd") or target
        for extra in target.select("a.headerlink, script, button"):
            extra.decompose()
        for link in target.select("a"):
            link.unwrap()
        for element in [target, *target.select("[id]")]:
            element.attrs.pop("id", None)
        for image in target.select("img"):
            image["src"] = posixpath.normpath(posixpath.join(posixpath.dirname(page), image["src"]))
        found[f"{page}#{anchor}"] = str(target)
    return found


def lighten(folder: Path) -> None:
    """Store figures with 256 colours, which the eye cannot tell from all: a third of the bytes."""
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            few = picture.convert("RGB").quantize(dither=Image.Dither.NONE)
        few.save(path, optimize=True)


def finish_site(app, error):
    """Write previews, site map, robots.txt and 404.html; remove what no page loads."""
    if error or app.builder.name != "html":
        return
    out = Path(app.outdir)
    lighten(out / "_images")
    pages = [f"{page}.html" for page in reading_order(app.env)]
    shown = {}
    for page in pages:
        shown |= previews(page, (out / page).read_text(encoding="utf-8"))
    data = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    (out / "_static/previews.js").write_text(f"bookPreviews({data})\n", encoding="utf-8")

    base = app.config.html_baseurl
    urls = "".join(f"  <url><loc>{base}{page}</loc></url>\n" for page in pages)
    (out / "sitemap.xml").write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{urls}</urlset>\n'
    )
    (out / "robots.txt").write_text(f"User-agent: *\nSitemap: {base}sitemap.xml\n")
    context = {"title": app.config.project, "base": "" if pointing_nowhere(app) else base}
    lost = app.builder.templates.render("404.html", context)
    (out / "404.html").write_text(lost, encoding="utf-8")

    if pdf(app):
        shutil.copyfile(pdf(app), out / PDF)
    shutil.rmtree(out / "_static/vendor/fontawesome", ignore_errors=True)
    for source_map in (out / "_static").glob("s*/*.map"):
        source_map.unlink()


def prepare(app):
    app.site_dates = last_commits(str(app.srcdir))


def setup(app):
    pybtex.plugin.register_plugin("pybtex.style.labels", "author_year", AuthorYearLabels)
    pybtex.plugin.register_plugin("pybtex.style.formatting", "book", BookStyle)
    ProofDomain.indices = [StatementIndex]
    ProofDomain.object_types = {kind: ObjType(kind, "ref") for kind in (*NODE_TYPES, "exercise")}
    ProofDomain.get_objects = objects
    app.add_config_value("text_licence", "", "html")
    app.config.templates_path.append(str(TEMPLATES))
    app.add_post_transform(FoldCells)
    app.add_post_transform(FiguresFirst)
    app.connect("builder-inited", prepare)
    app.connect("doctree-resolved", mend)
    app.connect("html-page-context", finish_page, priority=900)
    app.connect("build-finished", finish_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
