"""Files that are there whole or not at all, whatever else lies in their folder."""

__all__ = ["ROOM", "check_regular", "replace_file", "scratch", "sweep"]

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE = 60.0
"""Seconds after which a temporary that no process holds is one that was left behind."""

ROOM = len("..partial-") + 16
"""Bytes by which a temporary's name is longer than the file's."""


def check_regular(path: Path) -> None:
    """Refuse what is there and no file: opening a pipe would wait for ever.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: if it is something else, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a file")
    with path.open("rb"):
        pass


def replace_file(path: Path, content: bytes, *, keep: Path | None = None) -> None:
    """Put a file in place: after a crash, or a power cut, it is the old one or the new one, whole.

    What is written first has a name that nothing else has; a link or a pipe that lies at ``path``
    is replaced, not followed.

    Args:
        path: the file.
        content: what it will hold.
        keep: where the file that was there is kept.

    Raises:
        OSError: if it cannot be written; nothing has changed then.
    """
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            _lock(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if keep is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, keep)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give a new folder beside ``path``, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix=_prefix(path), dir=path.parent) as folder:
        held = os.open(folder, os.O_RDONLY) if fcntl else None
        try:
            if held is not None:
                _lock(held)
            yield Path(folder)
        finally:
            if held is not None:
                os.close(held)


def sweep(path: Path) -> None:
    """Remove the temporaries beside ``path`` that killed processes left behind.

    A process that lives holds a lock on its own; what is younger than a minute is left alone too.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(_prefix(path)):
                _remove_stale(path.with_name(name))


def _remove_stale(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        is_folder = stat.S_ISDIR(temporary.lstat().st_mode)
        if time.time() - temporary.lstat().st_mtime < _STALE:
            return
        held = os.open(temporary, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(temporary) if is_folder else temporary.unlink()
        finally:
            os.close(held)


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _lock(file: int) -> None:
    """Hold a lock as long as the file is open, on disks that have locks."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
