"""Threads: the same numbers on any number of them, for callers at once, and after a fork."""

import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import fastground as fg
import pytest
import torch
from fastground import _core, ops

GENERATOR = torch.Generator().manual_seed(0)
MAPS = {  # each enough for many slices
    "small grid": torch.rand(9001, 24, 24, generator=GENERATOR),
    "half": torch.rand(25001, 14, 14, generator=GENERATOR).half(),
    "large grid": torch.rand(141, 130, 250, generator=GENERATOR),
    "strided": torch.rand(9001, 48, 30, generator=GENERATOR)[:, ::2, 5:],
}
GROUPS = {name: maps[: len(maps) // 3 * 3].unflatten(0, (-1, 3)) for name, maps in MAPS.items()}

OPERATIONS = {
    "attention_sum": lambda name: fg.attention_sum(MAPS[name]),
    "binarize": lambda name: fg.binarize(MAPS[name]),
    "label": lambda name: fg.label(MAPS[name]),
    "entropy": lambda name: fg.entropy(MAPS[name], weight="mass"),
    "head_stats": lambda name: fg.head_stats(MAPS[name]),
    "smooth": lambda name: fg.smooth(MAPS[name]),
    "combine": lambda name: ops.combine(GROUPS[name]),
    "boxes": lambda name: fg.boxes(GROUPS[name]),
    "boxes, valid": lambda name: fg.boxes(GROUPS[name], valid=GROUPS[name][:, 0] > 0.1),
}


@pytest.fixture(autouse=True)
def threads():
    """Sets the number of threads, and takes it back."""
    before = fg.get_num_threads()
    yield fg.set_num_threads
    fg.set_num_threads(before)


def same(one, other):
    one, other = ((r,) if isinstance(r, torch.Tensor) else r for r in (one, other))
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_any_number_of_threads_gives_the_same_numbers(operation, name, threads):
    threads(1)
    alone = operation(name)
    for count in (2, 3, 5):
        threads(count)
        assert same(operation(name), alone)


def test_a_refused_map_is_found_by_any_thread(threads):
    maps = MAPS["small grid"].clone()
    maps[[5, 4000, 8999], 3, 3] = torch.nan
    for count in (1, 2, 5):
        threads(count)
        for operation in (fg.attention_sum, fg.binarize, fg.label, fg.entropy, fg.smooth):
            with pytest.raises(ValueError, match="3 of 9001 are not, the first at 5"):
                operation(maps)


def test_callers_at_once(threads):
    threads(3)
    calls = [OPERATIONS[name] for name in ("entropy", "label", "smooth", "boxes")]
    alone = [call("small grid") for call in calls]
    with ThreadPoolExecutor(4) as callers:
        jobs = [(i, callers.submit(calls[i], "small grid")) for i in [0, 1, 2, 3] * 6]
        assert all(same(job.result(), alone[i]) for i, job in jobs)


def in_a_fork(work):
    """The exit code of a forked child that runs `work`; it may take a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there are threads is the point
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
def test_a_fork_makes_its_own_pool(threads):
    threads(3)
    expected = fg.entropy(MAPS["small grid"])  # the pool exists
    work = lambda: same(fg.entropy(MAPS["small grid"]), expected)  # noqa: E731
    assert in_a_fork(work) == 0
    assert in_a_fork(lambda: in_a_fork(work) == 0 and work()) == 0
    assert work()


@needs_fork
def test_a_fork_while_others_compute(threads):
    threads(3)
    expected = OPERATIONS["entropy"]("small grid")
    with ThreadPoolExecutor(2) as callers:
        jobs = [callers.submit(OPERATIONS["label"], "small grid") for _ in range(16)]
        work = lambda: same(OPERATIONS["entropy"]("small grid"), expected)  # noqa: E731
        assert [in_a_fork(work) for _ in range(5)] == [0] * 5
        assert all(job.result() is not None for job in jobs)


@needs_fork
def test_a_fork_while_torch_has_threads():
    """In the child torch's own would wait for ever."""
    maps = MAPS["small grid"]
    bad = maps.clone()
    bad[7, 3, 3] = torch.nan
    results = {fg.smooth: torch.float32, fg.binarize: torch.bool, fg.label: torch.int32}

    def into_out():
        for operation, dtype in results.items():
            expected, out = operation(maps), torch.empty(maps.shape, dtype=dtype)
            operation(maps, out=out)
            if not (out.numpy() == expected.numpy()).all():
                return False
            operation(bad, out=out, nan="propagate")
        return True

    def refused():
        groups = bad[:9000].unflatten(0, (-1, 3))
        singles = (fg.attention_sum, fg.entropy, fg.head_stats, *results)
        calls = [lambda f=f: f(bad) for f in singles]
        calls += [
            lambda f=f, d=d: f(bad, out=torch.empty(bad.shape, dtype=d)) for f, d in results.items()
        ]
        calls += [lambda: fg.boxes(groups), lambda: ops.combine(groups)]
        for call in calls:
            try:
                call()
            except ValueError:
                continue
            return False
        return True

    def odd_axes():
        odd = maps[:9000].unflatten(0, (90, 100)).transpose(0, 1)
        return bool((fg.label(odd)[3, 5].numpy() == fg.label(maps[503]).numpy()).all())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (maps + 1).sum()
        assert [in_a_fork(work) for work in (into_out, refused, odd_axes)] == [0, 0, 0]
    finally:
        torch.set_num_threads(before)


def _sums(_):
    return fg.attention_sum(MAPS["half"]).tolist()


@needs_fork
def test_multiprocessing_by_fork(threads):
    threads(2)
    expected = _sums(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            answers = pool.map_async(_sums, range(4)).get(timeout=60)
    assert answers == [expected] * 4


def test_as_many_as_there_are_processors_at_first():
    code = "import fastground as fg; print(fg.get_num_threads())"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert int(run_python(code)) == usable


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux to count threads")
def test_workers_start_when_there_is_work_for_them():
    code = (
        "import os, torch, fastground as fg\n"
        "torch.set_num_threads(1)\n"
        "fg.set_num_threads(3)\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "maps = torch.rand(20000, 24, 24)\n"
        "start = count()\n"
        "fg.entropy(maps[:64]), fg.boxes(maps[:30, None])\n"
        "few = count()\n"
        "fg.entropy(maps), fg.entropy(maps)\n"
        "print(few - start, count() - start)"
    )
    assert run_python(code).split() == ["0", "2"]


def test_leaving_while_the_pool_exists():
    code = (
        "import threading, torch, fastground as fg\n"
        "fg.set_num_threads(3)\n"
        "maps = torch.rand(20000, 24, 24)\n"
        "work = lambda: [fg.label(maps) for _ in range(50)]\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "fg.label(maps)\n"
        "print('left')"
    )
    assert run_python(code).strip() == "left"


def run_python(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0 and not ran.stderr, ran.stderr
    return ran.stdout


def test_the_number_of_threads(threads):
    for count in (1, 2, 1024):
        threads(count)
        assert fg.get_num_threads() == _core.num_threads() == count
    threads(torch.tensor(4))
    assert fg.get_num_threads() == 4
    for count in (0, -1, 1025, 2**70):
        with pytest.raises(ValueError, match=f"num_threads must be 1 to 1024, but got {count}"):
            threads(count)
    for count in (1.0, "2", None, True):
        with pytest.raises(TypeError, match="num_threads must be an integer, but got"):
            threads(count)
    assert fg.get_num_threads() == 4
