"""Discovery on several GPUs or machines: Ray Data deals out shards to actors, a model each.

    this process    jobs -> desk                            what comes of them -> the run's folder
                              |                                ^
    Ray Data                  +--> a stream of jobs --> actors, a model each

A job is a function of the model: a shard's samples go with one to an actor and come back as its
numbers, made by the same forwards as they would be here; so a run may be stopped, and go on, with
Ray or without. No more jobs are on their way than keep the actors busy: memory does not grow with
the run. This process needs no model, and reads samples while the actors load theirs.

On one machine nothing needs to be started. On several, `ray start --head` on the first and
`ray start --address=FIRST:6379` on the others make the cluster; then the command is given on one
of them. All need the same versions installed, and see model and images under the same names.

Nothing is waited for without end but the work itself:

    an actor is killed        Ray starts it anew, and its shard is made again: RETRIES times
    once more than that       the run ends with one line, and goes on when it is begun again;
                              so too where another process of Ray's is killed
    a machine is lost         its actors start on others; where for ROOMLESS seconds there is no
                              machine that holds one, or with it went the process that reads the
                              desk, the run ends likewise
    all GPUs or CPUs taken    WAIT seconds for others to leave the share of one actor
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

Model = TypeVar("Model")
Result = TypeVar("Result")
READER = 0
"""What is begun beside jobs, which count from one: the reading of the desk."""
ON_THE_WAY = 2
"""Jobs on their way, for each actor: that which it works on, and the next."""
MOST_A_CPU = 10
"""Actors without a GPU, each a process with a model of its own."""
RETRIES = 3
"""Of a job whose actor's process ends. One that no model fits into would start for ever."""
WAIT, ROOMLESS = 600, 60
"""Seconds until an actor's share of the cluster must be free, or must be there at all again."""
LOOK, LEAVE = 0.5, 10
"""Seconds between looks at a cluster that is silent; for which its thread's end is waited for."""
AUTOSCALER = "RAY_enable_autoscaler_v2"
"""Which of Ray's autoscalers it starts. One machine has nothing to scale; the older one, which is
Ray's own choice, is waited for a second when the cluster ends."""


@contextmanager
def _running() -> Iterator[None]:
    """The cluster that there is, or one of this machine until it is left."""
    import ray

    mine = not ray.is_initialized()
    if mine:
        # A cluster's start is mostly waiting.
        with ThreadPoolExecutor(1) as beside, _unless_told(AUTOSCALER, "1"):
            imported = beside.submit(import_module, "ray.data")
            # An actor's words would stand on stdout, which is the answer's.
            ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
        imported.result()
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def _unless_told(variable: str, value: str) -> Iterator[None]:
    """A variable of the environment that has this value meanwhile if it has none."""
    told = variable in os.environ
    os.environ.setdefault(variable, value)
    try:
        yield
    finally:
        if not told:
            os.environ.pop(variable, None)


def _check(num_actors: int | None) -> None:
    """Nothing, where there is Ray Data and a number of actors."""
    if num_actors is not None and num_actors < 1:
        raise ValueError(f"num_actors must be at least 1, but got {num_actors}")
    try:
        import pyarrow  # noqa: F401
        import ray  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"engine 'ray' must have Ray Data installed, but it cannot be imported ({error}); pip "
            "install 'fastground[ray]', or choose engine 'plain'"
        ) from error


@contextmanager
def actors(load: Callable[[str], Model], num_actors: int | None = None) -> Iterator[Actors]:
    """Actors that load a model each, until they are left.

    Args:
        load: from "cuda", where the cluster has GPUs, or "cpu" to the model; pickled, as are jobs.
        num_actors: how many; as many as GPUs, or as CPUs but one, unless given.

    Raises:
        ValueError: Ray Data is not installed, or there are fewer GPUs than actors.
        TimeoutError: the cluster's GPUs or CPUs are all taken.
    """
    _check(num_actors)
    with _running(), _quiet():
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        count, share = _shares(ray.cluster_resources(), num_actors)
        _wait(share)
        kind: Any = ray.remote(_Desk)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # In an environment of its own it leaves the processes that Ray began ahead to actors.
        apart = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        desk = kind.options(num_cpus=0, scheduling_strategy=here, runtime_env=apart).remote()
        made = Actors(desk, count, share)
        thread = Thread(target=made.follow, args=(_dataset(desk, load, count, share),), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            ray.kill(desk)
            thread.join(LEAVE)
            gc.collect()  # what Ray Data leaves in cycles holds actors


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data says nothing: what goes wrong is raised."""
    import ray.data  # which sets the level

    logger = logging.getLogger(ray.data.__name__)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass
class Actors:
    """Those of a cluster, from `actors`."""

    desk: Any
    count: int
    share: dict[str, float]
    given: int = 0
    came: SimpleQueue[bytes | Exception | None] = field(default_factory=SimpleQueue)

    def ask(self, job: Callable[[Any], Result]) -> Callable[[], Result]:
        """One job before any other, whose result the returned function waits for.

        Raises:
            Exception: as `each`, and so does the function.
        """
        self._give(job)
        return self._take

    def each(self, jobs: Iterable[Callable[[Any], Result]]) -> Generator[Result]:
        """What comes of each job, in the order in which they are done; no more follow.

        Args:
            jobs: from an actor's model to a result; taken as far as actors are free.

        Raises:
            ChildProcessError: a job's actor was killed again and again, or jobs were lost with a
                machine or with a process of Ray's.
            TimeoutError: no machine is left that holds an actor.
            Exception: as `load` and the jobs.
        """
        on_the_way = 0
        for job in jobs:
            self._give(job)
            on_the_way += 1
            if on_the_way >= ON_THE_WAY * self.count:
                yield self._take()
                on_the_way -= 1
        self._put(None)
        for _ in range(on_the_way):
            yield self._take()

    def follow(self, rows: Iterator[bytes]) -> None:
        """Hand over what comes, and the error by which it ends."""
        try:
            for row in rows:
                self.came.put(row)
            self.came.put(None)
        except Exception as error:
            # Its frames hold Ray Data's, which hold the actors.
            self.came.put(_told(error).with_traceback(None))

    def _give(self, job: Callable[[Any], Any]) -> None:
        from ray.cloudpickle import dumps

        self.given += 1
        self._put(dumps((self.given, job)))

    def _put(self, job: bytes | None) -> None:
        import ray

        try:
            ray.get(self.desk.put.remote(job))
        except ray.exceptions.RayError as error:
            raise _told(error) from None

    def _take(self) -> Any:
        """The next result, or the error in its place."""
        from ray.cloudpickle import loads

        came = self._next()
        if came is None:
            raise _lost("what reads the samples was killed")
        if isinstance(came, Exception):
            raise came
        result = loads(came)
        if isinstance(result, Exception):
            raise result
        return result

    def _next(self) -> bytes | Exception | None:
        """What comes next, while there is a machine that it may come from."""
        import ray

        seen = time.monotonic()
        while True:
            try:
                return self.came.get(timeout=LOOK)
            except Empty:
                if _holds(ray.cluster_resources(), self.share):
                    seen = time.monotonic()
                elif time.monotonic() > seen + ROOMLESS:
                    raise TimeoutError(
                        f"the cluster must have room for an actor ({_words(self.share)}), but for "
                        f"{ROOMLESS} s no machine had; start some and run discover again with the "
                        "same folder: what is written is kept"
                    ) from None


class _Desk:
    """Where jobs lie until they are read, and how often each thing was begun; an actor, too."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.begun: Counter[int] = Counter()

    async def put(self, job: bytes | None) -> None:
        await self.jobs.put(job)

    async def get(self) -> bytes | None:
        return await self.jobs.get()

    async def begin(self, what: int) -> int:
        self.begun[what] += 1
        return self.begun[what]


class _Actor:
    """A model of its own, which does job after job; it is loaded before the first one comes."""

    def __init__(self, load: Callable[[str], Any], desk: Any) -> None:
        import ray

        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.model = ThreadPoolExecutor(1).submit(load, device)
        self.desk = desk

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        import ray
        from ray import cloudpickle

        try:
            number, job = cloudpickle.loads(row["job"])
            if ray.get(self.desk.begin.remote(number)) > RETRIES + 1:
                raise _lost(f"of one the actor was killed {RETRIES + 1} times")
            result = job(self.model.result())
        except (ValueError, OSError) as error:  # what says by itself what is wrong with the input
            result = error
        return {"result": cloudpickle.dumps(result)}


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
    free = max(resources.get("CPU", 0) - 1, 0.5)
    actors = num_actors or max(int(free), 1)
    if actors > MOST_A_CPU * free:
        raise ValueError(
            f"num_actors must be at most {int(MOST_A_CPU * free)}, {MOST_A_CPU} for each free CPU "
            f"of the cluster, but got {actors}"
        )
    return actors, {"num_cpus": min(1, int(1000 * free / actors) / 1000)}


def _holds(resources: dict[str, float], share: dict[str, float]) -> bool:
    """Whether these are enough for an actor."""
    [(name, count)] = share.items()
    return resources.get(name.removeprefix("num_").removesuffix("s").upper(), 0) >= count


def _wait(share: dict[str, float]) -> None:
    """Until an actor's share of the cluster is free."""
    import ray

    until = time.monotonic() + WAIT
    while not _holds(ray.available_resources(), share):
        if time.monotonic() > until:
            raise TimeoutError(
                f"the cluster must have room for an actor ({_words(share)}), but for {WAIT} s all "
                "was taken by others, or it has none; wait for them, or start more machines"
            )
        gc.collect()  # the actors of an earlier run, too
        time.sleep(LOOK)


def _words(share: dict[str, float]) -> str:
    [(name, count)] = share.items()
    return f"{name}={count}"


def _dataset(
    desk: Any, load: Callable[[str], Any], actors: int, share: dict[str, float]
) -> Iterator[bytes]:
    """The rows that the actors make of the desk's, as they come."""
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, Datasource, ReadTask
    from ray.data.block import BlockMetadata

    def read() -> Iterator[pa.Table]:
        if ray.get(desk.begin.remote(READER)) > 1:
            return  # other jobs would be read in the place of those that were read before
        while (job := ray.get(desk.get.remote())) is not None:
            yield pa.table({"job": pa.array([job], pa.large_binary())})

    class Queued(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *args: Any, **more: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    # A job that waits behind another is there at once, but no actor that is free first may take it.
    pool = ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1 if actors > 1 else 2)
    rows = ray.data.read_datasource(Queued(), num_cpus=0, override_num_blocks=1)
    rows = rows.map(_Actor, fn_constructor_args=(load, desk), compute=pool, **share)
    rows.context.target_max_block_size = 1  # bytes: each job goes on as soon as it is there
    rows.context.execution_no_progress_timeout_s = -1  # else the work itself has half an hour
    rows.context.enable_progress_bars = rows.context.print_on_execution_start = False
    batches = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return (result for batch in batches for result in batch["result"].to_pylist())


def _told(error: Exception) -> Exception:
    """The error of the jobs themselves, or one line about Ray's."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError) or not isinstance(error, RayError):
        return error
    return _lost(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _lost(why: str) -> ChildProcessError:
    return ChildProcessError(
        f"every shard must come back, but {why}; run discover again with the same folder: what is "
        "written is kept"
    )
