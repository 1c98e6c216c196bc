"""How far a benchmark is: a bar with the time left on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kvshare.bench.observed import Observed
from kvshare.bench.spec import BenchSpec, Point


def weight(point: Point) -> float:
    """Return the relative cost of one repetition: tokens to compute and to generate."""
    return point.requests * (point.prompt_tokens + 4 * point.output_tokens)


def done_and_total(spec: BenchSpec, seen: Observed) -> tuple[float, float]:
    """Return the work done and the work in all, in tokens; discarded repetitions add to the total."""
    counted = sum(weight(spec.points[r.point]) for r in seen.repetitions if r.discarded is None)
    return counted, spec.repetitions * sum(weight(point) for point in spec.points)


def left_s(elapsed_s: float, done: float, total: float) -> float | None:
    """Return the seconds left, if the rest goes as fast; None before anything is done."""
    return elapsed_s * (total - done) / done if done > 0 else None


@contextmanager
def following(spec: BenchSpec, console: Console) -> Iterator[Callable[[Observed], None]]:
    """Yield what to call after each line; narrates on ``console``."""
    started = time.monotonic()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting the client", total=1.0)

        told_of: list[str] = []

        def told(seen: Observed) -> None:
            done, total = done_and_total(spec, seen)
            left = left_s(time.monotonic() - started, done, total)
            if not seen.repetitions:
                return
            last = seen.repetitions[-1]
            label = spec.points[last.point].label
            rest = "" if left is None else f", about {left:.0f} s left"
            line = f"{label}, repetition {last.number + 1}{rest}"
            bar.update(task, completed=done, total=total, description=line)
            if not console.is_terminal and len(seen.repetitions) > len(told_of):
                told_of.append(line)
                console.print(f"… {100 * done / total:.0f} %, {line}", markup=False, highlight=False)

        yield told
