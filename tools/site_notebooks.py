"""Sphinx extension: buttons of a page open the plain notebook, in Colab, Binder or as a download.

The editions lie on the site beside the pages, so a download works wherever the site does. The
theme's own buttons would open the sources, which only MyST can read, and hand out solutions.
"""

import re
from pathlib import Path

import editions
import slides
from docutils import nodes
from myst import marks
from repository import EDITIONS, ROOT, binder, config
from repository import editions as address
from site_parts import pointing_nowhere
from sphinx_exercise.nodes import exercise_enumerable_node, exercise_node


def buttons(app, page, template, context, doctree):
    """Replace the theme's buttons for downloads; add slides, and those that start a notebook."""
    source = Path(app.env.doc2path(page)) if doctree else Path()
    groups = context.get("header_buttons", [])
    if source.suffix != ".ipynb":
        return
    plain = context["pathto"](f"{EDITIONS}/colab/{source.name}", 1)
    for group in groups:
        for button in group.get("buttons", []):
            if "_sources/" in button.get("url", ""):
                button |= {"url": plain, "text": ".ipynb"}
    if page in editions.chapters():
        groups.append(
            {
                "type": "link",
                "url": context["pathto"](f"slides/{source.stem}.html", 1),
                "tooltip": "Slides of this chapter",
                "icon": "fas fa-display",
                "label": "slides-button",
            }
        )
    if not pointing_nowhere(app):
        groups.append(launchers(source.name))


def launchers(name: str, root: Path = ROOT) -> dict:
    """The group of buttons that start a notebook elsewhere, as the theme describes one."""
    settings = config(root)
    url, site = settings["repository"]["url"], settings["html"]["baseurl"]
    places = {"Binder": f"{binder(url)}?urlpath=lab/tree/colab/{name}"}
    if "//colab." in address(url, site):
        places["Colab"] = f"{address(url, site)}colab/{name}"
    icons = {"Binder": "logo_binder.svg", "Colab": "logo_colab.png"}
    return {
        "type": "group",
        "tooltip": "Run this chapter",
        "icon": "fas fa-rocket",
        "label": "launch-buttons",
        "buttons": [
            {
                "type": "link",
                "text": place,
                "tooltip": f"Run on {place}",
                "icon": f"_static/images/{icons[place]}",
                "url": where,
            }
            for place, where in places.items()
        ],
    }


def publish(app, error):
    """Put editions and slides on the site, and take the sources off it."""
    if error or app.builder.name != "html":
        return
    editions.write(Path(app.outdir, EDITIONS))
    slides.write(Path(app.outdir, "slides"), "../")
    for source in Path(app.outdir, "_sources").rglob("*.ipynb"):
        source.unlink()


def know_the_host(app, settings):
    """Tell the theme, which stops at hosts it does not know: Gitea has GitHub's addresses."""
    options = settings.html_theme_options
    host = options.get("repository_url", "").partition("://")[2].partition("/")[0]
    if host and not re.search("github|gitlab|bitbucket", host):
        options["repository_provider"] = "github"
    elif "bitbucket" in host:
        options["use_issues_button"] = False  # the theme cannot


def annotate(app, doctree):
    """Mark sections that a class may leave out, and say of exercises how hard and long they are."""
    left_out = editions.optional().get(app.env.docname, [])
    for section in doctree.findall(nodes.section):
        if section[0].astext() in left_out:
            note = nodes.emphasis(text=editions.OPTIONAL)
            section.insert(1, nodes.paragraph("", "", note, classes=["optional"]))
    for exercise in doctree.findall(nodes.Element):
        kinds = (exercise_node, exercise_enumerable_node)
        if isinstance(exercise, kinds) and (said := marks(exercise["classes"])):
            exercise[1].insert(
                0, nodes.paragraph("", "", nodes.emphasis(text=said), classes=["marks"])
            )


def setup(app):
    app.connect("doctree-read", annotate)
    app.connect("config-inited", know_the_host)
    app.connect("html-page-context", buttons, priority=950)  # after site_parts
    app.connect("build-finished", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
