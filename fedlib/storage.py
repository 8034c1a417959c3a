"""A federation on disk: written client by client, mapped into memory, read where it is used.

The folder holds ``inputs.npy``, ``targets.npy`` and ``sizes.npy``, which NumPy reads too, and
``stamp.json``, written last: it says what the three are, and that their values were checked.
"""

__all__ = ["load_clients", "save_clients"]

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fedlib.cifar import DataError
from fedlib.clients import ClientData, check_device

_FORMAT, _STAMP, _NAMES = "fedlib-clients-1", "stamp.json", ("inputs", "targets", "sizes")
_ANEW = "Copy it once more, or write it anew to another folder."


def save_clients(folder: str | Path, clients: ClientData | Iterable[tuple]) -> None:
    """Write a federation to a folder, one client after the other.

    One client is held at a time: given a generator, a federation may be larger than memory.

    Args:
        folder: made if it is not there.
        clients: of each client its inputs, shape (n, ...), and its targets, shape (n,), tensors or
            arrays, which differ between clients in nothing but n; or a ``ClientData``.

    Raises:
        DataError: if the folder holds a federation already, or cannot be written.
        TypeError: if a client is not a pair of numerical arrays, or NumPy lacks their dtype.
        ValueError: if ``ClientData`` would refuse a client, shapes or dtypes differ between
            clients, or there is no client.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp(), "federation")
        >>> save_clients(folder, ((np.full((n, 2), 0.5), np.zeros(n)) for n in (3, 1)))
        >>> load_clients(folder)
        ClientData(num_clients=2, sizes=1..3, inputs=(2,), device=cpu)
    """
    folder, sizes = Path(folder), []
    if (folder / _STAMP).exists():
        raise DataError(
            f"Invalid folder {folder}: it holds a federation already. Give another, or delete it."
        )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _Rows(folder / "inputs.npy") as inputs, _Rows(folder / "targets.npy") as targets:
        for i, pair in enumerate(clients):
            try:
                x, y = map(torch.as_tensor, pair)
                client = ClientData(x, y, np.array([len(x)]))
                inputs.append(client.inputs.cpu().numpy())
                targets.append(client.targets.cpu().numpy())
            except (TypeError, ValueError) as error:
                raise type(error)(f"Client {i}: {error}") from error
            sizes.append(len(x))
    if not sizes:
        raise ValueError("Invalid clients: none. Give one at least.")
    with _Rows(folder / "sizes.npy") as file:
        file.append(np.array(sizes, dtype=np.int64))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in _NAMES}
    written = _wrap(arrays)
    stamp = {
        "format": _FORMAT,
        "digest": written.digest,
        "num_classes": written.num_classes,
        "files": {name: _describe(folder, name, array) for name, array in arrays.items()},
    }
    with _writing(folder):
        (folder / "stamp.tmp").write_text(json.dumps(stamp, indent=1))
        os.replace(folder / "stamp.tmp", folder / _STAMP)


def load_clients(
    folder: str | Path, *, device: str | torch.device = "cpu", verify: bool = False
) -> ClientData:
    """Open a federation that ``save_clients`` wrote.

    On the CPU its files are mapped into memory: opening reads the numbers of examples, and a round
    reads its cohort's. Processes on one machine share what was read. Writing to the tensors leaves
    the files as they are; the files must stay as they are while the federation is in use.

    Args:
        folder: where it is.
        device: where the examples live; another device than the CPU takes them all.
        verify: read everything, and compare it with the digest taken when it was written.

    Returns:
        The federation, the same as one made in memory.

    Raises:
        DataError: if the folder holds no federation, or a damaged one.
        ValueError: if the device is not there.
    """
    check_device(device)
    folder, arrays = Path(folder), {}
    try:
        stamp = json.loads((folder / _STAMP).read_text())
        found, files = stamp["format"], stamp["files"]
        known = {name: stamp[name] for name in ("digest", "num_classes")}
    except FileNotFoundError as error:
        raise DataError(
            f"Invalid folder {folder}: it holds no {_STAMP}, and so no federation, or one whose "
            "writing was not finished. Write it with save_clients."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"Invalid folder {folder}: {_STAMP} not readable. {_ANEW}") from error
    if found != _FORMAT:
        raise DataError(f"Invalid folder {folder}: of format {found}, not {_FORMAT}. {_ANEW}")
    for name in _NAMES:
        try:
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c")
            found = _describe(folder, name, arrays[name])
        except (OSError, ValueError, EOFError) as error:
            found = str(error)
        if found != files.get(name):
            raise DataError(f"Damaged {folder / name}.npy: {found}, not {files.get(name)}. {_ANEW}")
    sizes = arrays["sizes"]
    if sizes.min() < 1 or sizes.sum() != len(arrays["inputs"]):
        raise DataError(f"Damaged {folder / 'sizes.npy'}: its numbers are wrong. {_ANEW}")
    if verify and _wrap(arrays).digest != known["digest"]:
        raise DataError(f"Damaged federation {folder}: its digest is wrong. {_ANEW}")
    return _wrap(arrays, device=device, **known)


def _wrap(
    arrays: dict[str, np.ndarray], *, device: str | torch.device = "cpu", **known: object
) -> ClientData:
    inputs, targets = (torch.from_numpy(arrays[n]).to(device) for n in ("inputs", "targets"))
    return ClientData._as_checked(inputs, targets, np.array(arrays["sizes"]), **known)


def _describe(folder: Path, name: str, array: np.ndarray) -> str:
    num_bytes = (folder / f"{name}.npy").stat().st_size
    return f"{array.dtype} of shape {array.shape} in {num_bytes} bytes"


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"Cannot write {path} ({error}). Use a writable folder on a disk with room."
        ) from error


class _Rows:
    """An .npy file that grows by rows. Its header, which counts them, is written last."""

    def __init__(self, path: Path) -> None:
        self.path, self.length, self.row = path, 0, None
        with _writing(path):
            self.file = path.open("wb", buffering=2**20)

    def __enter__(self) -> "_Rows":
        return self

    def append(self, rows: np.ndarray) -> None:
        row = rows.dtype, rows.shape[1:]
        if self.row is None:
            self.row = row
            self._write_header()  # NumPy's headers are of one length, whatever the number of rows
        if row != self.row:
            raise ValueError(
                f"{self.path.stem} of {row[0]} and shape {row[1]}, of the clients before it of "
                f"{self.row[0]} and shape {self.row[1]}. Give all clients the same."
            )
        with _writing(self.path):
            self.file.write(np.ascontiguousarray(rows))
        self.length += len(rows)

    def _write_header(self) -> None:
        (dtype, shape), length = self.row, self.length
        header = {"descr": dtype.str, "fortran_order": False, "shape": (length, *shape)}
        with _writing(self.path):
            np.lib.format.write_array_header_1_0(self.file, header)

    def __exit__(self, *raised: object) -> None:
        with _writing(self.path), self.file:
            if self.row is not None:
                self.file.seek(0)
                self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())
