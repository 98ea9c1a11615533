"""A run on shapes by a random model of tiny's kind, killed: a program told line by line.

    argv: discover | evaluate | 4 | 5 | 8     stdin: FOLDER SECONDS WORKERS
                                              stdout: "done" or "killed"

Each run is a process of its own, forked when the model is loaded and has made a run already, and is
sent SIGKILL after so many seconds: those then fall into the run, not into imports before it.
"""

import os
import signal
import sys
import tempfile
import time
import warnings

import torch

torch.set_num_threads(1)

from fastground import comparison, datasets, discovery, evaluation, models  # noqa: E402
from fastground.grounder import Grounder  # noqa: E402
from fastground.ranking import rank_table  # noqa: E402
from fastground.tiny.model import build, processor  # noqa: E402


def run(lvlm, folder, workers):
    samples = datasets.load("shapes", split="train", num_samples=60, seed=3)
    return discovery.collect(
        lvlm, samples, dataset="shapes", out=folder, shard_samples=8, workers=workers
    )


def grounder(lvlm):
    samples = datasets.load("shapes", split="train", num_samples=12, seed=3)
    return Grounder(lvlm, discovery.discover(lvlm.model, lvlm.processor, samples, trials=2))


def evaluated(grounder, folder, _):
    samples = datasets.load("shapes", split="test", num_samples=60, seed=3)
    return evaluation.evaluate(grounder, samples, dataset="shapes", out=folder, shard_samples=8)


def heads(lvlm):
    samples = datasets.load("shapes", split="train", num_samples=12, seed=3)
    table = discovery.collect(lvlm, samples)
    return lvlm, table, rank_table(table, trials=2)


def compared(made, folder, _):
    lvlm, table, ranking = made
    samples = datasets.load("shapes", split="test", num_samples=24, seed=3)
    return comparison.paper_table(
        sys.argv[1], lvlm, ranking, samples, table=table, out=folder, shard_samples=4
    )


def main():
    warnings.simplefilter("ignore")  # Python's of forks beside threads: these have their own
    torch.manual_seed(0)
    lvlm = models.wrap(build(6).eval(), processor(6), checkpoint="random")
    if sys.argv[1] == "discover":
        made, of = lvlm, run
    elif sys.argv[1] == "evaluate":
        made, of = grounder(lvlm), evaluated
    else:
        made, of = heads(lvlm), compared
    with tempfile.TemporaryDirectory() as folder:
        of(made, folder, 0)
    print("ready", flush=True)
    for line in sys.stdin:
        folder, seconds, workers = line.split()
        child = os.fork()
        if not child:
            of(made, folder, int(workers))
            os._exit(0)
        end = time.monotonic() + float(seconds)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
            time.sleep(0.001)
        if ended[0] == 0:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(ended[1]) else "done", flush=True)


if __name__ == "__main__":
    main()
