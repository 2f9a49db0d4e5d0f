"""The method: many short rounds, in each of which every variant does the same work, in random order.

On a machine that others use as well, a figure says little and its change from minute to minute nothing.
A ratio of two figures taken within the same fraction of a second holds, and its median over many
rounds more so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Generic, TypeVar

Work = TypeVar("Work")


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Variant(Generic[Work]):
    """One way to do the work.

    Attributes:
        run: does it; only this is timed.
        prepare: is called before each `run`.
    """

    name: str
    run: Callable[[Work], object]
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over the rounds, and the quartiles around it."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Samples:
    """Seconds per unit of work, for each variant and round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, others: Samples) -> None:
        """Take in the rounds of another run of the same variants."""
        for name, seconds in others.seconds.items():
            self.seconds.setdefault(name, []).extend(seconds)

    def median(self, name: str) -> float:
        """Seconds that one unit took."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> Spread:
        """Throughput of `name` / throughput of `other`: 1 for the same, more is better."""
        return Spread.of([b / a for a, b in zip(self.seconds[name], self.seconds[other], strict=True)])

    def difference(self, name: str, other: str) -> Spread:
        """Seconds that `name` took longer than `other`."""
        return Spread.of([a - b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)])


def measure(
    variants: Sequence[Variant[Work]],
    rounds: int,
    make_work: Callable[[Random], Work],
    units: int,
    *,
    seed: int = 0,
) -> Samples:
    """Run all variants in each round, on the same work, of so many units. The first round is not counted."""
    random = Random(seed)
    samples = Samples({variant.name: [] for variant in variants})
    for number in range(rounds + 1):
        work = make_work(random)
        for variant in random.sample(variants, len(variants)):
            variant.prepare()
            started = time.perf_counter()
            variant.run(work)
            seconds = (time.perf_counter() - started) / units
            if number:
                samples.seconds[variant.name].append(seconds)
    return samples
