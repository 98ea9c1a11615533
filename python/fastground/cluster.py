"""Discovery on several GPUs or machines: Ray Data deals out shards to actors, a model each.

    this process    samples -> queue                           numbers -> the run's folder
                                 |                                ^
    Ray Data                     +--> a stream of samples --> actors, a model each

A shard's samples go to one actor and come back as its numbers, made by the same forwards as they
would be here; so a run may be stopped, and go on, with Ray or without. No more shards are on their
way than keep the actors busy: memory does not grow with the run.

On one machine nothing needs to be started. On several, `ray start --head` on the first and
`ray start --address=FIRST:6379` on the others make the cluster; then the command is given on one
of them. All need the same versions installed, and see model and images under the same names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
WAITING = 2
"""Shards on their way, for each actor: that which it works on, and the next."""


def spread(
    parts: Iterable[Part],
    measure: Callable[[Any, Part], Result],
    load: Callable[[str], Any],
    num_actors: int | None = None,
) -> Generator[Result]:
    """What comes of measuring each part, in the order in which they are done.

    Args:
        parts: shards' samples, or any others; read as far as actors are free, and like `measure`
            and `load` pickled for the actors.
        measure: from what `load` gave and a part to its result.
        load: from "cuda", where the cluster has GPUs, or "cpu" to what an actor keeps: its model.
        num_actors: how many; as many as GPUs, or as CPUs but one, unless given.

    Raises:
        ValueError: Ray Data is not installed, or there are fewer GPUs than actors.
        RuntimeError: a machine was lost with parts that no actor had got.
        Exception: as `load` and `measure`, or `ray.exceptions.RayError`.
    """
    check(num_actors)
    import ray
    from ray.cloudpickle import dumps
    from ray.util.queue import Queue

    with _cluster():
        actors, share = _shares(ray.cluster_resources(), num_actors)
        queue = Queue(actor_options={"num_cpus": 0})
        done = _dataset(queue, (load, measure), actors, share)
        on_the_way = 0
        try:
            for part in parts:
                queue.put(dumps(part))
                on_the_way += 1
                if on_the_way >= WAITING * actors:
                    yield _taken(done)
                    on_the_way -= 1
            queue.put(None)
            for _ in range(on_the_way):
                yield _taken(done)
        finally:
            queue.shutdown(force=True)


def check(num_actors: int | None) -> None:
    """Nothing, where there is Ray Data and a number of actors.

    Raises:
        ValueError: there is not.
    """
    if num_actors is not None and num_actors < 1:
        raise ValueError(f"num_actors must be at least 1, but got {num_actors}")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"engine 'ray' must have Ray Data installed, but it cannot be imported ({error}); pip "
            "install 'fastground[ray]', or choose engine 'plain'"
        ) from error


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster that there is, or one of this machine until it is left."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        # An actor's words would stand on stdout, which is the answer's.
        ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _shares(resources: dict[str, float], num_actors: int | None) -> tuple[int, dict[str, float]]:
    """How many actors, and what each asks of the cluster's resources.

    One CPU is left free: where actors hold all, Ray Data waits for ever.
    """
    if gpus := int(resources.get("GPU", 0)):
        if num_actors is not None and num_actors > gpus:
            raise ValueError(
                f"num_actors must be at most {gpus}, the cluster's GPUs, but got {num_actors}"
            )
        return num_actors or gpus, {"num_gpus": 1}
    free = max(resources["CPU"] - 1, 0.5)
    actors = num_actors or max(int(free), 1)
    return actors, {"num_cpus": min(1, int(1000 * free / actors) / 1000)}


def _dataset(
    queue: Any, work: tuple[Any, Any], actors: int, share: dict[str, float]
) -> Iterator[Any]:
    """The rows that the actors make of the queue's, as they come."""
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pa.Table]:
        while (part := queue.get()) is not None:
            yield pa.table({"part": pa.array([part], pa.large_binary())})

    class Queued(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *args: Any, **more: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    rows = ray.data.read_datasource(Queued(), num_cpus=0, override_num_blocks=1)
    rows = rows.map(
        _Actor, fn_constructor_args=work, compute=ActorPoolStrategy(size=actors), **share,
    )  # fmt: skip
    rows.context.target_max_block_size = 1  # bytes: each part goes on as soon as it is there
    rows.context.enable_progress_bars = False
    batches = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return (result for batch in batches for result in batch["result"].to_pylist())


def _taken(done: Iterator[bytes]) -> Any:
    """The next result, or the error in its place."""
    from ray import cloudpickle

    pickled = next(done, None)
    if pickled is None:
        raise RuntimeError(
            "every shard must come back, but samples were lost with a machine; run discover again "
            "with the same folder: these alone are done anew"
        )
    result = cloudpickle.loads(pickled)
    if isinstance(result, Exception):
        raise result
    return result


class _Actor:
    """A model of its own, which measures part after part."""

    def __init__(self, load: Callable[[str], Any], measure: Callable[[Any, Any], Any]) -> None:
        self.load, self.measure, self.model = load, measure, None

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        import ray
        from ray import cloudpickle

        try:
            if self.model is None:
                self.model = self.load("cuda" if ray.get_gpu_ids() else "cpu")
            result = self.measure(self.model, cloudpickle.loads(row["part"]))
        except (ValueError, OSError) as error:  # what says by itself what is wrong with the input
            result = error
        return {"result": cloudpickle.dumps(result)}
