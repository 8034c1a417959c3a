"""Run chapters and tests with the oldest supported packages, and with those of Colab.

The oldest are the lower bounds of pyproject.toml themselves; Colab's are in requirements-colab.txt.
Each environment is made below _build/versions, runs the notebooks and the library's tests, and
becomes lines of the table. `--torch` replaces the version of PyTorch, by far the largest download;
`--only` replaces what is run.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from environment import ROOT, requirements

PYTHON = {"oldest": "3.11", "colab": "3.13"}
# What runs notebooks and tests has the book's own versions, where Colab does not say otherwise.
TOOLS = [
    *("pytest", "pytest-xdist", "nbval", "hypothesis", "beartype", "beautifulsoup4", "playwright"),
    *("ipykernel", "nbclient", "nbformat", "pillow", "PyYAML", "ipywidgets", "anywidget"),
]
WHOLE = [["book"], ["tests", "fedlib", "-m", "not browser"]]


def bounds() -> dict[str, str]:
    """The lower bounds of fedlib's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(bound.split(">=") for bound in project["dependencies"])


def pins(name: str) -> dict[str, str]:
    """Every package of an environment that is asked for, with its version."""
    text = (ROOT / "requirements-colab.txt").read_text(encoding="utf-8")
    own = bounds() if name == "oldest" else dict(re.findall(r"^([\w-]+)==(\S+)", text, re.M))
    book = requirements()
    return {tool: book[tool] for tool in TOOLS} | own


def python(name: str) -> str:
    """The environment's Python, if it is on the path, else the one that runs this."""
    wanted = f"python{PYTHON[name]}"
    there = shutil.which(wanted) and not subprocess.call([wanted, "-V"], stderr=subprocess.DEVNULL)
    return wanted if there else sys.executable


def make(name: str, torch: str | None) -> Path:
    folder = ROOT / "_build" / "versions" / name
    wanted = pins(name) | ({"torch": torch} if torch else {})
    run([python(name), "-m", "venv", "--clear", folder])
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run([*pip, *(f"{package}=={version}" for package, version in wanted.items())])
    run([*pip, "--no-deps", "--editable", ROOT])
    return folder / "bin" / "python"


def run(command: list) -> None:
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)


def tested(executable: Path, paths: list[str]) -> tuple[bool, str]:
    """Whether pytest was content, and its last line."""
    command = [str(executable), "-m", "pytest", "-q", "-n", "logical", "--maxprocesses", "4"]
    process = subprocess.Popen(
        [*command, "--dist", "loadscope", "-p", "no:cacheprovider", *paths],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    return process.wait() == 0, last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=" or ".join(PYTHON))
    parser.add_argument("--torch", help="a version of PyTorch instead of the environment's")
    parser.add_argument("--only", nargs="+", help="what pytest runs, instead of everything")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(PYTHON):
        parser.error(f"Invalid name={min(unknown)}: unknown. Use one of {', '.join(PYTHON)}.")
    table, fine = [], True
    for name in asked.names or PYTHON:
        start = time.monotonic()
        executable = make(name, asked.torch)
        shown = [*bounds(), "ipykernel", "ipython"]
        code = (
            "import sys, importlib.metadata as m; "
            "print(sys.version.split()[0], *(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
        )
        what = subprocess.check_output([executable, "-c", code, *shown], text=True).strip()
        results = [tested(executable, paths) for paths in ([asked.only] if asked.only else WHOLE)]
        fine &= all(content for content, _ in results)
        table.append(f"{name}: Python {what}")
        table += [f"    {last}" for _, last in results]
        table.append(f"    {time.monotonic() - start:.0f} s in all")
    print("\n".join(table))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
