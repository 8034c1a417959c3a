"""Run the notebook editions as a reader in Colab does, and compare what they print and draw.

    python tools/colab.py [--python PATH] [--edition NAME] [--install wheel|git] [CHAPTER ...]

Each notebook runs alone in an empty folder, in an environment with Colab's versions and without
fedlib: its own first cell installs it, from a wheel or from a git address. No package that was
there may change. Without --python, the environment is made as by `make versions NAME=colab`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import editions
import versions
from repository import ROOT, notebooks, pin

RAW = re.compile(
    r"^:{3,}|^\s*`{3,}\{|\{[\w:-]+\}`|\]\(#|\]\((?!https?://|mailto:)[^()\s]*\)|^:[\w-]+:"
    r"|^\([\w-]+\)=|\{\{|^>\s*:{3}|\$\$[ \t]*\([\w-]+\)[ \t]*$|^%",
    re.MULTILINE,
)
"""What only MyST understands, and links that lead nowhere from a notebook by itself."""


def raw_markup(notebook: dict) -> list[str]:
    """The raw markup left in a notebook's texts; code blocks are code."""
    texts = ("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    prose = (re.sub(r"^(`{3,})(?!\{).*?^\1", "", text, flags=re.M | re.S) for text in texts)
    return [found.group() for text in prose for found in RAW.finditer(text)]


def wheel(executable: str, folder: Path) -> str:
    """Build the library's wheel; return its path."""
    command = [executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    (made,) = folder.glob("fedlib-*.whl")
    return str(made)


def packages(executable: str) -> set[str]:
    """Every installed package with its version."""
    command = [executable, "-m", "pip", "list", "--format=freeze"]
    return set(subprocess.check_output(command, text=True).split())


def run(executable: str, path: Path) -> tuple[bool, str, float]:
    """Run one notebook alone in an empty folder; return whether all agreed, a remark, seconds."""
    uninstall = [executable, "-m", "pip", "uninstall", "--quiet", "--yes", "fedlib"]
    subprocess.run(uninstall, check=True, stderr=subprocess.DEVNULL)
    before, start = packages(executable), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, path.name)
        alone.write_bytes(path.read_bytes())
        options = [
            "--nbval",
            "--nbval-current-env",
            "--nbval-cell-timeout=1200",
            "-p",
            "nbval_pictures",
        ]
        options += [f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"]
        help_path = os.pathsep.join(str(ROOT / name) for name in ("tests", "tools"))
        done = subprocess.run(
            [executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, alone.name],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": help_path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    seconds, after = time.monotonic() - start, packages(executable)
    if done.returncode:
        print(done.stdout, flush=True)
    installed = any(name.startswith("fedlib") for name in after)
    gone = sorted(before - after)
    added = sorted(name.split("=")[0] for name in after - before)
    remark = f"{'replaced ' + ', '.join(gone) + '; ' if gone else ''}added {', '.join(added)}"
    return done.returncode == 0 and installed and not gone, remark, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="beginnings of names; all by default")
    parser.add_argument("--python", help="an environment with Colab's versions")
    parser.add_argument("--edition", default="colab", choices=editions.EDITIONS)
    parser.add_argument("--install", default="wheel", choices=("wheel", "git"))
    asked = parser.parse_args()
    executable = asked.python or str(versions.make("colab", None))
    fine = True
    with tempfile.TemporaryDirectory() as folder:
        requirement = f"git+{ROOT.as_uri()}@{pin()}"
        if asked.install == "wheel":
            requirement = wheel(executable, Path(folder))
        made = editions.write(Path(folder, "dist"), requirement)
        names = {path.name for path in notebooks()}
        print(
            "chapter | edition | fedlib from | runs | seconds | raw markup | packages", flush=True
        )
        for path in made:
            wanted = not asked.chapters or path.name.startswith(tuple(asked.chapters))
            if path.parent.name != asked.edition or path.name not in names or not wanted:
                continue
            good, remark, seconds = run(executable, path)
            left = len(raw_markup(editions.load(path)))
            fine &= good and not left
            cells = [path.stem, asked.edition, asked.install, "yes" if good else "NO"]
            print(" | ".join([*cells, f"{seconds:.0f}", str(left), remark]), flush=True)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
