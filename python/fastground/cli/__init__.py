"""The command line: one module a command, all of them in `app`.

Results go to stdout, as text for people or with --json as JSON alone; progress and errors go to
stderr. Exit codes: 0 done, 2 bad input (one line says what and the way out), 130 interrupted.

Nothing but this is imported before Ctrl-C is cared for.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave the process with its exit code."""
    stop = Interrupt()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, stop)
    try:
        from fastground.cli.app import run

        code = run(arguments, stop)
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    if code == INTERRUPTED:
        print("fastground: interrupted", file=sys.stderr)
    sys.exit(code)


class Interrupt:
    """Whether Ctrl-C was pressed; it interrupts as ever.

    But where a module is being imported it ends the process: some modules swallow the exception,
    others make another one of it, and nothing is lost yet.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                print(end="", flush=True)
                os.write(2, b"fastground: interrupted\n")
                os._exit(INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt
