"""Discovery on the small world by two actors of a cluster: a program that kills itself on the way.

python ray_runs.py ADDRESS CHECKPOINT OUT SAMPLES, after as many of which it does
"""

import os
import signal
import sys

import small_world
from fastground import discovery

OPTIONS = {
    "recipe": small_world.RECIPE, "dataset": "small", "split": "train", "engine": "ray",
    "num_actors": 2, "shard_samples": 2,
}  # fmt: skip


def main():
    address, checkpoint, out, killed_at = sys.argv[1:]

    def progress(done):
        if done >= int(killed_at):
            os.kill(os.getpid(), signal.SIGKILL)

    import ray

    ray.init(address, log_to_driver=False)
    samples = small_world.samples()
    discovery.collect(checkpoint, samples, out=out, progress=progress, **OPTIONS)


if __name__ == "__main__":
    main()
