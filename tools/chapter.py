"""Format, run and test one chapter: `make chapter NB=book/11_federated_images.ipynb`."""

import subprocess
import sys
import time
from pathlib import Path

import asserts
import refresh
import solutions
from notebooks import load, normalise, replace
from repository import ROOT

FORM = ("test_chapters", "test_book", "test_statements", "test_citations", "test_editions")


def main(name: str) -> int:
    path, start = Path(name).resolve(), time.monotonic()
    if path.parent != ROOT / "book" or path.suffix != ".ipynb" or not path.exists():
        sys.exit(f"Invalid NB={name}: no notebook there. Use: make chapter NB=book/01_fedavg.ipynb")
    ruff = [Path(sys.executable).with_name("ruff")]
    subprocess.run([*ruff, "check", "--fix-only", "--quiet", path], check=False)
    subprocess.run([*ruff, "format", "--quiet", path], check=False)
    replace(path, normalise(load(path), path).encode())
    code = solutions.blocks(path)
    said = refresh.refresh(path, solutions.as_cells(code))
    solutions.store(dict(zip(code, said, strict=True)))
    subprocess.run([sys.executable, asserts.__file__], check=True)
    own = list((ROOT / "tests").glob(f"test_{path.stem}.py"))
    tests = [ROOT / "tests" / f"{test}.py" for test in FORM]
    pytest = [sys.executable, "-m", "pytest", "-q", "-W", "default", "--no-header"]
    done = subprocess.run([*pytest, "-k", f"{path.stem} and not sites", *tests], cwd=ROOT)
    failed = done.returncode
    if own:
        failed = subprocess.run([*pytest, "-m", "not slow", *own], cwd=ROOT).returncode or failed
    print(f"{path.stem}: {'all is well' if not failed else 'see above'}", end="")
    print(f", in {time.monotonic() - start:.0f} s. Look at `git diff`, and at the page: make serve")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
