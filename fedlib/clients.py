"""A federation's data: every client's examples in two flat tensors."""

__all__ = ["ClientData", "as_numbers", "check_device", "digest_of"]

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fedlib._checks import (
    check_array,
    check_indices,
    check_number,
    check_rng,
    check_tensor,
    check_type,
    refuse,
)
from fedlib.partition import check_parts


@dataclass(frozen=True, eq=False, repr=False)
class ClientData:
    """The examples of M clients, one client after the other.

    Clients may hold different numbers of examples ("ragged"). ``clients[i]`` gives client i's
    inputs and targets as views, without copying.

    Args:
        inputs: all inputs, client 0's first, shape (N, ...); their dtype is the model's.
        targets: class indices (any integer type; kept as int64) or real responses (floating
            point), shape (N,). For a loss of your own, rows of any shape (N, ...).
        sizes: examples per client, integers of shape (M,), each at least 1, summing to N.

    Raises:
        TypeError: if inputs or targets are not real tensors, or sizes are not integers.
        ValueError: if sizes do not fit, a client is empty, targets are not one row per example, a
            label is negative, a value is not finite, or inputs and targets are on two devices.

    Example:
        >>> parts = [np.array([0, 2]), np.array([1])]
        >>> clients = ClientData.from_parts(np.eye(3), np.array([0, 1, 0]), parts)
        >>> clients
        ClientData(num_clients=2, sizes=1..2, inputs=(3,), device=cpu)
        >>> clients[0][1]
        tensor([0, 0])
    """

    inputs: Shaped[Tensor, "n ..."]
    targets: Shaped[Tensor, "n ..."]
    sizes: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        for name, tensor in {"inputs": self.inputs, "targets": self.targets}.items():
            check_type(name, tensor, Tensor, "Use ClientData.from_parts for NumPy arrays.")
            object.__setattr__(self, name, check_tensor(name, tensor).detach())
        sizes = check_array("sizes", self.sizes, (None,), kinds="iu").astype(np.int64)
        object.__setattr__(self, "sizes", sizes)
        if self.sizes.min() < 1:
            empty = np.flatnonzero(self.sizes < 1)[:5].tolist()
            raise ValueError(
                f"Invalid sizes: clients {empty} hold no example. Give every client at least one."
            )
        if self.targets.ndim == 0:
            raise ValueError("Invalid targets of shape (): give one row per example.")
        if self.inputs.device != self.targets.device:
            raise ValueError(
                f"Invalid targets on {self.targets.device}: the inputs are on "
                f"{self.inputs.device}. Bring both to one device."
            )
        if self.inputs.ndim == 0:
            raise ValueError("Invalid inputs of shape (): give one row per example.")
        total = sum(self.sizes.tolist())  # as Python's integers, which cannot overflow
        if not total == len(self.inputs) == len(self.targets):
            raise ValueError(
                f"Invalid sizes: they sum to {total}, but there are {len(self.inputs)} "
                f"inputs and {len(self.targets)} targets. All three must agree."
            )
        for name, tensor in {"inputs": self.inputs, "targets": self.targets}.items():
            # Chunk by chunk: the check should not need as much memory as the data.
            rows = max(1, 2**22 // max(1, tensor[0].numel()))
            chunks = tensor.split(rows) if tensor.is_floating_point() else ()
            if not all(bool(chunk.isfinite().all()) for chunk in chunks):
                raise ValueError(f"Invalid {name}: NaN or infinity. Remove or mend those examples.")
        if self.targets.is_floating_point():
            return
        object.__setattr__(self, "targets", self.targets.long())
        _num_classes(self.targets)

    @classmethod
    def _as_checked(
        cls, inputs: Tensor, targets: Tensor, sizes: np.ndarray, **known: object
    ) -> "ClientData":
        """Build from data that were checked before, without reading them again.

        ``known`` are properties that were computed then; they hold as long as nothing is written.
        """
        clients = object.__new__(cls)
        clients.__dict__.update(inputs=inputs, targets=targets, sizes=sizes)
        clients.__dict__["_known"] = known | {"versions": _versions(inputs, targets)}
        return clients

    def _remembered(self, name: str) -> Any:
        """Return what is known of data that nothing was written to, or None."""
        known = self.__dict__.get("_known", {})
        fresh = known.get("versions") == _versions(self.inputs, self.targets) is not None
        return known.get(name) if fresh else None

    @classmethod
    def from_parts(
        cls,
        images: Float[np.ndarray, "n ..."] | Tensor,
        labels: Shaped[np.ndarray, "n ..."] | Tensor,
        parts: Sequence[Int[np.ndarray, " _"]],
        *,
        device: str | torch.device = "cpu",
    ) -> "ClientData":
        """Gather each part's examples onto a device.

        Args:
            images: inputs, shape (n, ...).
            labels: one label or response per input, shape (n,); or rows of targets, (n, ...).
            parts: one index array per client, as the ``partition_*`` functions return; they may
                overlap and need not cover everything.
            device: where the tensors live.

        Returns:
            The federation, client i holding ``images[parts[i]]``.

        Raises:
            TypeError: if a part is not an array of integers, or images or labels are not numbers.
            ValueError: if a part is empty or reaches outside the data, there are no parts, or the
                device is not there.
        """
        images, labels = as_numbers("images", images), as_numbers("labels", labels)
        if len(images) != len(labels):
            raise ValueError(
                f"Invalid labels: {len(labels)} for {len(images)} images. Give one per image."
            )
        parts = check_parts(parts, len(images))
        if not parts:
            raise ValueError("Invalid parts: none. Give one index array per client.")
        sizes = np.array([len(part) for part in parts])
        if not sizes.all():
            raise ValueError(
                f"Invalid parts[{sizes.argmin()}]: it is empty, and so are "
                f"{len(sizes) - np.count_nonzero(sizes) - 1} others. "
                "Give every client at least one example, or leave it out."
            )
        index, device = np.concatenate(parts), check_device(device)
        return cls(_take(images, index).to(device), _take(labels, index).to(device), sizes)

    @property
    def num_clients(self) -> int:
        """The number of clients M."""
        return len(self.sizes)

    @property
    def device(self) -> torch.device:
        """Where the examples live."""
        return self.inputs.device

    @cached_property
    def starts(self) -> Int[np.ndarray, " m"]:
        """Row of each client's first example, shape (M,)."""
        return np.cumsum(self.sizes) - self.sizes

    @property
    def num_classes(self) -> int:
        """How many classes there are at least: one more than the largest label; 0 for reals.

        Labels are read anew, since they may have been written to.

        Raises:
            ValueError: if a label is negative by now.
        """
        return _num_classes(self.targets)

    @property
    def digest(self) -> str:
        """Sixteen hex digits that tell these data and their holders from others.

        The data are read anew, since they may have been written to; those of a stored federation
        only if they were, through the tensors.
        """
        sizes = torch.tensor(self.sizes)  # a copy: torch takes no read-only memory
        data = {"inputs": self.inputs, "targets": self.targets, "sizes": sizes}
        return self._remembered("digest") or digest_of("", data)

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: SupportsIndex) -> tuple[Tensor, Tensor]:
        client = self._check_client(client)
        rows = slice(self.starts[client], self.starts[client] + self.sizes[client])
        return self.inputs[rows], self.targets[rows]

    def _check_client(self, client: SupportsIndex) -> int:
        if isinstance(client, bool) or not isinstance(client, Integral):
            refuse("client", client, "not an integer", "select for several", error=TypeError)
        if not 0 <= int(client) < self.num_clients:
            raise IndexError(f"Invalid client={client}: clients are 0 to {self.num_clients - 1}.")
        return int(client)

    def __repr__(self) -> str:
        return (
            f"ClientData(num_clients={self.num_clients}, sizes={self.sizes.min()}.."
            f"{self.sizes.max()}, inputs={tuple(self.inputs.shape[1:])}, device={self.device})"
        )

    def select(self, ids: Sequence[int] | Shaped[np.ndarray, " _"]) -> "ClientData":
        """Return the federation of these clients only, in this order.

        Args:
            ids: the clients' numbers, or one True or False per client.

        Raises:
            TypeError: if they are neither.
            IndexError: if a client is not there.
            ValueError: if no client is asked for, or a mask is not one entry per client.

        Example:
            >>> clients = ClientData(torch.eye(3), torch.zeros(3), np.array([1, 2]))
            >>> clients.select(clients.sizes >= 2)
            ClientData(num_clients=1, sizes=2..2, inputs=(3,), device=cpu)
        """
        ids = check_indices("ids", ids, self.num_clients, mask=True, error=IndexError)
        if not len(ids):
            raise ValueError("Invalid ids: none. Give one client at least.")
        return self._rows([np.arange(self.sizes[i]) for i in ids], ids)

    def split(
        self, fraction: float, *, rng: np.random.Generator
    ) -> tuple["ClientData", "ClientData"]:
        """Split every client's examples at random, say to train and to test.

        A client with a single example keeps it in the first half, and is missing in the second; a
        warning says how many such clients there are.

        Args:
            fraction: share of each client's examples in the first half, in (0, 1); rounded, and
                at least one example stays on either side.
            rng: shuffles the examples.

        Returns:
            Two federations, of the same M clients if each has two examples or more.

        Raises:
            TypeError: if ``rng`` is not a NumPy generator, or the fraction not a number.
            ValueError: if the fraction is not inside (0, 1) or no client has two examples.
        """
        check_rng(rng)
        fraction = check_number("fraction", fraction, above=0, below=1)
        large = np.flatnonzero(self.sizes > 1)
        if not len(large):
            raise ValueError(
                "Invalid clients: each has one example, which cannot be split. "
                "Give one of them two at least."
            )
        if small := self.num_clients - len(large):
            warnings.warn(
                f"{small} of {self.num_clients} clients have one example, which stays in the first "
                "half; they are missing in the second. To leave them out of both, split "
                "clients.select(clients.sizes > 1); partition_dirichlet(..., min_examples=2) "
                "makes none.",
                stacklevel=2,
            )
        firsts, seconds = [], []
        for size in self.sizes.tolist():
            order = rng.permutation(size)
            cut = max(1, min(round(fraction * size), size - 1))
            firsts.append(order[:cut])
            seconds.append(order[cut:])
        everyone = range(self.num_clients)
        return self._rows(firsts, everyone), self._rows([seconds[i] for i in large], large)

    def pool(self) -> "ClientData":
        """Return all examples as those of one client, for centralised training.

        FedAvg on it is plain SGD. Labels must mean the same on every client: private ones
        (``private_labels``) cannot be pooled.

        Example:
            >>> ClientData(torch.eye(3), torch.zeros(3), np.array([1, 2])).pool()
            ClientData(num_clients=1, sizes=3..3, inputs=(3,), device=cpu)
        """
        return self._as_checked(self.inputs, self.targets, self.sizes.sum(keepdims=True))

    def _rows(self, rows: Sequence[np.ndarray], ids: Sequence[int] | np.ndarray) -> "ClientData":
        places = np.concatenate([self.starts[i] + r for i, r in zip(ids, rows, strict=True)])
        index = torch.as_tensor(places, device=self.device)
        sizes = np.array([len(r) for r in rows], dtype=np.int64)
        return ClientData(self.inputs[index], self.targets[index], sizes)


def _num_classes(targets: Tensor) -> int:
    """Return one more than the largest label, or 0 for reals; refuse a negative label."""
    if targets.is_floating_point() or not targets.numel():
        return 0
    least, largest = (int(value) for value in targets.aminmax())
    if least < 0 and targets.ndim == 1:
        raise ValueError(
            f"Invalid targets: the least label is {least}. Labels start at 0 "
            "(private_labels marks examples outside every part by -1)."
        )
    return largest + 1


def _versions(*tensors: Tensor) -> tuple[int, ...] | None:
    """Return numbers that change when torch writes to the tensors; None if it keeps none."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return tuple(tensor._version for tensor in tensors)


def as_numbers(name: str, values: object) -> np.ndarray | Tensor:
    """Return examples' numbers, one row each, in a type that torch has."""
    if isinstance(values, Tensor):
        values = check_tensor(name, values).detach()
    else:
        try:
            values = check_array(name, values, kinds="biuf", finite=False)
        except TypeError as error:
            if np.asarray(values).dtype.kind in "fc":  # masked, or complex
                raise
            raise TypeError(
                f"Invalid {name}: not numbers, but {np.asarray(values).dtype}. "
                "Number the classes by np.unique(names, return_inverse=True)[1]."
            ) from error
        # Torch knows this machine's byte order only, and no floats of more than eight bytes.
        number = np.float64 if values.dtype.itemsize > 8 else values.dtype.newbyteorder("=")
        values = values.astype(number, copy=False)
    if not values.ndim:
        raise ValueError(f"Invalid {name}: a single number. Give one row per example.")
    return values


def _take(values: np.ndarray | Tensor, index: np.ndarray) -> Tensor:
    """Return rows of an array in memory of torch's: aligned, so that the engine need not copy."""
    if isinstance(values, Tensor):
        return values.index_select(0, torch.as_tensor(index, device=values.device))
    dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
    rows = torch.empty((len(index), *values.shape[1:]), dtype=dtype)
    np.take(values, index, axis=0, out=rows.numpy(), mode="clip")  # "raise" would copy once more
    return rows


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the first sixteen hex digits of the SHA-256 of a text and tensors by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()[:16]


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that this machine has.

    Raises:
        TypeError: if it is not the name of a device.
        ValueError: if tensors cannot be placed there.
    """
    if not isinstance(device, str | torch.device):
        refuse("device", device, "not the name of a device", "device='cpu'", error=TypeError)
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        reason = "it holds no values" if found.type == "meta" else ""
    except (RuntimeError, AssertionError, ValueError) as error:  # torch raises either
        reason = str(error).partition("\n")[0]
    if reason:
        raise ValueError(
            f"Invalid device={str(device)!r}: {reason}. "
            "Use one that this machine has; 'cpu' is always there."
        )
    return found
