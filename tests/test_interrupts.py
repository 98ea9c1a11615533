"""Ctrl-C ends a command with one line and exit code 130, whenever it is pressed."""

import signal
import subprocess
import sys

import pytest

AT_AN_IMPORT = """
import os, signal, sys
from fastground.cli import main
NAME = sys.argv.pop(1)
def look(event, about):
    if event == "import" and about[0] == NAME:
        print("reached", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(look)
main()
"""


def at_an_import(name, *command, ignored=False):
    """(exit code, stdout, stderr) of a command interrupted when it imports a module."""
    words = [sys.executable, "-c", AT_AN_IMPORT, name, *map(str, command)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=200)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("name", [
    "fastground.cli.app", "typer", "typer.main", "fastground.types", "numpy", "torch", "torch.nn",
    "transformers", "transformers.modeling_utils", "PIL.Image",
])  # fmt: skip
def test_ctrl_c_while_modules_are_imported(name, photo):
    told = at_an_import(name, "ground", photo, "left circle")
    assert told == (130, "reached\n", "fastground: interrupted\n")


def test_ctrl_c_that_the_shell_ignores(photo):
    """As of a command that a script starts in the background."""
    command = ("ground", photo, "left circle", "--ranking", "nowhere")
    code, out, err = at_an_import("numpy", *command, ignored=True)
    assert (code, out) == (2, "reached\n") and err.startswith("fastground: ranking must be")
