"""What a representation is like: features out of a model, and numbers out of features."""

__all__ = [
    "ClassSimilarity",
    "class_similarity",
    "effective_rank",
    "features",
    "linear_cka",
    "linear_probe",
]

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from fedlib._checks import check_array, check_bool, check_int, check_positive, check_positive_int
from fedlib.clients import as_numbers
from fedlib.models import Params
from fedlib.validate import FunctionalCopy, check_body, check_params, own_modes


def features(
    model: nn.Module,
    params: Params,
    images: Float[Tensor | np.ndarray, "n ..."],
    *,
    layer: int | None = None,
    chunk: int = 2000,
) -> Float[Tensor, "n k"]:
    """Return what the body makes of images, or what one of its layers does.

    The model itself stays as it is; layers that behave differently in training, such as dropout,
    behave as in evaluation.

    Args:
        model: gives the architecture, with a ``body``.
        params: parameters of the whole model.
        images: n inputs, shape (n, ...).
        layer: None for the body's output; or a position in ``model.body``, an ``nn.Sequential``,
            for the output of that layer.
        chunk: images per forward pass, which bounds memory.

    Returns:
        One row per image, outputs flattened: shape (n, k).

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the model has no body, or no such layer, or the parameters or images do not
            fit it, or the body is no function of its parameters and of each image alone.

    Example:
        >>> import fedlib as fl
        >>> model, images = fl.MLP((1, 8, 8), 10), torch.rand(3, 1, 8, 8)
        >>> for layer, module in enumerate(model.body):
        ...     outputs = features(model, fl.params_of(model), images, layer=layer)
        ...     print(type(module).__name__, *outputs.shape)
        Flatten 3 64
        Linear 3 64
        ReLU 3 64
    """
    check_params(model, params)
    chunk = check_positive_int("chunk", chunk)
    if not isinstance(getattr(model, "body", None), nn.Module):
        raise ValueError("Invalid model: it has no body. Use a model such as BodyHead(body, head).")
    with own_modes(torch.device("cpu")):
        replica = FunctionalCopy(model)
    body = replica.model.get_submodule("body").eval()
    if layer is not None:
        if not isinstance(body, nn.Sequential):
            raise ValueError(
                f"Invalid layer={layer!r}: the body is one {type(body).__name__}, not an "
                "nn.Sequential. Use layer=None."
            )
        check_int("layer", layer, minimum=0)
        if layer >= len(body):
            raise ValueError(
                f"Invalid layer={layer}: the body has {len(body)} layers. "
                f"Use layer <= {len(body) - 1}."
            )
        # Not a hook on the layer: an in-place ReLU behind it would overwrite what the hook saw.
        body = body[: layer + 1]
    inputs = as_numbers("images", images)
    if not isinstance(inputs, Tensor):  # torch takes no read-only memory, none that runs backwards
        inputs = torch.from_numpy(np.require(inputs, requirements=["C", "W"]))

    def call(params: Params, x: Tensor) -> Tensor:
        replica.loaded(params)
        try:
            return body(x.clone()).flatten(1)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"Invalid images: the body cannot take shape {tuple(inputs.shape)}, dtype "
                f"{inputs.dtype} on {inputs.device} ({reason}). Use images of the shape that it "
                "was built for, and bring both to one dtype and device."
            ) from error

    with own_modes(inputs.device, grad=False):
        check_body(model, call, params, inputs)
        return torch.cat([call(params, x) for x in inputs.split(chunk)])


def linear_cka(x: Real[Tensor | np.ndarray, "n p"], y: Real[Tensor | np.ndarray, "n q"]) -> float:
    r"""Compare two representations of the same examples by linear centred kernel alignment.

    With centred columns, :math:`\|Y^\top X\|_F^2\,/\,(\|X^\top X\|_F\,\|Y^\top Y\|_F)`: 1 if x and
    y agree up to rotation, reflection and one common scale; 0 if no feature of x is correlated with
    one of y. Other invertible maps of the features do change it. So does a small sample: for
    *independent* Gaussian features, p of each, it is about p / (p + n).

    Args:
        x: features of n examples, shape (n, p).
        y: other features of the same examples in the same order, shape (n, q).

    Returns:
        A number in [0, 1].

    Raises:
        TypeError: if a matrix does not hold real numbers.
        ValueError: if shapes do not fit, a number is not finite, or all examples have the same
            features.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> round(linear_cka(x, 2 * x[:, ::-1]), 6), round(linear_cka(x, x * [9, 1, 1]), 2)
        (1.0, 0.67)

    Reference:
        Kornblith et al., "Similarity of neural network representations revisited", 2019;
        Chapter 13.
    """
    x, y = _centred("x", x), _centred("y", y)
    (n, p), (others, q) = x.shape, y.shape
    if others != n:
        raise ValueError(
            f"Invalid y of {others} examples: x has {n}. Use features of the same examples."
        )
    if n * (p + q) < p * p + p * q + q * q:  # n x n matrices are cheaper
        square_x, square_y = x @ x.T, y @ y.T
        shared = np.vdot(square_x, square_y)
    else:
        square_x, square_y = x.T @ x, y.T @ y
        shared = np.square(y.T @ x).sum()
    cka = shared / (np.linalg.norm(square_x) * np.linalg.norm(square_y))
    return float(np.clip(cka, 0, 1))  # rounding may lead just outside


class ClassSimilarity(NamedTuple):
    """Mean cosine similarities of examples.

    Attributes:
        within: mean over all pairs of different examples of one class.
        between: mean over all pairs of examples of two classes.
        matrix: the mean for every two classes, in ascending order of their labels, shape (c, c);
            on the diagonal over pairs of different examples, NaN for a class with only one.
    """

    within: float
    between: float
    matrix: Float[np.ndarray, "c c"]


def class_similarity(
    features: Real[Tensor | np.ndarray, "n k"],
    labels: Int[Tensor | np.ndarray, " n"],
    *,
    centre: bool = False,
) -> ClassSimilarity:
    r"""Compare the directions of examples' features within classes and between them.

    The cosine similarity of two examples is
    :math:`\langle B(x), B(x')\rangle/(|B(x)||B(x')|)`. Features behind a ReLU are never negative,
    so neither is it: different classes look alike as well. Centring takes the common part away.

    Args:
        features: features of n examples, shape (n, k).
        labels: class of each example, any integers, shape (n,).
        centre: subtract the mean over all examples first.

    Returns:
        Means over all pairs within classes, between classes, and for every two classes.

    Raises:
        TypeError: if features are not real numbers, or labels not integers.
        ValueError: if shapes do not fit, a number is not finite, an example's features are all
            zero, there is one class only, or no class has two examples.

    Example:
        >>> similarity = class_similarity(np.array([[1, 0], [2, 0], [3, 3]]), np.array([5, 5, 7]))
        >>> round(similarity.within, 3), round(similarity.between, 3)
        (1.0, 0.707)

    Reference:
        Collins et al. (2022), who compare raw features; Chapter 13.
    """
    centre = check_bool("centre", centre)
    rows = _centred("features", features) if centre else _matrix("features", features)
    labels = _labels("labels", labels, len(rows))
    classes, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.max() < 2:
        raise ValueError(
            f"Invalid labels: {len(classes)} distinct among {len(labels)} examples. "
            "Use two classes or more, one of them with two examples."
        )
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    if not largest.all():
        raise ValueError(
            f"Invalid features: row {largest.argmin()} is zero and has no direction. "
            "Leave out such examples."
        )
    rows = rows / largest  # so that no square overflows
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    sums = (index == np.arange(len(classes))[:, None]) @ directions
    # A class meets itself in all pairs but those of an example with itself, which count 1 each.
    totals, pairs = sums @ sums.T - np.diag(counts), np.outer(counts, counts) - np.diag(counts)
    matrix = np.full(pairs.shape, np.nan)
    np.divide(totals, pairs, out=matrix, where=pairs > 0)
    same, same_pairs = totals.trace(), pairs.trace()
    return ClassSimilarity(
        within=float(same / same_pairs),
        between=float((totals.sum() - same) / (pairs.sum() - same_pairs)),
        matrix=matrix,
    )


def linear_probe(
    train_features: Real[Tensor | np.ndarray, "n k"],
    train_labels: Int[Tensor | np.ndarray, " n"],
    test_features: Real[Tensor | np.ndarray, "m k"],
    test_labels: Int[Tensor | np.ndarray, " m"],
    *,
    C: float = 1.0,
) -> float:
    """Return how well a linear classifier reads the classes off the features.

    Logistic regression (multinomial for more than two classes) with an intercept, on features
    standardised by the training examples' mean and standard deviation. No random number is drawn.
    For 2,000 examples of 500 features it takes about a second on one core, of 2,000 about ten.

    Args:
        train_features: features to learn from, shape (n, k).
        train_labels: their classes, any integers, shape (n,).
        test_features: features to judge by, shape (m, k).
        test_labels: their classes, shape (m,).
        C: weight of the data: what is minimised is C times the sum of the n losses, plus half the
            squared norm of the weights.

    Returns:
        Fraction of test examples classified correctly.

    Raises:
        TypeError: if features are not real numbers, labels not integers, or C not a number.
        ValueError: if shapes do not fit, a number is not finite or C not positive, there is one
            class only, or a test label is not among the training labels.

    Example:
        >>> features, labels = np.array([[0.0], [1.0], [8.0], [9.0]]), np.array([0, 0, 1, 1])
        >>> linear_probe(features, labels, np.array([[2.0], [7.0]]), np.array([0, 1]))
        1.0

    Reference:
        Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2016;
        Chapter 13.
    """
    # A second to load, which `import fedlib` need not wait for.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    C = check_positive("C", C)
    train = _matrix("train_features", train_features)
    test = _matrix("test_features", test_features, least=1)
    known = _labels("train_labels", train_labels, len(train))
    asked = _labels("test_labels", test_labels, len(test))
    if train.shape[1] != test.shape[1]:
        raise ValueError(
            f"Invalid test_features of {test.shape[1]} columns: train_features has "
            f"{train.shape[1]}. Use features of the same layer."
        )
    if (known == known[0]).all():
        raise ValueError("Invalid train_labels: one class only. Use two classes or more.")
    unknown = np.setdiff1d(asked, known)
    if len(unknown):
        raise ValueError(
            f"Invalid test_labels: class {unknown[0]} is not among train_labels. "
            "Use training examples of every class."
        )
    # Standardised features have no scale. Powers of two change nothing else, and no square over- or
    # underflows.
    exponents = np.frexp(np.abs(train).max(axis=0))[1]
    train, test = np.ldexp(train, -exponents), np.clip(np.ldexp(test, -exponents), -1e300, 1e300)
    # scikit-learn's own tolerance, 1e-4, stops short of the optimum if features are correlated; the
    # accuracy, off by 0.016 at one CNN's first layer, would then depend on rounding.
    logistic = LogisticRegression(C=C, tol=1e-6, max_iter=10_000)
    probe = make_pipeline(StandardScaler(), logistic)
    return float(probe.fit(train, known).score(test, asked))


def effective_rank(features: Real[Tensor | np.ndarray, "n k"]) -> float:
    r"""Return over how many directions centred features spread.

    With singular values :math:`\sigma_j` of the centred matrix and
    :math:`\bar\sigma_j=\sigma_j/\sum_l\sigma_l`, this is
    :math:`\exp(-\sum_j\bar\sigma_j\log\bar\sigma_j)`: q if q values are equal and the others zero,
    and less than the rank if they differ.

    Args:
        features: features of n examples, shape (n, k).

    Returns:
        A number from 1 to the smaller of n − 1 and k.

    Raises:
        TypeError: if ``features`` are not real numbers.
        ValueError: if there are fewer than two examples, a number is not finite, or all examples
            have the same features.

    Example:
        >>> round(effective_rank(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])), 6)
        2.0

    Reference:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", 2007 (there
        of a matrix that is not centred); Chapter 13.
    """
    from scipy.special import entr  # half a second to load

    centred = _centred("features", features)
    values = np.linalg.svd(centred, compute_uv=False)
    rank = np.exp(entr(values / values.sum()).sum())
    n, k = centred.shape
    return float(np.clip(rank, 1, min(n - 1, k)))  # rounding may lead just outside


def _matrix(name: str, values: object, least: int = 2) -> np.ndarray:
    """Return features as a float64 matrix with at least ``least`` rows."""
    matrix = check_array(name, values)
    if matrix.ndim != 2 or len(matrix) < least or not matrix.shape[1]:
        raise ValueError(
            f"Invalid {name} of shape {matrix.shape}: not examples by features, at least "
            f"{least} by 1. Use one row per example."
        )
    return matrix.astype(np.float64)


def _centred(name: str, values: object) -> np.ndarray:
    """Return centred features, rescaled so that no sum or square of them over- or underflows."""
    matrix = _matrix(name, values)
    matrix = np.ldexp(matrix, -np.frexp(np.abs(matrix).max())[1])
    centred = matrix - matrix.mean(axis=0)
    # What rounding of the mean, or of the features' last bits, has made is no feature.
    rounding = np.abs(centred.mean(axis=0)) + 4 * np.finfo(float).eps * np.abs(matrix).max(axis=0)
    centred[np.abs(centred) <= rounding] = 0
    if not centred.any():
        raise ValueError(
            f"Invalid {name}: all examples have the same features. Use features that vary."
        )
    return centred / np.abs(centred).max()


def _labels(name: str, values: object, num_examples: int) -> np.ndarray:
    labels = check_array(name, values, kinds="iu")
    if labels.shape != (num_examples,):
        raise ValueError(
            f"Invalid {name} of shape {labels.shape}: there are {num_examples} examples. "
            f"Use shape ({num_examples},)."
        )
    return labels
