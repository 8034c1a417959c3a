"""A federation's data: every client's examples in two flat tensors."""

__all__ = ["ClientData", "check_device", "digest_of"]

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import SupportsIndex

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fedlib._checks import check_positive, check_rng, check_type


@dataclass(frozen=True, eq=False, repr=False)
class ClientData:
    """The examples of M clients, one client after the other.

    Clients may hold different numbers of examples ("ragged"). ``clients[i]`` gives client i's
    inputs and targets as views, without copying.

    Args:
        inputs: all inputs, client 0's first, shape (N, ...); their dtype is the model's.
        targets: class indices (any integer type; kept as int64) or real responses (floating
            point), shape (N,).
        sizes: examples per client, integers of shape (M,), each at least 1, summing to N.

    Raises:
        TypeError: if inputs or targets are not real tensors, or sizes are not integers.
        ValueError: if sizes do not fit, a client is empty, targets are not one per example, a
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
    targets: Shaped[Tensor, " n"]
    sizes: Int[np.ndarray, " m"]

    def __post_init__(self) -> None:
        for name, tensor in {"inputs": self.inputs, "targets": self.targets}.items():
            check_type(name, tensor, Tensor, "Use ClientData.from_parts for NumPy arrays.")
            if tensor.is_complex():
                raise TypeError(
                    f"Invalid {name} of type {tensor.dtype}: not real. Use torch.view_as_real, say."
                )
        object.__setattr__(self, "sizes", np.asarray(self.sizes))
        if self.sizes.ndim != 1 or len(self.sizes) == 0 or self.sizes.dtype.kind not in "iu":
            raise TypeError("Invalid sizes: not a list of integers. Give one size per client.")
        object.__setattr__(self, "sizes", self.sizes.astype(np.int64, copy=False))
        if self.sizes.min() < 1:
            empty = np.flatnonzero(self.sizes < 1)[:5].tolist()
            raise ValueError(
                f"Invalid sizes: clients {empty} hold no example. Give every client at least one."
            )
        if self.targets.ndim != 1:
            raise ValueError(
                f"Invalid targets of shape {tuple(self.targets.shape)}: must be one per example. "
                "Use targets.squeeze() or targets.argmax(1)."
            )
        if self.inputs.device != self.targets.device:
            raise ValueError(
                f"Invalid targets on {self.targets.device}: the inputs are on "
                f"{self.inputs.device}. Bring both to one device."
            )
        if self.inputs.ndim == 0:
            raise ValueError("Invalid inputs of shape (): give one row per example.")
        if not self.sizes.sum() == len(self.inputs) == len(self.targets):
            raise ValueError(
                f"Invalid sizes: they sum to {self.sizes.sum()}, but there are {len(self.inputs)} "
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
        if int(self.targets.min()) < 0:
            raise ValueError(
                f"Invalid targets: the least label is {int(self.targets.min())}. Labels start at 0 "
                "(private_labels marks examples outside every part by -1)."
            )

    @classmethod
    def _as_checked(
        cls, inputs: Tensor, targets: Tensor, sizes: np.ndarray, **known: object
    ) -> "ClientData":
        """Build from data that were checked before, without reading them again.

        ``known`` are cached properties that were computed then.
        """
        clients = object.__new__(cls)
        clients.__dict__.update(inputs=inputs, targets=targets, sizes=sizes, **known)
        return clients

    @classmethod
    def from_parts(
        cls,
        images: Float[np.ndarray, "n ..."],
        labels: Shaped[np.ndarray, " n"],
        parts: Sequence[Int[np.ndarray, " _"]],
        *,
        device: str | torch.device = "cpu",
    ) -> "ClientData":
        """Gather each part's examples onto a device.

        Args:
            images: inputs, shape (n, ...).
            labels: one label or response per input, shape (n,).
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
        images, labels = np.asarray(images), np.asarray(labels)
        for name, values in {"images": images, "labels": labels}.items():
            if values.dtype.kind not in "biufc":
                raise TypeError(
                    f"Invalid {name} of type {values.dtype}: not numbers. "
                    "Number the classes by np.unique(names, return_inverse=True)[1]."
                )
        if len(images) != len(labels):
            raise ValueError(
                f"Invalid labels: {len(labels)} for {len(images)} images. Give one per image."
            )
        if not len(parts):
            raise ValueError("Invalid parts: none. Give one index array per client.")
        index = np.concatenate([np.asarray(part) for part in parts])
        if index.dtype.kind not in "iu":
            raise TypeError(
                f"Invalid parts of type {index.dtype}: must be integers. "
                "Use np.flatnonzero(mask) for a mask."
            )
        if len(index) and not 0 <= index.min() <= index.max() < len(images):
            raise ValueError(
                f"Invalid parts: they reach from {index.min()} to {index.max()}, but there are "
                f"{len(images)} images. Use indices from 0 to {len(images) - 1}."
            )
        check_device(device)
        return cls(
            _take(images, index).to(device),
            _take(labels, index).to(device),
            np.array([len(part) for part in parts], dtype=np.int64),
        )

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

    @cached_property
    def num_classes(self) -> int:
        """How many classes there are at least: one more than the largest label; 0 for reals."""
        return 0 if self.targets.is_floating_point() else int(self.targets.max()) + 1

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that tell these data and their holders from others; taken once."""
        sizes = torch.as_tensor(self.sizes)
        return digest_of("", {"inputs": self.inputs, "targets": self.targets, "sizes": sizes})

    def __len__(self) -> int:
        return self.num_clients

    def __getitem__(self, client: SupportsIndex) -> tuple[Tensor, Tensor]:
        self._check_client(client)
        rows = slice(self.starts[client], self.starts[client] + self.sizes[client])
        return self.inputs[rows], self.targets[rows]

    def _check_client(self, client: SupportsIndex) -> None:
        if not 0 <= client < self.num_clients:
            raise IndexError(f"Invalid client={client}: clients are 0 to {self.num_clients - 1}.")

    def __repr__(self) -> str:
        return (
            f"ClientData(num_clients={self.num_clients}, sizes={self.sizes.min()}.."
            f"{self.sizes.max()}, inputs={tuple(self.inputs.shape[1:])}, device={self.device})"
        )

    def select(self, ids: Sequence[int] | Int[np.ndarray, " _"]) -> "ClientData":
        """Return the federation of these clients only, in this order.

        Raises:
            IndexError: if a client is not there.
            ValueError: if no client is asked for.
        """
        if not len(ids):
            raise ValueError("Invalid ids: none. Give one client at least.")
        for i in ids:
            self._check_client(i)
        return self._rows([np.arange(self.sizes[i]) for i in ids], ids)

    def split(
        self, fraction: float, *, rng: np.random.Generator
    ) -> tuple["ClientData", "ClientData"]:
        """Split every client's examples at random, say to train and to test.

        Args:
            fraction: share of each client's examples in the first half, in (0, 1); rounded, and
                at least one example stays on either side.
            rng: shuffles the examples.

        Returns:
            Two federations of the same M clients.

        Raises:
            TypeError: if ``rng`` is not a NumPy generator, or the fraction not a number.
            ValueError: if the fraction is not inside (0, 1) or a client has a single example.
        """
        check_rng(rng)
        check_positive("fraction", fraction)
        if fraction >= 1:
            raise ValueError(f"Invalid fraction={fraction}: it must lie strictly between 0 and 1.")
        if self.sizes.min() < 2:
            raise ValueError(
                f"Invalid clients: client {int(self.sizes.argmin())} has one example, which "
                "cannot be split. Give every client at least two."
            )
        firsts, seconds = [], []
        for size in self.sizes:
            order = rng.permutation(size)
            cut = min(max(round(fraction * size), 1), size - 1)
            firsts.append(order[:cut])
            seconds.append(order[cut:])
        everyone = range(self.num_clients)
        return self._rows(firsts, everyone), self._rows(seconds, everyone)

    def pool(self) -> "ClientData":
        """Return all examples as those of one client, for centralised training.

        FedAvg on it is plain SGD. Labels must mean the same on every client: private ones
        (``private_labels``) cannot be pooled.

        Example:
            >>> ClientData(torch.eye(3), torch.zeros(3), np.array([1, 2])).pool()
            ClientData(num_clients=1, sizes=3..3, inputs=(3,), device=cpu)
        """
        return self._as_checked(self.inputs, self.targets, self.sizes.sum(keepdims=True))

    def _rows(self, rows: Sequence[np.ndarray], ids: Sequence[int]) -> "ClientData":
        index = np.concatenate([self.starts[i] + r for i, r in zip(ids, rows, strict=True)])
        index = torch.as_tensor(index, device=self.device)
        sizes = np.array([len(r) for r in rows], dtype=np.int64)
        return ClientData(self.inputs[index], self.targets[index], sizes)


def _take(array: np.ndarray, index: np.ndarray) -> Tensor:
    """Return rows of an array in memory of torch's: aligned, so that the engine need not copy."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    rows = torch.empty((len(index), *array.shape[1:]), dtype=dtype)
    np.take(array, index, axis=0, out=rows.numpy(), mode="clip")  # "raise" would copy once more
    return rows


def digest_of(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the first sixteen hex digits of the SHA-256 of a text and tensors by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy())
    return digest.hexdigest()[:16]


def check_device(device: str | torch.device) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        ValueError: if tensors cannot be placed there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(
            f"Invalid device={str(device)!r}: {str(error).splitlines()[0]}. "
            "Use one that this machine has; 'cpu' is always there."
        ) from error
