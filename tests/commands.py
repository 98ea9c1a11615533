"""Commands run as a user runs them, and what they say."""

import json

import pytest
from fastground.cli import main


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    with pytest.raises(SystemExit) as leaving:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return leaving.value.code, out, err


def strict(text):
    """JSON without NaN and Infinity, which other readers refuse."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)
