"""Random numbers inside a step: generators keyed by run, round, client and step."""

__all__ = ["Keys", "generator_of", "per_client", "takes_generator"]

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from fedlib.rules import LocalStep

LOSS, RULE, AUGMENT = range(3)
"""Streams: what draws in a step has numbers of its own."""


def takes_generator(function: Callable) -> bool:
    """Tell whether a function asks for random numbers, by an argument named ``generator``.

    Example:
        >>> takes_generator(lambda outputs, targets, generator: outputs)
        True
    """
    try:
        return _takes(function)
    except TypeError:  # not hashable
        return _takes.__wrapped__(function)


@lru_cache(maxsize=256)
def _takes(function: Callable) -> bool:
    try:
        return "generator" in inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False


def generator_of(key: Sequence[int]) -> Generator:
    """Return a generator on the CPU whose numbers depend on the key alone."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


class Keys(NamedTuple):
    """The keys of some clients in a round.

    Attributes:
        clients: for each client (the round's key, its id, how often it was drawn before).
    """

    clients: list[tuple[int, int, int]]

    @classmethod
    def of(cls, round_key: int, ids: np.ndarray) -> "Keys":
        """Return the keys of a cohort, in which a client may stand several times."""
        drawn = ids.tolist()
        return cls([(round_key, i, drawn[:place].count(i)) for place, i in enumerate(drawn)])

    def at(self, step: int, stream: int) -> list[Generator]:
        """Return each client's generator for a step."""
        return [generator_of((*client, step, stream)) for client in self.clients]


def per_client(rule: LocalStep, keys: Keys | None, *, stacked: bool) -> LocalStep:
    """Return a rule that is applied to each client of a job by itself, with its own generator.

    So a rule that draws, or whose step looks at all entries of a client, is right for stacks.
    """
    draws = takes_generator(rule.update)

    def rows(tensors: list[Tensor] | None) -> list:
        if tensors is None or not stacked:
            return [tensors]
        return [list(own) for own in zip(*(t.unbind(0) for t in tensors), strict=True)]

    def init(params: list[Tensor], extra: list[Tensor] | None) -> tuple[int, list]:
        clients = rows(params)
        extras = rows(extra) if extra is not None else [None] * len(clients)
        return 0, [rule.init(*own) for own in zip(clients, extras, strict=True)]

    def update(params, grads, state, lr):
        step, states = state
        made = [{"generator": g} for g in keys.at(step, RULE)] if draws else [{}] * len(states)
        moved = [
            rule.update(*own, lr, **how)
            for *own, how in zip(rows(params), rows(grads), states, made, strict=True)
        ]
        clients = [list(own) for own, _ in moved]
        together = [torch.stack(p) for p in zip(*clients, strict=True)] if stacked else clients[0]
        return together, (step + 1, [own for _, own in moved])

    return rule._replace(init=init, update=update)
