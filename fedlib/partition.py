"""Which client holds which examples: labels in, one index array per client out."""

__all__ = [
    "check_parts",
    "partition_by_class",
    "partition_dirichlet",
    "partition_iid",
    "private_labels",
]

import heapq
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from fedlib._checks import (
    check_bool,
    check_indices,
    check_positive,
    check_positive_int,
    check_rng,
    check_type,
)


def partition_by_class(
    labels: Int[np.ndarray, " n"],
    *,
    num_clients: int,
    classes_per_client: int,
    examples_per_client: int,
    rng: np.random.Generator,
) -> list[Int[np.ndarray, " n_i"]]:
    """Give every client a few classes, and all clients equally many examples.

    Classes are dealt like cards, from shuffled decks that hold each class once: how many clients
    hold a class differs by at most one between classes. A client's examples are split as evenly
    as possible among its classes. Parts are disjoint and need not cover the data.

    Args:
        labels: class of each example, integers.
        num_clients: number of clients M.
        classes_per_client: distinct classes each client holds, C.
        examples_per_client: examples each client holds, at least C.
        rng: source of all randomness.

    Returns:
        M int64 arrays of positions in ``labels``, each of length
            ``examples_per_client`` and in random order.

    Raises:
        TypeError: if ``labels`` are not integers, or ``rng`` is not a NumPy generator.
        ValueError: if there are too few classes, or a class runs out of examples; the message
            then gives the largest ``examples_per_client`` that works for the same ``rng``.

    Example:
        >>> labels = np.repeat([0, 1, 2], 4)
        >>> parts = partition_by_class(
        ...     labels,
        ...     num_clients=3,
        ...     classes_per_client=2,
        ...     examples_per_client=4,
        ...     rng=np.random.default_rng(0),
        ... )
        >>> [np.bincount(labels[part], minlength=3).tolist() for part in parts]
        [[2, 0, 2], [0, 2, 2], [2, 2, 0]]

    Reference:
        McMahan et al., "Communication-efficient learning of deep networks from decentralized
        data", 2017, section 3 (two classes per client).
    """
    num_clients = _check(labels, num_clients, rng)
    classes_per_client = check_positive_int("classes_per_client", classes_per_client)
    examples_per_client = check_positive_int("examples_per_client", examples_per_client)
    classes, inverse, supply = np.unique(labels, return_inverse=True, return_counts=True)
    if classes_per_client > len(classes):
        raise ValueError(
            f"Invalid classes_per_client={classes_per_client}: only {len(classes)} classes. "
            f"Use classes_per_client <= {len(classes)}."
        )
    if examples_per_client < classes_per_client:
        raise ValueError(
            f"Invalid examples_per_client={examples_per_client}: less than one example for each "
            f"of the client's classes. Use examples_per_client >= {classes_per_client}."
        )
    asked, examples_per_client = examples_per_client, min(examples_per_client, len(labels) + 1)
    hands = _deal(len(classes), num_clients, classes_per_client, rng)
    positions = np.arange(classes_per_client)
    # times[c, p]: how many hands hold class c at position p; earlier positions take the remainder
    times = np.stack([np.bincount(h, minlength=len(classes)) for h in hands.T], axis=1)

    def shares(examples: int) -> np.ndarray:
        return examples // classes_per_client + (positions < examples % classes_per_client)

    def runs_out(examples: int) -> bool:
        return bool(np.any(times @ shares(examples) > supply))

    if runs_out(examples_per_client):
        short = np.argmax(times @ shares(examples_per_client) - supply)
        sizes = range(classes_per_client, examples_per_client)
        workable = bisect_left(sizes, True, key=runs_out)  # asking for more never needs less
        remedy = f"examples_per_client <= {sizes[workable - 1]}" if workable else "fewer clients"
        raise ValueError(
            f"Invalid examples_per_client={asked}: class {classes[short]} runs out, "
            f"with {times[short].sum()} clients sharing its {supply[short]} examples. Use {remedy}."
        )
    pools = [rng.permutation(np.flatnonzero(inverse == c)) for c in range(len(classes))]
    parts = []
    for hand in hands:
        part = []
        for c, share in zip(hand, shares(examples_per_client), strict=True):
            part.append(pools[c][:share])
            pools[c] = pools[c][share:]
        parts.append(rng.permutation(np.concatenate(part)))
    return parts


def partition_dirichlet(
    labels: Int[np.ndarray, " n"],
    *,
    num_clients: int,
    concentration: float | int,
    rng: np.random.Generator,
    min_examples: int = 1,
) -> list[Int[np.ndarray, " _"]]:
    """Split every class among the clients in random proportions.

    For each class the proportions are drawn from a symmetric Dirichlet distribution: a small
    concentration gives each class to few clients, a large one gives nearly equal shares. Every
    example is used exactly once. A client left with fewer than ``min_examples`` takes what it lacks
    from the largest clients, one example at a time.

    Args:
        labels: class of each example, integers.
        num_clients: number of clients M, at most the number of examples.
        concentration: parameter of the Dirichlet distribution, positive.
        rng: source of all randomness.
        min_examples: examples that every client holds at least; with 2, every client can be split.

    Returns:
        M int64 arrays of positions in ``labels``, none empty, each in random order.

    Raises:
        TypeError: if ``labels`` are not integers, or ``rng`` is not a NumPy generator.
        ValueError: if there are more clients than examples, or fewer than ``min_examples`` for
            each, or ``concentration`` is not positive.

    Example:
        >>> parts = partition_dirichlet(
        ...     np.repeat([0, 1], 50),
        ...     num_clients=4,
        ...     concentration=0.5,
        ...     rng=np.random.default_rng(0),
        ... )
        >>> sum(len(part) for part in parts)
        100

    Reference:
        Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", 2019.
    """
    num_clients = _check(labels, num_clients, rng)
    # From about 1e32 on, shares are equal to the last bit; from 1e307, their sum would overflow.
    concentration = min(check_positive("concentration", concentration), 1e100)
    min_examples = check_positive_int("min_examples", min_examples)
    if min_examples > len(labels) // num_clients:
        raise ValueError(
            f"Invalid min_examples={min_examples}: {len(labels)} examples for {num_clients} "
            f"clients. Use min_examples <= {len(labels) // num_clients}."
        )
    by_class = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    examples, owners = [], []
    for held in np.split(by_class, np.cumsum(counts)[:-1]):
        examples.append(rng.permutation(held))
        shares = rng.dirichlet(np.full(num_clients, concentration))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(held)).astype(np.int64)
        owners.append(np.searchsorted(cuts, np.arange(len(held)), side="right"))
    owner = np.concatenate(owners)
    dealt = np.concatenate(examples)[np.argsort(owner, kind="stable")]
    sizes = np.bincount(owner, minlength=num_clients)
    parts = [rng.permutation(part) for part in np.split(dealt, np.cumsum(sizes)[:-1])]
    return _filled_up(parts, min_examples)


def _filled_up(parts: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Let clients that hold too little take from the largest, one example at a time.

    Of the largest, the first in line gives, and gives its first example.
    """
    heap = [(-len(part), i) for i, part in enumerate(parts) if len(part) > least]
    heapq.heapify(heap)
    given, parts = [0] * len(parts), list(parts)
    for i, part in enumerate(parts):
        taken = []
        for _ in range(least - len(part)):
            negative_size, largest = heap[0]
            taken.append(parts[largest][given[largest]])
            given[largest] += 1
            heapq.heapreplace(heap, (negative_size + 1, largest))
        if taken:
            parts[i] = np.append(part, taken)
    return [part[count:] for part, count in zip(parts, given, strict=True)]


def partition_iid(
    labels: Int[np.ndarray, " n"], *, num_clients: int, rng: np.random.Generator
) -> list[Int[np.ndarray, " _"]]:
    """Shuffle all examples and cut them into parts whose sizes differ by at most one.

    Args:
        labels: class of each example, integers; only their number matters.
        num_clients: number of clients M, at most the number of examples.
        rng: source of all randomness.

    Returns:
        M int64 arrays of positions in ``labels``, each in random order.

    Raises:
        TypeError: if ``labels`` are not integers, or ``rng`` is not a NumPy generator.
        ValueError: if there are more clients than examples.

    Example:
        >>> parts = partition_iid(np.zeros(10, int), num_clients=3, rng=np.random.default_rng(0))
        >>> [len(part) for part in parts]
        [4, 3, 3]
    """
    num_clients = _check(labels, num_clients, rng)
    return np.array_split(rng.permutation(len(labels)), num_clients)


def private_labels(
    labels: Int[np.ndarray, " n"],
    parts: Sequence[Int[np.ndarray, " _"]],
    *,
    rng: np.random.Generator,
    balanced: bool = False,
) -> Int[np.ndarray, " n"]:
    """Let every client number its own classes: 0, 1, ..., in an order drawn for it alone.

    What two clients call "class 0" then has nothing in common, so only a shared representation,
    and no shared head, can serve them all.

    Args:
        labels: class of each example, integers.
        parts: positions of each client's examples, disjoint.
        rng: source of all randomness.
        balanced: choose the orders together, so that among the clients that hold a class each of
            the C numbers is given to it equally often. What independent orders do on average,
            these do exactly.

    Returns:
        int64 array as long as ``labels``: a client's C classes become 0..C-1 by a permutation of
        its own, uniformly random and independent unless ``balanced``; examples outside every part
        become -1.

    Raises:
        TypeError: if ``labels`` or a part are not integers, or ``rng`` is not a NumPy generator.
        ValueError: if parts overlap, or a position is not in 0..N-1; or orders cannot be balanced,
            because clients hold different numbers of classes, or a class is held by a number of
            clients that is not a multiple of C.

    Example:
        >>> labels, parts = np.array([7, 7, 3, 3, 5]), [np.array([0, 2]), np.array([1, 3])]
        >>> private_labels(labels, parts, rng=np.random.default_rng(1))
        array([ 1,  1,  0,  0, -1])
    """
    _check(labels, 1, rng)
    balanced = check_bool("balanced", balanced)
    parts = check_parts(parts, len(labels))
    uses = np.bincount(np.concatenate([*parts, np.empty(0, np.int64)]), minlength=len(labels))
    if np.any(uses > 1):
        raise ValueError(
            f"Invalid parts: example {np.argmax(uses)} occurs {uses.max()} times. "
            "Use disjoint parts, each position once."
        )
    private = np.full(len(labels), -1, dtype=np.int64)
    held = [np.unique(labels[part]) for part in parts]
    orders = _balanced_orders(held, rng) if balanced else [rng.permutation(len(h)) for h in held]
    for part, classes, order in zip(parts, held, orders, strict=True):
        private[part] = order[np.searchsorted(classes, labels[part])]
    return private


def check_parts(
    parts: Sequence[Int[np.ndarray, " _"]], num_examples: int
) -> list[Int[np.ndarray, " _"]]:
    """Return each client's positions as int64; a part may be empty.

    Raises:
        TypeError: if parts are not in a list, or one does not hold integers.
        ValueError: if a position is not in 0..num_examples-1.
    """
    if not isinstance(parts, np.ndarray) or not parts.ndim:
        check_type("parts", parts, Sequence, "Use a list with one index array per client.")
    if isinstance(parts, str | bytes):
        raise TypeError("Invalid parts: a text. Use a list with one index array per client.")
    return [check_indices(f"parts[{i}]", part, num_examples) for i, part in enumerate(parts)]


def _balanced_orders(held: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Number each client's classes so that every class gets every number equally often.

    Give each class one seat for every C clients that hold it. Clients and seats then form a
    C-regular bipartite graph, which splits into C perfect matchings (König): one for each number.
    """
    from scipy.sparse import csr_array  # half a second to load
    from scipy.sparse.csgraph import maximum_bipartite_matching

    sizes = {len(classes) for classes in held} or {0}
    if sizes == {0}:
        raise ValueError("Invalid balanced=True: no client holds a class. Use parts with examples.")
    if len(sizes) != 1:
        raise ValueError(
            f"Invalid balanced=True: clients hold {min(sizes)} to {max(sizes)} classes. "
            "Use clients with equally many, as partition_by_class makes them."
        )
    num_clients, (num_numbers,) = len(held), sizes
    classes, column = np.unique(np.concatenate(held), return_inverse=True)
    counts = np.bincount(column)
    if np.any(counts % num_numbers):
        odd = np.argmax(counts % num_numbers > 0)
        raise ValueError(
            f"Invalid balanced=True: class {classes[odd]} is held by {counts[odd]} clients, not by "
            f"a multiple of {num_numbers}. Use num_clients = the number of classes, or a multiple."
        )
    client = np.repeat(np.arange(num_clients), num_numbers)
    shuffled = rng.permutation(len(client))  # which clients of a class share a seat
    seat = np.empty(len(client), dtype=np.int64)
    seat[shuffled[np.argsort(column[shuffled], kind="stable")]] = (
        np.arange(len(client)) // num_numbers
    )
    row_of, seat = rng.permutation(num_clients)[client], rng.permutation(num_clients)[seat]
    order = np.full(len(client), -1)
    for number in range(num_numbers):
        left = order < 0
        ends = (
            row_of[left].astype(np.int32),
            seat[left].astype(np.int32),
        )  # SciPy 1.14 takes no others
        edges = csr_array((np.ones(left.sum()), ends))
        match = maximum_bipartite_matching(edges, perm_type="column")
        order[left & (match[row_of] == seat)] = number
    return order.reshape(num_clients, num_numbers)


def _deal(
    num_classes: int, num_clients: int, hand_size: int, rng: np.random.Generator
) -> np.ndarray:
    """Deal hands of distinct classes, (num_clients, hand_size), from shuffled decks."""
    deck = rng.permutation(num_classes)
    hands = []
    for _ in range(num_clients):
        hand, deck = deck[:hand_size], deck[hand_size:]
        if len(hand) < hand_size:  # the deck ran out: go on with another, skipping classes held
            fresh = rng.permutation(num_classes)
            drawn = fresh[~np.isin(fresh, hand)][: hand_size - len(hand)]
            hand = np.concatenate([hand, drawn])
            deck = rng.permutation(np.setdiff1d(fresh, drawn))
        hands.append(hand)
    return np.array(hands)


def _check(labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> int:
    """Refuse what no partition can use; return the number of clients."""
    check_rng(rng)
    num_clients = check_positive_int("num_clients", num_clients)
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
        raise TypeError("Invalid labels: not a NumPy array of integers. Use one class per example.")
    if labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"Invalid labels.shape={labels.shape}: must be one-dimensional and not empty. "
            "Use one class per example."
        )
    if num_clients > len(labels):
        raise ValueError(
            f"Invalid num_clients={num_clients}: only {len(labels)} examples. "
            f"Use num_clients <= {len(labels)}."
        )
    return num_clients
