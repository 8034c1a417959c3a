"""Federations of images, and how well a body that was trained on them serves new clients.

What the studies of Part III share. CIFAR's images are halved to 16x16 pixels, so that a whole grid
of methods, step sizes and seeds fits two CPU cores.

Another data set is a function ``split -> (images, labels)`` in a file of yours, named
``"FILE.py:NAME"``, and another network one of ``(image_shape, num_outputs, *, seed)`` that returns
a model with a ``body`` and a ``head``: nothing here needs to be changed for them.
"""

__all__ = [
    "BUDGETS",
    "IMAGES",
    "KINDS",
    "Counts",
    "Federation",
    "Task",
    "adapt_all",
    "adapt_heads",
    "build",
    "class_rows",
    "counts_of",
    "featured",
    "head_spectrum",
    "kinds_of",
    "load_images",
    "load_named",
    "model_for",
    "new_clients",
    "training_clients",
    "training_task",
    "try_step_sizes",
]

import importlib.util
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fedlib._checks import check_in, refuse
from fedlib.cifar import load_cifar10, load_cifar100
from fedlib.clients import ClientData
from fedlib.evaluate import evaluate
from fedlib.finetune import fine_tune
from fedlib.glyphs import load_glyphs
from fedlib.models import CNN, MLP, Params, params_of, with_body
from fedlib.partition import partition_by_class, private_labels
from fedlib.represent import features

SHAPE, WIDTH = (3, 16, 16), 16
NUM_KNOWN, NUM_CLASSES = 80, 100
TRAIN_ROWS, TUNE_ROWS = 350, 100
"""Images of each known class (of 500) for the federation; for new clients to learn from; the rest
is for validation."""

IMAGES = 240
"""Images of a training client."""

WAYS, TEST_PER_CLASS = 10, 50
"""Classes of a new client, and test images of each."""

BUDGETS = (5, 20, 100)
"""Images per class that a new client learns from."""

KINDS = ("known", "unseen", "cifar10")
"""New clients: training classes with new images; classes no client held; another data set."""

HEAD = dict(steps=200, batch_size=50)
ALL = dict(steps=100, batch_size=10, strategy="compiled")
"""Fine-tuning of the head alone, and of all layers."""


Scores = dict[int, dict[float, list[float] | None]]
"""Accuracy of every client, by budget and step size; None where fine-tuning diverged."""


class Federation(NamedTuple):
    """Training clients: what defines them, but the seed.

    Attributes:
        regime: "shared", one label space; "private", every client numbers its classes 0..C-1 in an
            order of its own; "balanced", orders chosen so that each class gets each number equally
            often; "groups", the classes form C groups, every client holds one class of each group,
            and the label is the group's number.
        classes: classes per client, C.
        num_clients: clients M.
        permuted: share of the clients that renumber their labels by an order of their own; for
            "groups" only.
    """

    regime: str
    classes: int
    num_clients: int = 100
    permuted: float = 0.0


class Counts(NamedTuple):
    """How a data set is shared out: as CIFAR-100's numbers, in proportion.

    Attributes:
        classes: all of them.
        known: those that training clients hold.
        train: images of each known class for the federation.
        tune: images of each for new clients to learn from.
    """

    classes: int
    known: int
    train: int
    tune: int


class Task(NamedTuple):
    """What new clients learn from, and what they are tested on; client by client.

    Attributes:
        train: ``TUNE_ROWS`` images of each of ``WAYS`` classes per client, in an order such that
            the first b of each class come first for every budget b; or their features.
        test: ``TEST_PER_CLASS`` images of each class.
    """

    train: ClientData
    test: ClientData

    def with_budget(self, per_class: int) -> "Task":
        """Return the task with so many training images of each class."""
        return Task(_first(self.train, per_class * WAYS), self.test)

    def of_first(self, num_clients: int) -> "Task":
        """Return the task of the first clients only."""
        ids = range(num_clients)
        return Task(self.train.select(ids), self.test.select(ids))


def _first(clients: ClientData, size: int) -> ClientData:
    rows = torch.cat([torch.arange(start, start + size) for start in clients.starts])
    sizes = np.full(clients.num_clients, size)
    return ClientData(clients.inputs[rows], clients.targets[rows], sizes)


def load_named(name: str) -> Callable:
    """Return the function that ``"FILE.py:NAME"`` names.

    Raises:
        ValueError: if there is no such file, or nothing of that name in it.
    """
    file, _, wanted = name.rpartition(":")
    path = Path(file).resolve()
    if not file.endswith(".py") or not path.exists():
        refuse("name", name, "no such file", '"FILE.py:NAME", a Python file and a function in it')
    module = sys.modules.get(path.stem)
    if getattr(module, "__file__", None) != str(path):
        sys.path.append(str(path.parent))  # what it imports from beside it
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    if not callable(getattr(module, wanted, None)):
        refuse("name", name, f"{path.name} defines no function {wanted!r}", "one that it defines")
    return getattr(module, wanted)


@cache
def load_images(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images, of mean 0 and standard deviation 1 about, and labels.

    Args:
        name: "cifar100" or "cifar10", halved; "glyphs", letters and digits of 16x16 pixels; or
            ``"FILE.py:NAME"``, a function of yours.
        split: "train" or "test".
    """
    if ":" in name:
        images, labels = load_named(name)(split)
        return np.asarray(images, dtype=np.float32), np.asarray(labels, dtype=np.int64)
    check_in("data", name, ["cifar100", "cifar10", "glyphs"])
    if name == "glyphs":
        drawn, seed = {"train": (500, 0), "test": (100, 1)}[split]
        glyphs = load_glyphs(string.ascii_letters + string.digits, per_class=drawn, seed=seed)
        return (glyphs.images - 0.5) / 0.25, glyphs.labels
    data = {"cifar10": load_cifar10, "cifar100": load_cifar100}[name](split)
    halved = nn.functional.avg_pool2d(torch.from_numpy(data.images), 2).numpy()
    return (halved - 0.5) / 0.25, data.labels


def counts_of(data: str) -> Counts:
    """Say how a data set is shared out.

    Raises:
        ValueError: if it has too few classes to leave ``WAYS`` unseen.
    """
    if data == "cifar100":
        return Counts(NUM_CLASSES, NUM_KNOWN, TRAIN_ROWS, TUNE_ROWS)
    per_class = np.bincount(load_images(data, "train")[1])
    classes, least = len(per_class), int(per_class.min())
    if classes // 5 < WAYS:
        why = (
            f"only {classes} classes, and a fifth of them, {WAYS} or more, is left for new clients"
        )
        refuse("data", data, why, f"a data set of {5 * WAYS} classes or more")
    return Counts(classes, classes - classes // 5, least * 7 // 10, least // 5)


def kinds_of(data: str) -> tuple[str, ...]:
    """Return the kinds of new clients that there are for a data set."""
    return KINDS if data == "cifar100" else KINDS[:2]


def class_rows(seed: int, data: str = "cifar100") -> tuple[np.ndarray, np.ndarray]:
    """Return the classes in an order, known ones first, and each class's rows, (classes, n)."""
    rng = np.random.default_rng([seed, 0])
    labels = load_images(data, "train")[1]
    numbers = np.bincount(labels)
    places = (np.cumsum(numbers) - numbers)[:, None] + np.arange(numbers.min())
    rows = rng.permuted(np.argsort(labels, kind="stable")[places], axis=1)
    return rng.permutation(len(numbers)), rows


def training_clients(
    federation: Federation, seed: int, *, images: int = IMAGES, data: str = "cifar100"
) -> ClientData:
    """Return the federation's clients, with so many images each of C known classes.

    Raises:
        ValueError: if the regime is unknown, or a class has too few images.
    """
    pool, labels, parts = _deal(federation, seed, images, data)
    return ClientData.from_parts(load_images(data, "train")[0][pool], labels, parts)


def training_task(
    federation: Federation, seed: int, *, num_clients: int = 10
) -> tuple[ClientData, ClientData]:
    """Return the first training clients, and further images of their classes to be tested on.

    The test images are in no training client's hands; their labels are the client's own. Each has
    as many of each of its classes, 500 in all or a few less.
    """
    pool, labels, parts = _deal(federation, seed, IMAGES, "cifar100")
    images, true = load_images("cifar100", "train")
    _, rows = class_rows(seed)
    tested, targets = [], []
    parts = parts[:num_clients]
    for part in parts:
        named = dict(zip(true[pool[part]], labels[part], strict=True))
        each = WAYS * TEST_PER_CLASS // len(named)
        tested.append(rows[list(named), TRAIN_ROWS : TRAIN_ROWS + each].ravel())
        targets.append(np.repeat(list(named.values()), each))
    cuts = np.split(np.arange(sum(map(len, tested))), np.cumsum([len(t) for t in tested])[:-1])
    test = ClientData.from_parts(images[np.concatenate(tested)], np.concatenate(targets), cuts)
    return ClientData.from_parts(images[pool], labels, parts), test


def _deal(
    federation: Federation, seed: int, images: int, data: str
) -> tuple[np.ndarray, np.ndarray, Sequence[np.ndarray]]:
    """Return the rows of known classes' images, a label for each, and every client's positions."""
    check_in("regime", federation.regime, ["shared", "private", "balanced", "groups"])
    _, labels = load_images(data, "train")
    classes, rows = class_rows(seed, data)
    counts = counts_of(data)
    pool = rows[classes[: counts.known], : counts.train].ravel()
    labels = np.argsort(classes)[labels[pool]]
    rng = np.random.default_rng([seed, 1])
    regime, per_client, num_clients, permuted = federation
    dealt = dict(num_clients=num_clients, rng=rng)
    if regime == "groups":
        group = labels % per_client
        dealt |= dict(classes_per_client=1, examples_per_client=images // per_client)
        hands = []
        for g in range(per_client):
            members = np.flatnonzero(group == g)
            hands.append([members[p] for p in partition_by_class(labels[members], **dealt)])
        parts = [np.concatenate(hand) for hand in zip(*hands, strict=True)]
        labels = group
        private = private_labels(labels, parts, rng=rng)
        for i in rng.permutation(num_clients)[: round(permuted * num_clients)]:
            labels[parts[i]] = private[parts[i]]
    else:
        dealt |= dict(classes_per_client=per_client, examples_per_client=images)
        parts = partition_by_class(labels, **dealt)
        if regime != "shared":
            labels = private_labels(labels, parts, rng=rng, balanced=regime == "balanced")
    return pool, labels, parts


def new_clients(kind: str, seed: int, *, num_clients: int = 10, data: str = "cifar100") -> Task:
    """Return new clients of a kind in ``KINDS``, or "validation": known classes, own images.

    No image is in any training client's hands, nor in a new client's both halves. But clients that
    hold the same class are tested on the same images of it, and may learn from the same: what
    varies independently is the seed.

    Raises:
        ValueError: if the kind is unknown.
    """
    check_in("kind", kind, [*KINDS, "validation"])
    rng = np.random.default_rng([seed, 2, [*KINDS, "validation"].index(kind)])
    classes, rows = class_rows(seed, data)
    counts, (images, _) = counts_of(data), load_images(data, "train")
    test_images, test_labels = load_images("cifar10" if kind == "cifar10" else data, "test")
    test = _by_class(test_labels, rng)
    if kind == "cifar10":  # one file of 10,000 images serves for both
        among, images, learn, test = np.arange(WAYS), test_images, test[:, :800], test[:, 800:]
    elif kind == "unseen":
        among, learn = classes[counts.known :], rows
    else:
        among = classes[: counts.known]
        learn = rows[:, counts.train : counts.train + counts.tune]
    if kind == "validation":
        test_images, test = images, rows[:, counts.train + counts.tune :]
    held = [rng.choice(among, WAYS, replace=False) for _ in range(num_clients)]
    # Transposed, one image of each class after the other: a budget is a prefix.
    learned = [rng.permuted(learn[own], axis=1)[:, : counts.tune].T.ravel() for own in held]
    examined = [test[own][:, :TEST_PER_CLASS].T.ravel() for own in held]
    numbers = np.arange(WAYS)

    def gather(images: np.ndarray, parts: list[np.ndarray]) -> ClientData:
        flat = np.concatenate(parts)
        targets = np.tile(numbers, len(flat) // WAYS)
        cuts = np.arange(len(flat)).reshape(num_clients, -1)
        return ClientData.from_parts(images[flat], targets, list(cuts))

    return Task(gather(images, learned), gather(test_images, examined))


def _by_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return each class's rows in random order, as many as the rarest class has."""
    per_class = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    least = min(map(len, per_class))
    return np.array([rows[:least] for rows in per_class])


def build(
    num_outputs: int,
    seed: int = 0,
    *,
    width: int | None = None,
    network: str = "CNN",
    data: str = "cifar100",
) -> nn.Module:
    """Return a network with its initial weights.

    Args:
        num_outputs: of its head.
        seed: draws the weights.
        width: of the CNN; ``WIDTH`` unless told.
        network: "CNN", "MLP", or ``"FILE.py:NAME"``, a function of yours.
        data: gives the shape of an image.
    """
    shape = SHAPE if data == "cifar100" else load_images(data, "train")[0].shape[1:]
    if network == "CNN":
        return CNN(shape, num_outputs, width=WIDTH if width is None else width, seed=seed)
    if ":" in network:
        return load_named(network)(shape, num_outputs, seed=seed)
    check_in("network", network, ["CNN", "MLP"])
    return MLP(shape, num_outputs, hidden=(128, 64), seed=seed)


def model_for(federation: Federation, seed: int, **network: object) -> nn.Module:
    """Return the network that is trained: as many outputs as there are labels."""
    known = counts_of(network.get("data", "cifar100")).known
    outputs = known if federation.regime == "shared" else federation.classes
    return build(outputs, seed, **network)


def featured(params: Params, clients: ClientData, **network: object) -> ClientData:
    """Return the clients with the body's features in place of the images."""
    model = build(1, **network)
    inputs = features(model, with_body(model, params), clients.inputs)
    return ClientData(inputs, clients.targets, clients.sizes)


def head_spectrum(params: Params, clients: ClientData, seed: int) -> dict[str, list[float]]:
    """Fit every training client's head on a body, from zero; compare their mean with one of them.

    Returns:
        Singular values, largest first: of the mean head ("mean"); and of a client's, as the root
        mean square over clients of the heads' length along each principal axis ("client").
    """
    seen = featured(params, clients)
    head = nn.Linear(seen.inputs.shape[1], clients.num_classes)
    start = {name: torch.zeros_like(p) for name, p in params_of(head).items()}
    fitted = fine_tune(head, start, seen, lr=0.1, seed=seed, **HEAD)
    heads = torch.stack([own["weight"] for own in fitted]).double()
    energy = torch.einsum("moi,moj->ij", heads, heads) / len(heads)
    return {
        "mean": torch.linalg.svdvals(heads.mean(0)).tolist(),
        "client": torch.linalg.eigvalsh(energy).clamp(min=0).sqrt().flip(0).tolist(),
    }


def adapt_heads(
    params: Params,
    task: Task,
    lrs: Mapping[int, Sequence[float]],
    seed: int,
    **network: object,
) -> Scores:
    """Fine-tune fresh heads on a body's features.

    Args:
        params: give the body.
        task: new clients.
        lrs: step sizes to try for each budget (images per class).
        seed: of the head's initial weights, drawn as the run's own were, and of the batches.
        network: as ``build`` takes it.

    Returns:
        The accuracy of every client by budget and step size; None where fine-tuning diverged.
    """
    head = build(WAYS, seed, **network).head
    task = Task(*(featured(params, half, **network) for half in task))
    return try_step_sizes(head, params_of(head), task, lrs, seed, HEAD)


def adapt_all(
    params: Params,
    task: Task,
    lrs: Mapping[int, Sequence[float]],
    seed: int,
    *,
    fine_tuning: Mapping[str, object] | None = None,
    **network: object,
) -> Scores:
    """Fine-tune all layers, from a trained body and a fresh head; as ``adapt_heads``.

    ``fine_tuning`` are options of ``fine_tune`` in place of some in ``ALL``.
    """
    model = build(WAYS, seed, **network)
    options = ALL | dict(fine_tuning or {})
    if not isinstance(model, CNN):  # what a reader brings need not compile
        options["strategy"] = "auto"
    return try_step_sizes(model, with_body(model, params), task, lrs, seed, options)


def try_step_sizes(
    model: nn.Module,
    start: Params,
    task: Task,
    lrs: Mapping[int, Sequence[float]],
    seed: int,
    options: dict,
) -> Scores:
    """Fine-tune a model on a task with each step size; ``options`` are ``fine_tune``'s others."""
    scores = {}
    for budget, tried in lrs.items():
        smaller, scores[budget] = task.with_budget(budget), {}
        for lr in tried:
            try:
                personal = fine_tune(model, start, smaller.train, lr=lr, seed=seed, **options)
                scores[budget][lr] = evaluate(model, personal, smaller.test).tolist()
            except FloatingPointError:
                scores[budget][lr] = None
    return scores
