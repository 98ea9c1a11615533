"""The terminal: results on stdout, bars and messages on stderr, and what Ctrl-C asks for."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastground.strict_json import dumps

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from fastground.types import Sample


def say(line: str) -> None:
    """One line on stderr."""
    print(f"fastground: {line}", file=sys.stderr)


def print_json(**content: Any) -> None:
    """The content as JSON alone on stdout; null for infinity and NaN, which JSON lacks."""
    print(dumps(content))


def write_json(path: Path, **content: Any) -> None:
    """The same into a file."""
    path.write_text(dumps(content) + "\n")


def show(table: Table) -> None:
    """A table on stdout, as wide as it needs to be: a narrower terminal breaks its lines."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=None if sys.stdout.isatty() else 120)
    least, most = Measurement.get(console, console.options.update(max_width=10_000), table)
    needed = most if all(column.no_wrap for column in table.columns) else least
    Console(width=max(console.width, needed)).print(table)


class Stop:
    """Whether Ctrl-C was pressed; a stream then ends at the next sample, what is done counts."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say("stopping after this image; what is done is kept (once more: stop at once)")

    def until(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples until Ctrl-C."""
        for sample in samples:
            if self.asked:
                return
            yield sample


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """A block in which what this package warns of is one line, without its place in the code."""
    plain, here = warnings.formatwarning, str(Path(__file__).parent)

    def told(message: Any, category: Any, filename: str, *place: Any) -> str:
        if filename.startswith(here):
            return f"fastground: {message}\n"
        return plain(message, category, filename, *place)

    warnings.formatwarning = told  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = plain


@contextmanager
def interruptible() -> Iterator[Stop]:
    """A block in which the first Ctrl-C only asks to stop."""
    stop = Stop()
    with _on_interrupt(stop):
        yield stop


@contextmanager
def _on_interrupt(stop: Callable[..., None]) -> Iterator[None]:
    """A block in which Ctrl-C calls this, but where the process is told to ignore it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def gpu_share(device: torch.device) -> Callable[[], int] | None:
    """A function that says how busy a GPU is, in percent of the last moments.

    Returns:
        The function; None on the CPU, where its share would say nothing, and where the package
        nvidia-ml-py is not installed or the driver does not tell.
    """
    import torch

    if device.type != "cuda":
        return None
    share = partial(torch.cuda.utilization, device)
    try:
        share()
    except (ImportError, RuntimeError):
        return None
    return share


@contextmanager
def progress(
    what: str, total: int, share: Callable[[], int] | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on stderr while the block runs, where stderr is a terminal.

    Args:
        what: is being done.
        total: how much of it.
        share: from `gpu_share`; shown, if there is one.

    Yields:
        A function to call with how many are done.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "")

    class Share(ProgressColumn):
        max_refresh = 1.0  # the driver knows no better

        def render(self, task: Task) -> Text:
            return Text(f"GPU {share()} %" if share else "")

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(),
        TimeRemainingColumn(),
    ]  # fmt: skip
    if share is not None:
        columns.append(Share())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
