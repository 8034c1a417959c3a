"""Labelled images, checked once, and the scanned digits that scikit-learn ships."""

__all__ = ["ImageSet", "load_digits"]

import string
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from numbers import Integral

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from fedlib._checks import check_indices, check_type, refuse, shown


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
        check_type("name", self.name, str, 'Use name="digits", say.')
        object.__setattr__(self, "class_names", _names(self.class_names))
        for argument, value, dtype, remedy in (
            ("images", self.images, "float32", 'images.astype("float32"), scaled to [0, 1]'),
            ("labels", self.labels, "int64", 'labels.astype("int64")'),
        ):
            if isinstance(value, np.ma.MaskedArray):
                raise TypeError(
                    f"Invalid {argument}: some entries are masked. Use an array without a mask."
                )
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

        Args:
            indices: positions, or one True or False per image.

        Raises:
            TypeError: if ``indices`` are neither.
            ValueError: if there are none, or one is not in 0..len-1.
        """
        index = check_indices("indices", indices, len(self), mask=True)
        if not index.size:
            raise ValueError("Invalid indices: none. Give at least one position.")
        return replace(self, images=self.images[index], labels=self.labels[index])

    def of_classes(self, classes: Iterable[int | str]) -> "ImageSet":
        """Keep the images of some classes, relabelled 0, 1, ... in the order given.

        Args:
            classes: indices or names of classes, each once.

        Raises:
            TypeError: if they are not in a row, or one is neither an index nor a name.
            ValueError: if a class is unknown or given twice, or none has an image.
        """
        chosen = _row("classes", classes, "a list of indices or names of classes")
        known: dict[object, int] = {name: i for i, name in enumerate(self.class_names)}
        known |= {i: i for i in range(self.num_classes)}
        for c in chosen:
            if isinstance(c, bool) or not isinstance(c, str | Integral):
                refuse(
                    "classes",
                    classes,
                    f"{shown(c)} is no class",
                    "indices or names",
                    error=TypeError,
                )
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


def _row(name: str, values: Iterable, use: str) -> list:
    """Return what is in a list, or any other iterable that has an order."""
    if isinstance(values, Set) or not isinstance(values, Iterable) or _is_single(values):
        refuse(name, values, "not in a row", use, error=TypeError)
    return list(values)


def _is_single(values: object) -> bool:
    return isinstance(values, np.ndarray | Tensor) and values.ndim != 1


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names, made of texts or whole numbers."""
    names = _row("class_names", names, "a list with one name per class")
    odd = [name for name in names if isinstance(name, bool) or not isinstance(name, str | Integral)]
    if odd or not names:
        refuse("class_names", names, "not names", "one text per class", error=TypeError)
    return tuple(map(str, names))


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
