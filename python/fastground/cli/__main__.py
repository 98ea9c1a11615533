"""python -m fastground.cli, where the command itself is not on the path."""

from fastground.cli import main

main()
