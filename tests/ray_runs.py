"""Discovery on the small world by two actors of Ray: a program of its own, told line by line.

    python ray_runs.py CHECKPOINT

    stdin: a JSON object of what `collect` takes, and of missing, images that are not there; first,
           the first sample's expression; killed_at, a number of samples at which it kills itself
    stdout: "> done", or "> " and the error's name and words

The mark tells these lines from Ray's own.
"""

import json
import os
import signal
import sys
from dataclasses import replace

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
import small_world
import torch
from fastground import discovery, models

SETTINGS = {
    "recipe": small_world.RECIPE, "dataset": "small", "split": "train", "engine": "ray",
    "num_actors": 2, "shard_samples": 2,
}  # fmt: skip


def samples(missing, first):
    out = list(small_world.samples())
    out[0] = replace(out[0], expression=first or out[0].expression)
    return [replace(s, image="no.jpg") if s.image_id in missing else s for s in out]


def collect(lvlm, *, missing=(), first=None, killed_at=None, **options):
    def progress(done):
        if killed_at is not None and done >= killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    options = SETTINGS | options
    return discovery.collect(lvlm, samples(missing, first), progress=progress, **options)


def main():
    torch.set_num_threads(1)
    lvlm = models.load(sys.argv[1])
    ray.init(
        num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=100 << 20,
        log_to_driver=False,
    )  # fmt: skip
    for line in sys.stdin:
        try:
            collect(lvlm, **json.loads(line))
            print("> done", flush=True)
        except Exception as error:
            print(f"> {type(error).__name__}: {error}".replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
