"""Units of work in parallel processes, computed once: stopped work goes on where it was."""

__all__ = ["Runner"]

import json
import multiprocessing as mp
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

from studies.reach import digest
from studies.record import entries


class Runner:
    """Compute ``function(**unit)`` for every unit, in parallel processes.

    Each result is appended to a file as it comes, with the code that it was computed by; what is
    there already, by the same code, is not computed again.

    Args:
        cache: JSON-lines file of finished units; several functions may share it.
        workers: processes; each uses one thread, so that they do not disturb one another.
        brought: digits of a reader's own code that units name in their values.
        planned: how many units each function will be called with in all, by its name, as far as it
            is known: what the time left is estimated from.
    """

    def __init__(
        self,
        cache: Path,
        workers: int,
        planned: Mapping[str, int] | None = None,
        brought: Sequence[str] = (),
    ) -> None:
        self.cache, self.workers, self._brought = cache, workers, list(brought)
        self._planned, self._seconds = Counter(planned or {}), {}
        self._pace = 1.0  # wall time of all workers for a second of theirs on a processor

    @property
    def seconds(self) -> int:
        """Processor time of all results that were given out, whenever they were computed."""
        return round(sum(sum(each) for each in self._seconds.values()))

    def __call__(self, function: Callable[..., dict], units: list[dict], *, label: str) -> list:
        """Return one result per unit, in order.

        Args:
            function: a module-level function whose arguments and result are plain JSON values.
            units: its keyword arguments.
            label: shown beside the progress bar.

        Raises:
            RuntimeError: if a worker was killed, or the code has changed since it was planned with.
            Exception: the first that a unit raised; what ran beside it is finished and kept.
        """
        name, code = function.__name__, digest(function, *self._brought)
        done = {
            _key(entry["unit"]): (entry["result"], entry["seconds"])
            for entry in entries(self.cache)
            if (entry["function"], entry.get("code")) == (name, code)
        }
        missing = [unit for unit in units if _key(unit) not in done]
        spent = self._seconds.setdefault(name, [])
        spent += [done[_key(unit)][1] for unit in units if _key(unit) in done]
        if missing:
            torn = self.cache.exists() and not f"\n{self.cache.read_text()}".endswith("\n")
            with self.cache.open("a") as file:
                file.write("\n" * torn)
                work = tqdm(
                    in_parallel(function, missing, self.workers), desc=label, total=len(missing)
                )
                began, worked = time.monotonic(), 0.0
                for n, (unit, result, seconds) in enumerate(work, 1):
                    worked += seconds
                    self._pace = max(1.0, (time.monotonic() - began) * self.workers / (worked or 1))
                    line = dict(function=name, code=code, unit=unit, result=result, seconds=seconds)
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    done[_key(unit)] = result, seconds
                    spent.append(seconds)
                    work.set_postfix_str(self._left(name, len(missing) - n))
        return [done[_key(unit)][0] for unit in units]

    def _left(self, name: str, of_these: int) -> str:
        """Say how long everything that is planned may still take."""
        spent = {each: sum(s) / len(s) for each, s in self._seconds.items() if s}
        usual = max(spent.values(), default=0.0)
        seconds = 0.0
        for each in {*self._planned, name}:
            left = self._planned[each] - len(self._seconds.get(each, ()))
            left = max(left, of_these if each == name else 0)
            seconds += left * spent.get(each, usual) / self.workers
        minutes = round(self._pace * seconds / 60)
        return f"about {minutes // 60} h {minutes % 60} min left in all"


def _key(unit: dict) -> str:
    return json.dumps(unit, sort_keys=True)


def in_parallel(
    function: Callable[..., dict], units: Iterable[dict], workers: int
) -> Iterator[tuple[dict, dict, float]]:
    """Yield every unit with its result and processor time; after a failure, what was begun."""
    planned = digest(function)
    waiting, running, failure = iter(units), {}, None
    spawn = dict(mp_context=mp.get_context("spawn"))
    try:
        with ProcessPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(1,), **spawn
        ) as pool:
            while True:
                # No more than can run at once: what is queued in the pool cannot be cancelled.
                for unit in islice(waiting, 0 if failure else workers - len(running)):
                    running[pool.submit(_call, function, unit, planned)] = unit
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    unit = running.pop(future)
                    if error := future.exception():
                        error.add_note(f"In {function.__name__}(**{unit}).")
                        failure = failure or error
                    else:
                        yield unit, *future.result()
        if failure:
            raise failure
    except BrokenProcessPool as error:
        raise RuntimeError(
            "A worker was killed, perhaps for want of memory. Use fewer --workers; what is "
            "finished is kept."
        ) from error


def _call(function: Callable[..., dict], unit: dict, planned: str) -> tuple[dict, float]:
    if digest(function) != planned:
        raise RuntimeError(
            "The code changed while this ran. Start it again: what was finished before the change "
            "is kept, and serves the code as it was."
        )
    began = time.process_time()
    result = function(**unit)
    return result, round(time.process_time() - began, 2)
