"""CIFAR-10 and CIFAR-100 from the official files; the only code that touches the network."""

__all__ = ["DataError", "load_cifar10", "load_cifar100"]

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedlib._checks import check_bool, check_in, check_path
from fedlib._files import scratch, sweep
from fedlib.data import ImageSet


class DataError(RuntimeError):
    """A data file is missing, damaged or unsafe, or could not be fetched or stored."""


class _Source(NamedTuple):
    """An official archive and the published MD5 of the files in it that we read."""

    url: str
    md5: str
    files: dict[str, str]


_CIFAR10 = _Source(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    {
        "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
        "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
        "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    },
)
_CIFAR100 = _Source(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    {
        "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
        "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
        "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
)


def load_cifar10(split: str) -> ImageSet:
    """Load CIFAR-10: colour photographs, 3x32x32, of 10 classes; 50,000 to train, 10,000 to test.

    The extracted official files are looked for in the folder named by the environment variable
    ``FEDLIB_DATA``, then in the user's cache; if one is in neither, the official archive is
    downloaded (170 MB) into the cache. Every file is checked against its published MD5 before it
    is read, and only the files the split needs are read.

    Args:
        split: "train" or "test".

    Raises:
        DataError: if a file is damaged, unsafe, or can be neither found nor fetched.
        ValueError: if ``split`` is not an option.

    Reference:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    check_in("split", split, ["train", "test"])
    batches = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    files = [f"cifar-10-batches-py/{file}" for file in ["batches.meta", *batches]]
    return _load(_CIFAR10, files, ("labels", "label_names"), f"cifar10-{split}")


def load_cifar100(split: str, *, coarse: bool = False) -> ImageSet:
    """Load CIFAR-100: photographs as in CIFAR-10, of 100 classes in 20 groups; found the same way.

    Args:
        split: "train" (50,000 images) or "test" (10,000).
        coarse: label by the 20 groups (such as "fish"), not the 100 classes (such as "trout").

    Raises:
        DataError: if a file is damaged, unsafe, or can be neither found nor fetched.
        TypeError: if ``coarse`` is neither True nor False.
        ValueError: if ``split`` is not an option.

    Reference:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    check_in("split", split, ["train", "test"])
    coarse = check_bool("coarse", coarse)
    level = "coarse" if coarse else "fine"
    files = [f"cifar-100-python/{file}" for file in ["meta", split]]
    keys = f"{level}_labels", f"{level}_label_names"
    return _load(_CIFAR100, files, keys, f"cifar100-{split}" + coarse * "-coarse")


def _load(source: _Source, files: list[str], keys: tuple[str, str], name: str) -> ImageSet:
    """Load the batches among ``files``, whose first has the class names; keys: labels, names."""
    labels_key, names_key = (key.encode() for key in keys)
    paths = _find(source, files)
    meta, *batches = (_unpickle(paths[file], source.files[file]) for file in files)
    pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([batch[labels_key] for batch in batches]).astype(np.int64)
    images = np.divide(pixels, 255, dtype=np.float32)
    class_names = [class_name.decode() for class_name in meta[names_key]]
    return ImageSet(images, labels, class_names=class_names, name=name)


def _find(source: _Source, wanted: list[str]) -> dict[str, Path]:
    """Where each wanted file is, after a download if one is in neither folder."""
    import pooch  # only where a file is looked for

    cache = Path(pooch.os_cache("fedlib"))
    folders = {str(cache): cache}
    if own := os.environ.get("FEDLIB_DATA"):
        folders = {f"FEDLIB_DATA={own}": check_path("FEDLIB_DATA", own)} | folders

    def look(name: str) -> Path | None:
        return next((f / name for f in folders.values() if os.path.isfile(f / name)), None)

    missing = [name for name in wanted if not look(name)]
    if missing:
        _download(source, cache, f"{', '.join(missing)} in {' or '.join(folders)}")
    return {name: path for name in wanted if (path := look(name))}


def _download(source: _Source, cache: Path, missing: str) -> None:
    """Put the archive's files into the cache, each whole and verified, or leave no trace."""
    import pooch  # only where a file is looked for
    import requests

    problem = f"Cannot find {missing}, and "
    remedy = "or set FEDLIB_DATA to a folder that holds the missing files."
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # All is made in a folder inside the cache, so that os.replace stays on one disk.
        sweep(cache / "cifar")
        with scratch(cache / "cifar") as made:
            archive = pooch.retrieve(
                source.url, f"md5:{source.md5}", "archive", made, progressbar=True
            )
            with tarfile.open(archive) as tar:
                for name, md5 in source.files.items():  # our names, never the archive's
                    member = tar.getmember(name)
                    stream = tar.extractfile(member) if member.isfile() else None
                    content = stream.read() if stream else b""
                    if _md5(content) != md5:
                        raise tarfile.ExtractError(f"{name} is not the published file")
                    (made / name).parent.mkdir(exist_ok=True)
                    (made / name).write_bytes(content)
            for name in source.files:
                (cache / name).parent.mkdir(exist_ok=True)
                os.replace(made / name, cache / name)
    except requests.RequestException as error:
        raise DataError(
            f"{problem}cannot download {source.url} ({type(error).__name__}). "
            f"Connect to the network, {remedy}"
        ) from error
    except (ValueError, KeyError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{problem}what came from {source.url} is not the official archive. "
            f"Load again, {remedy}"
        ) from error
    except OSError as error:
        raise DataError(
            f"{problem}cannot write to the cache {cache} ({error.strerror or error}). "
            f"Make it writable, with half a gigabyte free, {remedy}"
        ) from error


# What the official pickles name, and all that loading one may call.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _unpickle(path: Path, md5: str) -> dict[bytes, Any]:
    """Read a file once, verify those very bytes, and only then decode them."""
    again = "Delete it and load again, to fetch a good copy."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path} ({error.strerror}). Make it readable.") from error
    if (found := _md5(content)) != md5:
        raise DataError(f"File {path} has MD5 {found}, not the published {md5}. {again}")
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"File {path} is not a whole and safe pickle ({error}). {again}") from error
