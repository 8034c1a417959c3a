"""Image data sets, and the only code in ``fedlib`` that touches the disk or the network."""

__all__ = ["DataError", "ImageSet", "load_cifar10", "load_cifar100", "load_digits", "load_glyphs"]

import hashlib
import io
import os
import pickle
import string
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
from jaxtyping import Float32, Int64
from numpy.typing import ArrayLike

from fedlib._checks import check_in, check_int, check_positive_int


class DataError(RuntimeError):
    """A data file is missing, damaged or unsafe, or could not be fetched or stored."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Labelled images, checked once: what every loader returns and every partition starts from.

    Args:
        images: float32 array (images, channels, rows, columns), intensities in [0, 1].
        labels: int64 array (images,), each the index of a class.
        class_names: one name per class.
        name: what to call the set in plots and messages.

    Raises:
        TypeError: if an array has another type.
        ValueError: if shapes disagree, a value is not finite, or one is out of range.

    Example:
        >>> images, labels = np.zeros((4, 1, 2, 2), np.float32), np.array([0, 1, 2, 1])
        >>> pets = ImageSet(images, labels, class_names=["cat", "dog", "newt"], name="pets")
        >>> pets.of_classes(["newt", "dog"]).labels
        array([1, 0, 1])
    """

    images: Float32[np.ndarray, "n c h w"]
    labels: Int64[np.ndarray, " n"]
    class_names: Sequence[str] = field(kw_only=True)
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        for argument, value, dtype, remedy in (
            ("images", self.images, "float32", 'images.astype("float32"), scaled to [0, 1]'),
            ("labels", self.labels, "int64", 'labels.astype("int64")'),
        ):
            if not isinstance(value, np.ndarray) or value.dtype != dtype:
                kind = getattr(value, "dtype", type(value).__name__)
                raise TypeError(
                    f"Invalid {argument} of type {kind}: must be a NumPy array of {dtype}. "
                    f"Use {remedy}."
                )
        shape = self.images.shape
        if len(shape) != 4 or 0 in shape:
            raise ValueError(
                f"Invalid images.shape={shape}: must be four positive sizes "
                "(images, channels, rows, columns). Use images.reshape to say so."
            )
        if self.labels.shape != shape[:1]:
            raise ValueError(
                f"Invalid labels.shape={self.labels.shape}: {shape[0]} images. "
                f"Use one label per image, shape ({shape[0]},)."
            )
        low, high = self.images.min(), self.images.max()  # NaN if any value is
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("Invalid images: some values are not finite. Use finite intensities.")
        if low < 0 or high > 1:
            raise ValueError(
                f"Invalid images with values in [{low:g}, {high:g}]: must lie in [0, 1]. "
                "Use images rescaled to it, such as bytes / 255."
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("Invalid class_names: a name occurs twice. Use distinct names.")
        if self.labels.min() < 0 or self.labels.max() >= self.num_classes:
            raise ValueError(
                f"Invalid labels in {self.labels.min()}..{self.labels.max()}: {self.num_classes} "
                f"class names. Use labels 0..{self.num_classes - 1}, or one name per class."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"ImageSet({self.name}: {len(self)} images {shape}, {self.num_classes} classes)"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns of one image."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each has an image."""
        return len(self.class_names)

    def select(self, indices: ArrayLike) -> "ImageSet":
        """Keep the images at ``indices``, in that order; the classes stay as they are.

        Raises:
            TypeError: if ``indices`` are not integers.
            ValueError: if there are none, or one is not in 0..len-1.
        """
        index = np.asarray(indices)
        if index.dtype.kind not in "iu" and index.size:
            raise TypeError(
                f"Invalid indices.dtype={index.dtype}: must be integers. "
                "Use np.flatnonzero(mask) for a mask."
            )
        if index.ndim != 1 or not index.size or index.min() < 0 or index.max() >= len(self):
            raise ValueError(
                f"Invalid indices of shape {index.shape}: must be a list of at least one "
                f"position. Use positions 0..{len(self) - 1}."
            )
        return replace(self, images=self.images[index], labels=self.labels[index])

    def of_classes(self, classes: Iterable[int | str]) -> "ImageSet":
        """Keep the images of some classes, relabelled 0, 1, ... in the order given.

        Args:
            classes: indices or names of classes, each once.

        Raises:
            ValueError: if a class is unknown or given twice, or none has an image.
        """
        chosen = list(classes)
        known = {name: i for i, name in enumerate(self.class_names)}
        known |= {i: i for i in range(self.num_classes)}
        for c in chosen:
            if c not in known:
                raise ValueError(
                    f"Invalid classes with {c!r}: {self.name} has no such class. "
                    f"Use 0..{self.num_classes - 1} or a name from class_names."
                )
        old = [known[c] for c in chosen]
        if len(set(old)) != len(old):
            raise ValueError(f"Invalid classes={chosen}: a class occurs twice. Use each once.")
        new_label = np.full(self.num_classes, -1)
        new_label[old] = np.arange(len(old))
        labels = new_label[self.labels]
        keep = np.flatnonzero(labels >= 0)
        if not keep.size:
            raise ValueError(f"Invalid classes={chosen}: no images. Use classes that have some.")
        names = tuple(self.class_names[c] for c in old)
        return replace(self, images=self.images[keep], labels=labels[keep], class_names=names)


def load_digits() -> ImageSet:
    """Load scikit-learn's 1,797 scanned digits, 8x8 pixels: real, and no download.

    Example:
        >>> load_digits()
        ImageSet(digits: 1797 images 1x8x8, 10 classes)

    Reference:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", 1998.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)  # 17 grey levels, 0..16
    labels = digits.target.astype(np.int64)
    return ImageSet(images, labels, class_names=tuple(string.digits), name="digits")


# Matplotlib's own text fonts. The Computer Modern ones place punctuation as TeX does, not as ASCII
# does, so they draw letters and digits only.
_TEX_FONTS = ["cmr10", "cmb10", "cmss10", "cmti10", "cmtt10"]
_FONTS = ["STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "STIXGeneralItalic"]
_FONTS += [
    f"DejaVu{family}{style}"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
]
_SIZE, _EM, _ZOOM = 16, 15, 4  # pixels a side; pixels of a font's em; finer grid of the drawings
_BLUR = [0.3, 0.65]  # standard deviation of the sharpest and the softest strokes, pixels
_NOISE = 0.05  # standard deviation of each pixel's noise, intensity
_RANGES = {  # of what is drawn for each image, uniformly
    "font": (0, 1),  # fraction of the list of fonts
    "blur": (0, 1),  # sharpest to softest
    "angle": (-np.pi / 12, np.pi / 12),  # radians
    "shear": (-0.25, 0.25),  # pixels right per pixel down
    "width": (0.85, 1.15),  # factor
    "height": (0.85, 1.15),  # factor
    "down": (-1.5, 1.5),  # pixels
    "right": (-1.5, 1.5),  # pixels
    "paper": (0, 0.2),  # intensity
    "ink": (0.7, 1),  # intensity
}


def load_glyphs(
    characters: Sequence[str] = string.ascii_letters + string.digits, *, per_class: int, seed: int
) -> ImageSet:
    """Draw characters in Matplotlib's fonts, bent, blurred and noisy: 1x16x16, and no download.

    Each image has its own font, rotation (up to 15 degrees), shear, scale, shift, blur, contrast
    and noise. A character's images depend on ``seed`` alone, not on the other characters, and the
    first ones stay the same when ``per_class`` grows. Pixels are multiples of 1/255.

    Args:
        characters: distinct characters; their order is the order of the labels.
        per_class: number of images of each character.
        seed: any integer >= 0.

    Raises:
        ValueError: if a character occurs twice, or no font has it.

    Example:
        >>> load_glyphs("abc", per_class=5, seed=0)
        ImageSet(glyphs: 15 images 1x16x16, 3 classes)
    """
    check_positive_int("per_class", per_class)
    check_int("seed", seed, minimum=0)
    if not characters or any(len(c) != 1 for c in characters):
        raise ValueError(
            f"Invalid characters={characters!r}: must be single characters, at least one. "
            'Use a string such as "abc".'
        )
    images = [
        _warp(drawings, per_class, np.random.default_rng([seed, ord(c)]))
        for c, drawings in zip(characters, _draw(characters), strict=True)
    ]
    labels = np.repeat(np.arange(len(characters)), per_class)
    return ImageSet(np.concatenate(images), labels, class_names=tuple(characters), name="glyphs")


def _draw(characters: Sequence[str]) -> Iterable[np.ndarray]:
    """Draw each character in every font that has it, sharp and soft: (fonts, 2, rows, columns)."""
    from matplotlib import ft2font, get_data_path
    from scipy.ndimage import gaussian_filter

    folder = Path(get_data_path()) / "fonts" / "ttf"
    fonts = {name: ft2font.FT2Font(str(folder / f"{name}.ttf")) for name in _FONTS + _TEX_FONTS}
    for font in fonts.values():
        font.set_size(_EM * _ZOOM, 72)
    side = 2 * _SIZE * _ZOOM  # room for the widest letter and its blur
    baseline = side // 2 + round(0.33 * _EM * _ZOOM)  # centres capitals
    for c in characters:
        alphanumeric = c.isascii() and c.isalnum()
        drawings = []
        for name, font in fonts.items():
            if not font.get_char_index(ord(c)) or (name in _TEX_FONTS and not alphanumeric):
                continue
            font.set_text(c, 0, flags=ft2font.LoadFlags.NO_HINTING)
            font.draw_glyphs_to_bitmap(antialiased=True)
            ink = np.asarray(font.get_image()) / 255
            top = baseline + round(font.get_descent() / 64) - ink.shape[0]
            left = (side - ink.shape[1]) // 2
            page = np.zeros((side, side))
            page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
            drawings.append([gaussian_filter(page, sigma * _ZOOM) for sigma in _BLUR])
        if not drawings or not np.any(drawings):
            raise ValueError(
                f"Invalid characters with {c!r}: no font draws it. Use printable characters."
            )
        yield np.array(drawings)


def _warp(drawings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample ``count`` images (count, 1, 16, 16) from one character's drawings."""
    from scipy.ndimage import map_coordinates

    rng, noise_rng = rng.spawn(2)  # two streams, so that more images only append
    low, high = np.array(list(_RANGES.values())).T
    draws = rng.uniform(low, high, (count, len(_RANGES)))[:, :, None, None]
    font, blur, angle, shear, width, height, down, right, paper, ink = np.moveaxis(draws, 1, 0)
    grid = np.arange(_SIZE) - (_SIZE - 1) / 2
    y, x = grid[:, None] - down, grid - right
    y, x = np.cos(angle) * y - np.sin(angle) * x, np.cos(angle) * x + np.sin(angle) * y
    y, x = y / height, x / width + shear * y
    centre = (drawings.shape[-1] - 1) / 2
    where = np.floor(font * len(drawings)), blur, centre + _ZOOM * y, centre + _ZOOM * x
    stroke = map_coordinates(drawings, np.broadcast_arrays(*where), order=1)
    images = paper + (ink - paper) * stroke
    images += _NOISE * noise_rng.standard_normal(images.shape)
    # 256 levels, so that rounding in the last digit, which differs between CPUs, cannot show
    return (np.rint(255 * images.clip(0, 1)) / 255).astype(np.float32)[:, None]


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
        ValueError: if ``split`` is not an option.

    Reference:
        Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    check_in("split", split, ["train", "test"])
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
    cache = Path(pooch.os_cache("fedlib"))
    folders = {str(cache): cache}
    if own := os.environ.get("FEDLIB_DATA"):
        folders = {f"FEDLIB_DATA={own}": Path(own).expanduser()} | folders

    def look(name: str) -> Path | None:
        return next((f / name for f in folders.values() if os.path.isfile(f / name)), None)

    missing = [name for name in wanted if not look(name)]
    if missing:
        _download(source, cache, f"{', '.join(missing)} in {' or '.join(folders)}")
    return {name: look(name) for name in wanted}


def _download(source: _Source, cache: Path, missing: str) -> None:
    """Put the archive's files into the cache, each whole and verified, or leave no trace."""
    import requests

    problem = f"Cannot find {missing}, and "
    remedy = "or set FEDLIB_DATA to a folder that holds the missing files."
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # All is made in a folder inside the cache, so that os.replace stays on one disk.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as scratch:
            archive = pooch.retrieve(
                source.url, f"md5:{source.md5}", "archive", scratch, progressbar=True
            )
            with tarfile.open(archive) as tar:
                for name, md5 in source.files.items():  # our names, never the archive's
                    member = tar.getmember(name)
                    content = tar.extractfile(member).read() if member.isfile() else b""
                    if _md5(content) != md5:
                        raise tarfile.ExtractError(f"{name} is not the published file")
                    Path(scratch, name).parent.mkdir(exist_ok=True)
                    Path(scratch, name).write_bytes(content)
            for name in source.files:
                (cache / name).parent.mkdir(exist_ok=True)
                os.replace(Path(scratch, name), cache / name)
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
