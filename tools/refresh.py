"""Execute notebooks from fresh kernels and store their outputs, with a diff as small as can be.

python tools/refresh.py [NOTEBOOK ...]       # all of _toc.yml by default
"""

import base64
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pictures
from nbclient import NotebookClient
from notebooks import load, normalise, replace
from repository import ROOT, notebooks

CLAIM = ROOT / "assets" / "claim.png"


def claim(intro: dict) -> bytes:
    """The introduction's figure, which README.md shows as well."""
    figures = {
        c["metadata"].get("mystnb", {}).get("figure", {}).get("name"): c for c in intro["cells"]
    }
    cell = figures["fig-claim"]
    (png,) = [o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})]
    return base64.b64decode(png)


def keep_unchanged_pictures(old: dict, new: dict) -> None:
    """Where a picture draws the same as before, keep its old bytes."""
    before = {cell.get("id"): cell.get("outputs", []) for cell in old["cells"]}
    for cell in new["cells"]:
        for was, now in zip(before.get(cell["id"], []), cell.get("outputs", []), strict=False):
            pair = pictures.of([was, now])
            if len(pair) == 2 and pictures.same(*pair):
                now["data"]["image/png"] = was["data"]["image/png"]


def execute(path: Path, after: Sequence[str] = ()) -> tuple[dict, list[str]]:
    """Run a notebook in a fresh kernel, and then more cells.

    Returns:
        The notebook with new outputs, and what each of the cells `after` it printed.
    """
    notebook = nbformat.reads(normalise(load(path), path), as_version=4)
    notebook.metadata.pop("widgets", None)
    own = len(notebook.cells)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in after]
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines={pictures.START}"],
        record_timing=False,
        coalesce_streams=True,  # how often a kernel flushes is chance
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    said = [
        "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in notebook.cells[own:]
    ]
    del notebook.cells[own:]
    return notebook, said


def refresh(path: Path, after: Sequence[str] = ()) -> list[str]:
    """Store a notebook's new outputs; return what the cells `after` it printed."""
    old, start = load(path), time.perf_counter()
    notebook, said = execute(path, after)
    keep_unchanged_pictures(old, notebook)
    replace(path, normalise(notebook, path).encode())
    if path.stem == "intro":
        replace(CLAIM, claim(notebook))
    print(f"refreshed {path.relative_to(ROOT)} in {time.perf_counter() - start:.0f} s", flush=True)
    return said


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]] or notebooks():
        refresh(path)
