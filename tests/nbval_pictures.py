"""Let nbval compare pictures too, which it leaves out: what is drawn with what is stored.

Notebooks lie outside tests/, so this is loaded by `-p nbval_pictures` in pyproject.toml.
"""

import base64

import pictures
import pytest
from nbval.plugin import IPyNbCell, NbCellError
from repository import ROOT

FOLDER = ROOT / "_build" / "pictures"  # for a look at those that differ


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not isinstance(item, IPyNbCell):
        return (yield)
    _record(item)
    result = yield
    _compare(item)
    return result


def _record(cell) -> None:
    """Let the kernel write down what it draws, from the notebook's first cell on."""
    try:
        if not hasattr(cell.parent, "records_pictures"):
            cell.parent.kernel.kc.execute(pictures.START, silent=True)
            cell.parent.records_pictures = True
        _ = cell.cell.outputs, cell.test_outputs, cell.cell_num, cell.path
    except AttributeError as error:
        raise RuntimeError(
            f"nbval changed ({error}), and pictures would not be compared. "
            "Use the version in requirements.txt, or mend tests/nbval_pictures.py."
        ) from error


def _compare(cell) -> None:
    stored, new = pictures.of(cell.cell.outputs), pictures.of(cell.test_outputs)
    faults = [] if len(stored) == len(new) else [f"{len(stored)} stored, {len(new)} drawn"]
    for number, pair in enumerate(zip(stored, new, strict=False)):
        if fault := pictures.difference(*pair):
            name = FOLDER / f"{cell.path.stem}-cell{cell.cell_num}-{number}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(base64.b64decode(pair[1]))
            faults.append(f"{fault}\nThe new picture is {name}.")
    if faults:
        title = f"{cell.path.name}, cell {cell.cell_num}: the picture is not the stored one"
        raise NbCellError(cell.cell_num, "\n".join([title, *faults]), cell.cell.source)
