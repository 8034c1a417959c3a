"""A federation on disk: written client by client, mapped into memory, read where it is used.

The folder holds ``inputs.npy``, ``targets.npy`` and ``sizes.npy``, which NumPy reads too, and
``stamp.json``, written last: it says what the three are, and that their values were checked. No
file that is there already is ever written to.
"""

__all__ = ["load_clients", "save_clients"]

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlib._checks import check_bool, check_path, refuse
from fedlib._files import check_regular, replace_file
from fedlib.cifar import DataError
from fedlib.clients import ClientData, as_numbers, check_device, digest_of

_FORMAT, _STAMP, _NAMES = "fedlib-clients-2", "stamp.json", ("inputs", "targets", "sizes")
_BEFORE = "fedlib-clients-1"  # without a seal on the stamp
_ANEW = "Copy it once more, or write it anew to another folder."


def save_clients(folder: str | Path, clients: ClientData | Iterable[tuple]) -> None:
    """Write a federation to a folder, one client after the other.

    One client is held at a time: given a generator, a federation may be larger than memory.

    Args:
        folder: made if it is not there.
        clients: of each client its inputs, shape (n, ...), and its targets, shape (n,), tensors or
            arrays, which differ between clients in nothing but n; or a ``ClientData``.

    Raises:
        DataError: if the folder holds a federation already, or files of these names, or cannot be
            written. What was written is removed.
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
    folder = check_path("folder", folder)
    if not isinstance(clients, Iterable | ClientData) or getattr(clients, "ndim", 1) == 0:
        refuse("clients", clients, "not clients", "ClientData, or pairs of arrays", error=TypeError)
    if os.path.lexists(folder / _STAMP):
        raise DataError(
            f"Invalid folder {folder}: it holds a federation already. Give another, or delete it."
        )
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = {name: _Rows(folder / f"{name}.npy") for name in _NAMES}
    try:
        for file in files.values():
            file.open()
        _write_rows(files, clients)
        for file in files.values():
            file.close()
        arrays = {name: _mapped(file.path) for name, file in files.items()}
        written = _wrap(arrays)
        stamp = {
            "format": _FORMAT,
            "digest": written.digest,
            "num_classes": written.num_classes,
            "files": {name: _describe(folder, name, array) for name, array in arrays.items()},
        }
        with _writing(folder):
            stamp["seal"] = _seal(stamp)
            replace_file(folder / _STAMP, json.dumps(stamp, indent=1).encode())
    except BaseException:
        for file in files.values():
            file.remove()
        raise


def _write_rows(files: dict[str, "_Rows"], clients: Any) -> None:
    count = 0
    for i, pair in enumerate(clients):
        try:
            client = _client(pair)
            for name, rows in {"inputs": client.inputs, "targets": client.targets}.items():
                files[name].append(_to_numpy(name, rows))
        except (TypeError, ValueError) as error:
            raise type(error)(f"Client {i}: {error}") from error
        files["sizes"].append(client.sizes)
        count += 1
    if not count:
        raise ValueError("Invalid clients: none. Give one at least.")


def _client(pair: object) -> ClientData:
    """Return one client, checked."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        refuse("client", pair, "not a pair", "(inputs, targets)", error=TypeError)
    x, y = (
        values
        if isinstance(values, torch.Tensor)
        # Torch takes no read-only memory, and none that runs backwards.
        else torch.from_numpy(np.require(values, requirements=["C", "W"]))
        for values in map(as_numbers, ("inputs", "targets"), pair)
    )
    if not len(x):
        raise ValueError("Invalid inputs: no example. Give every client at least one.")
    return ClientData(x, y, np.array([len(x)]))


def _to_numpy(name: str, rows: torch.Tensor) -> np.ndarray:
    try:
        return rows.cpu().numpy()
    except TypeError as error:
        raise TypeError(
            f"Invalid {name} of type {rows.dtype}: NumPy has none such. Use .float()."
        ) from error


def load_clients(
    folder: str | Path, *, device: str | torch.device = "cpu", verify: bool = False
) -> ClientData:
    """Open a federation that ``save_clients`` wrote.

    On the CPU its files are mapped into memory: opening reads the numbers of examples, and a round
    reads its cohort's. Processes on one machine share what was read. Writing to the tensors leaves
    the files as they are; the files must stay as they are while the federation is in use. The
    digest is taken anew after torch wrote to the tensors; a write that torch does not count,
    through ``tensor.numpy()`` or ``tensor.data``, it does not see.

    Args:
        folder: where it is.
        device: where the examples live; another device than the CPU takes them all.
        verify: do not trust the stamp: read everything, and compare it with the digest taken when
            it was written.

    Returns:
        The federation, the same as one made in memory.

    Raises:
        DataError: if the folder holds no federation, or a damaged one.
        TypeError: if an argument is of another type.
        ValueError: if the device is not there.
    """
    device, verify = check_device(device), check_bool("verify", verify)
    folder, arrays = check_path("folder", folder), {}
    try:
        check_regular(folder / _STAMP)
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
        found, files = stamp["format"], dict(stamp["files"])
        known = {name: stamp[name] for name in ("digest", "num_classes")}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"Invalid folder {folder}: it holds no {_STAMP}, and so no federation, or one whose "
            "writing was not finished. Write it with save_clients."
        ) from error
    except Exception as error:  # a damaged stamp can raise nearly anything
        raise DataError(f"Invalid folder {folder}: {_STAMP} not readable. {_ANEW}") from error
    if found not in (_FORMAT, _BEFORE):
        raise DataError(f"Invalid folder {folder}: of format {found}, not {_FORMAT}. {_ANEW}")
    if found == _FORMAT and stamp.pop("seal", None) != _seal(stamp):
        raise DataError(f"Damaged {folder / _STAMP}: its digest is wrong. {_ANEW}")
    for name in _NAMES:
        try:
            arrays[name] = _mapped(folder / f"{name}.npy")
            found = _describe(folder, name, arrays[name])
        except Exception as error:  # a damaged header can raise nearly anything
            found = str(error)
        if found != files.get(name):
            raise DataError(f"Damaged {folder / name}.npy: {found}, not {files.get(name)}. {_ANEW}")
    sizes = arrays["sizes"]
    if sizes.min() < 1 or sizes.sum() != len(arrays["inputs"]):
        raise DataError(f"Damaged {folder / 'sizes.npy'}: its numbers are wrong. {_ANEW}")
    if verify:
        read = _wrap(arrays)
        if read.digest != known["digest"] or read.num_classes != known["num_classes"]:
            raise DataError(f"Damaged federation {folder}: its digest is wrong. {_ANEW}")
    return _wrap(arrays, device=device, **known)


def _mapped(path: Path) -> np.ndarray:
    """Map an .npy file into memory; what is written there stays there."""
    check_regular(path)
    return np.lib.format.open_memmap(path, mode="c")


def _seal(stamp: dict) -> str:
    """Return a digest of the stamp itself."""
    return digest_of(json.dumps(stamp, sort_keys=True), {})


def _wrap(
    arrays: dict[str, np.ndarray], *, device: str | torch.device = "cpu", **known: object
) -> ClientData:
    inputs, targets = (torch.from_numpy(arrays[n]).to(device) for n in ("inputs", "targets"))
    sizes = np.array(arrays["sizes"])
    sizes.setflags(write=False)  # what was computed of them holds
    return ClientData._as_checked(inputs, targets, sizes, **known)


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
    """A new .npy file that grows by rows. Its header, which counts them, is written last."""

    def __init__(self, path: Path) -> None:
        self.path, self.length = path, 0
        self.row: Any = None  # dtype and shape
        self.file: Any = None

    def open(self) -> None:
        """Make the file; refuse to touch one that is there, or to follow a link."""
        try:
            with _writing(self.path):
                self.file = self.path.open("xb", buffering=2**20)
        except DataError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            raise DataError(
                f"Invalid folder {self.path.parent}: it holds {self.path.name} already, a file of "
                "your own or of a writing that was not finished. Give another folder, or delete it."
            ) from error

    def append(self, rows: np.ndarray) -> None:
        """Write rows at the end."""
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

    def close(self) -> None:
        """Count the rows, and wait for the disk."""
        with _writing(self.path), self.file:
            self.file.seek(0)
            self._write_header()
            self.file.flush()
            os.fsync(self.file.fileno())

    def remove(self) -> None:
        """Remove the file, if it was made here."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # a full disk: what is in the buffer is of no use
                self.file.close()
            self.path.unlink(missing_ok=True)
