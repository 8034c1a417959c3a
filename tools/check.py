"""Check one chapter or one file in seconds.

make check CHAPTER=7                # or CHAPTER=07_theorem: its form, its statements, their tests
make check FILE=fedlib/local.py     # its examples, and the tests that name it
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FORM = ("chapters", "book", "statements", "citations")


def chapter(name: str) -> tuple[Path, list[str]]:
    """Return a chapter's notebook, and what pytest is told to run."""
    number = f"{int(name):02d}" if name.isdigit() else name.removesuffix(".ipynb").split("/")[-1]
    found = [*(ROOT / "book").glob(f"{number}*.ipynb")]
    if len(found) != 1:
        sys.exit(f"Invalid CHAPTER={name}: no such chapter. Use CHAPTER=7, or CHAPTER=07_theorem.")
    own = [f"tests/{file.name}" for file in (ROOT / "tests").glob(f"test_{found[0].stem}.py")]
    forms = [f"tests/test_{form}.py" for form in FORM]
    return found[0], [*own, *forms, "-k", f"{found[0].stem} or test_{found[0].stem}"]


def file(name: str) -> tuple[Path, list[str]]:
    """Return a file, and what pytest is told to run for it."""
    path = (ROOT / name).resolve()
    if path.suffix != ".py" or not path.is_file():
        sys.exit(f"Invalid FILE={name}: no such file. Use FILE=fedlib/local.py, say.")
    if path.parent.name == "tests":
        return path, [name]
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    names = re.compile(rf"\bfrom {re.escape(module)} import|\bimport {re.escape(module)}\b")
    tests = sorted((ROOT / "tests").glob("test_*.py"))
    told = [t for t in tests if t.stem == f"test_{path.stem}" or names.search(t.read_text("utf-8"))]
    return path, [*([name] if path.parent.name != "tools" else []), *map(str, told)]


def main(name: str, of_chapter: bool) -> int:
    path, tests = (chapter if of_chapter else file)(name)
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        if subprocess.run([sys.executable, "-m", *command, str(path)], cwd=ROOT).returncode:
            return 1
    quick = ["-q", "-m", "not browser and not slow"]
    return subprocess.run([sys.executable, "-m", "pytest", *quick, *tests], cwd=ROOT).returncode


if __name__ == "__main__":
    given, asked = sys.argv[1:3]
    sys.exit(main(given or asked, of_chapter=bool(given)))
