"""Write a deck of slides for each chapter: what it promises, states, draws and asks.

    python tools/slides.py FOLDER

A rule decides what is on a slide, so that no tag can be forgotten: the three promises, every
statement and figure under its section's heading, what was seen, the questions and the warm-ups.
Solutions and answers never are. `FOLDER/index.html` lists the decks, which ask nothing of the
network.
"""

import base64
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

import editions
import yaml
from jinja2 import Environment, FileSystemLoader
from markdown_it import MarkdownIt
from mdit_py_plugins.amsmath import amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from myst import CODE, NUMBERED, Plain, blocks
from repository import ROOT, config, notebooks

TEMPLATES, VENDOR = ROOT / "tools" / "templates", ROOT / "assets" / "vendor"
PROMISES = re.compile(
    r"^## (What you will learn|What we have seen)\n(.*?)(?=^#|^\*\*|\Z)", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Slide:
    """One slide.

    Args:
        kind: `promises`, `statement`, `figure`, `question` or `warm-up`.
        heading: The heading that it stands under.
        text: Plain Markdown, as in the notebook editions.
        picture: The bytes of a figure's PNG.
        alt: What the picture shows, in words.
    """

    kind: str
    heading: str
    text: str
    picture: bytes = b""
    alt: str = ""


def deck(path: Path, plainly: Plain, root: Path = ROOT) -> Iterator[Slide]:
    """The slides of a chapter, in its order."""
    quizzes = yaml.safe_load((root / "course" / "quizzes.yml").read_text(encoding="utf-8"))
    heading = ""
    for cell in editions.load(path)["cells"]:
        if cell["cell_type"] == "code":
            yield from figures(cell, heading, plainly)
            continue
        for part in blocks(cell["source"]):
            if isinstance(part, str):
                for title, text in PROMISES.findall(part):
                    yield Slide("promises", title, plainly.text(text.strip()))
                heading = (re.findall(r"^##+ (.*)$", CODE.sub("", part), re.M) or [heading])[-1]
            elif part.kind in NUMBERED and part.name != "exercise":
                yield Slide("statement", heading, plainly.directive(part))
            elif "warm-up" in part.classes:
                yield Slide("warm-up", "Warm-up", plainly.directive(part))
        if cell.get("id") == "quiz":
            for question in quizzes[path.stem]:
                yield Slide("question", "Check yourself", plainly.text(str(question["q"])))


def figures(cell: dict, heading: str, plainly: Plain) -> Iterator[Slide]:
    """The slide of a cell that draws, if it does."""
    about = cell["metadata"].get("mystnb", {})
    for output in cell["outputs"]:
        if picture := output.get("data", {}).get("image/png"):
            caption = about["figure"]
            name = plainly.target(caption["name"]).name
            text = f"**{name}.** {plainly.prose(caption['caption'])}"
            content = base64.b64decode("".join(picture))
            yield Slide("figure", heading, text, content, about["image"]["alt"])


# ---- HTML ----


def formula(content: str, options: dict) -> str:
    opens, closes = ("\\[", "\\]") if options["display_mode"] else ("\\(", "\\)")
    return f"{opens}{escape(content)}{closes}"


@cache
def markdown() -> MarkdownIt:
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.use(dollarmath_plugin, renderer=formula, double_inline=True)
    return reader.use(amsmath_plugin, renderer=escape)


@cache
def template(name: str):
    loader = FileSystemLoader(TEMPLATES)
    loaded = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    loaded.filters["markdown"] = lambda text: markdown().render(text)
    loaded.filters["inline"] = lambda text: markdown().renderInline(text)
    return loaded.get_template(name)


def write(folder: Path, site: str = "", root: Path = ROOT) -> dict[str, list[Slide]]:
    """Write every deck, and the page that lists them.

    Args:
        folder: Where to; what it held is removed.
        site: Where the website is, seen from the folder, if that is part of it. Else MathJax and
            reveal.js are copied into the folder, so that it can be carried anywhere.
        root: The book.

    Returns:
        The slides of each chapter.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "pictures").mkdir(parents=True)
    shutil.copy(TEMPLATES / "slides.css", folder)
    if not site:
        for name in ("mathjax", "reveal"):
            shutil.copytree(VENDOR / name, folder / "vendor" / name)
    settings, labels, numbers = config(root), editions.targets(root), editions.chapters(root)
    home = settings["html"]["baseurl"]
    common = {
        "book": settings["title"],
        "site": home,
        "scripts": f"{site}_static/vendor" if site else "vendor",
        "mathjax": json.dumps(settings["sphinx"]["config"]["mathjax3_config"]),
    }

    def save(name: str, text: str) -> None:
        text = text.replace(home, site) if site else text
        (folder / name).write_text(text, encoding="utf-8")

    decks, titles = {}, {}
    for path in notebooks(root):
        place = path.relative_to(root).with_suffix("").as_posix()
        if place not in numbers:
            continue
        slides = list(deck(path, editions.translator(path, root, labels), root))
        title = re.match("# (.*)", editions.load(path)["cells"][0]["source"])[1]
        decks[path.stem], titles[path.stem] = slides, f"{numbers[place]}. {title}"
        pictures = {}
        for number, slide in enumerate(slides):
            if slide.picture:
                pictures[number] = f"pictures/{path.stem}-{number}.png"
                (folder / pictures[number]).write_bytes(slide.picture)
        facts = common | {"title": titles[path.stem], "page": f"{place}.html"}
        text = template("slides.html").render(facts, slides=slides, pictures=pictures)
        save(f"{path.stem}.html", text)
    save("index.html", template("decks.html").render(common, titles=titles, decks=decks))
    return decks


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Missing folder. Use: python tools/slides.py dist/slides")
    made = write(Path(sys.argv[1]))
    number = sum(map(len, made.values())) + len(made)
    print(f"wrote {len(made)} decks with {number} slides into {sys.argv[1]}")
