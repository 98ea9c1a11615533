"""Discovery on shapes by a random model of tiny's kind, killed: a program told line by line.

    stdin: FOLDER SECONDS WORKERS       stdout: "done" or "killed"

Each run is a process of its own, forked when the model is loaded, and is sent SIGKILL after so many
seconds.
"""

import os
import signal
import sys
import time
import warnings

import torch

torch.set_num_threads(1)

from fastground import datasets, discovery, models  # noqa: E402
from fastground.tiny.model import build, processor  # noqa: E402


def run(lvlm, folder, workers):
    samples = datasets.load("shapes", split="train", num_samples=60, seed=3)
    return discovery.collect(
        lvlm, samples, dataset="shapes", out=folder, shard_samples=8, workers=workers
    )


def main():
    warnings.simplefilter("ignore")  # Python's of forks beside threads: these have their own
    torch.manual_seed(0)
    lvlm = models.wrap(build(6).eval(), processor(6), checkpoint="random")
    print("ready", flush=True)
    for line in sys.stdin:
        folder, seconds, workers = line.split()
        child = os.fork()
        if not child:
            run(lvlm, folder, int(workers))
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
