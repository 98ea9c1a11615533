"""Images read by worker processes: the same numbers, in bounds, and nobody left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_world
import torch
from fastground import datasets
from fastground.ahead import AHEAD, Unreadable, default_workers, read_ahead
from fastground.datasets.annotated import AnnotatedImage, Phrase, stream
from fastground.datasets.images import by_image
from fastground.datasets.masks import Drawn
from fastground.datasets.photos import Photo, open_image
from fastground.datasets.shapes.export import export
from fastground.discovery import collect
from PIL import Image
from test_runs import gather, same

# Python's of forks beside threads, from 3.12: torch's workers are made for them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def folder(tmp_path):
    """Twelve images in RefCOCO's own files."""
    export(tmp_path / "data", 12, 3)
    return tmp_path / "data"


def in_files(folder, masks=False):
    """Its samples, not opened, in words that the small model has."""
    images = datasets.annotated_images("refcoco", folder, "train")
    return stream(
        [
            replace(image, phrases=tuple(replace(p, expression="the mug") for p in image.phrases))
            for image in images
        ],
        masks=masks,
    )


def opened_by(process):
    """`Photo.image` for anyone but this process."""

    def image(photo):
        assert os.getpid() != process, f"{photo.source} is opened"
        return open_image(photo.source, photo.told)

    return image


def read(samples, workers, recipe=small_world.RECIPE):
    images = ((i, group) for i, group in enumerate(by_image(samples)))
    return list(read_ahead(small_world.lvlm(), images, recipe, workers))


def test_workers_read_what_is_read_in_line():
    alone, others = (read(small_world.samples(), workers) for workers in (0, 2))
    assert len(alone) == len(others) == 4
    for (tag, group, mine), (other_tag, other_group, theirs) in zip(alone, others, strict=True):
        assert tag == other_tag and group == other_group
        for name in ("expressions", "asking", "prefix_length", "layout", "prefix_positions"):
            assert getattr(mine, name) == getattr(theirs, name)
        assert all(map(torch.equal, mine.token_ids, theirs.token_ids))
        assert mine.image_inputs.keys() == theirs.image_inputs.keys()
        for name, value in mine.image_inputs.items():
            assert torch.equal(value, theirs.image_inputs[name])
            assert value.dtype == theirs.image_inputs[name].dtype == torch.float32


@pytest.mark.parametrize("workers", [1, 2])
def test_the_table_is_the_same_with_workers(tmp_path, workers):
    whole = gather(tmp_path / "whole")
    assert same(gather(None, workers=workers), whole)
    assert same(gather(tmp_path / "new", workers=workers), whole)
    some = gather(tmp_path / "some", small_world.samples()[:8], workers=workers)
    assert some.num_samples == 8
    assert same(gather(tmp_path / "some", workers=workers), whole)


def test_files_are_opened_by_workers_and_bad_ones_listed(folder, tmp_path, monkeypatch):
    for name, content in (("02", b"no image"), ("05", b"")):
        (folder / "train2014" / f"COCO_train2014_0000000000{name}.jpg").write_bytes(content)
    with pytest.warns(UserWarning, match="were not"):
        here = gather(tmp_path / "here", in_files(folder), workers=0, max_bad=0.9)
    assert {s[1] for s in here.skipped} == {2, 5} and "Pillow can read" in here.skipped[0][2]
    monkeypatch.setattr(Photo, "image", property(opened_by(os.getpid())))
    with pytest.warns(UserWarning, match="were not"):
        there = gather(tmp_path / "there", in_files(folder), workers=2, max_bad=0.9)
    assert same(there, here) and there.skipped == here.skipped


def test_done_images_are_not_opened_again(folder, tmp_path, monkeypatch):
    pytest.importorskip("pycocotools")
    first = gather(tmp_path / "run", in_files(folder, masks=True))
    assert first.has_ious
    monkeypatch.setattr(Photo, "image", property(opened_by(os.getpid())))
    again = list(in_files(folder, masks=True))
    assert same(gather(tmp_path / "run", again), first)
    assert not any({"image", "mask", "_drawn"} & s.__dict__.keys() for s in again)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_is_named_by_its_samples(workers, monkeypatch):
    samples = list(small_world.samples())
    samples[5] = replace(samples[5], expression="the zebra")
    says = r"'zebra'.* \(image_id 1, sample_id 3 to 6\)"
    with pytest.raises(ValueError, match=says):
        read(samples, workers)
    samples[5] = replace(samples[5], image_id=9)
    alone = read(samples[:5] + samples[6:], workers)
    assert len(alone) == 4

    def fails(*_):
        raise KeyError("tower")

    monkeypatch.setattr(type(small_world.lvlm()), "look", fails)
    with pytest.raises(RuntimeError, match=r"image_id 0, sample_id 0 to 2 .*KeyError: 'tower'"):
        read(small_world.samples(), workers)


def test_a_worker_that_is_killed_is_an_error(monkeypatch):
    monkeypatch.setattr(
        type(small_world.lvlm()), "look", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(RuntimeError, match=r"workers must live.*kept; if memory ran out, take few"):
        read(small_world.samples(), 1)


def test_workers_read_so_far_ahead_and_no_further():
    drawn = []

    def images():
        for i in range(1000):
            drawn.append(i)
            yield i, list(small_world.samples()[7:8])

    ahead = read_ahead(small_world.lvlm(), images(), small_world.RECIPE, 2)
    for done in range(1, 20):
        tag, _, found = next(ahead)
        assert tag == done - 1 and not isinstance(found, Unreadable)
        assert len(drawn) <= done + 2 * AHEAD
    begun = children()
    assert len(begun) == 2
    ahead.close()
    assert not children()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_however_long_the_run(tmp_path, workers):
    """Images and masks that were kept would be 0.3 MB a sample."""
    Image.effect_noise((320, 240), 64).convert("RGB").save(tmp_path / "one.jpg")
    images = [
        AnnotatedImage(tmp_path / "one.jpg", i, (Phrase("the red mug", i, draw=whole),))
        for i in range(450)
    ]
    resident = {}

    def progress(done):
        if done in (150, 400):
            resident[done] = [megabytes(pid) for pid in (os.getpid(), *children())]

    collect(
        small_world.lvlm(), stream(images), recipe=small_world.RECIPE, out=tmp_path / "run",
        shard_samples=64, workers=workers, progress=progress,
    )  # fmt: skip
    early, late = resident[150], resident[400]
    assert len(early) == len(late) == 1 + workers
    assert all(b - a < 25 for a, b in zip(early, late, strict=True)), (early, late)


def whole(size):
    return Drawn(np.ones(size, bool))


def megabytes(pid):
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024


def test_the_callers_random_numbers_are_left_alone():
    before = torch.random.get_rng_state()
    read(small_world.samples(), 1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_how_many_workers():
    assert default_workers(torch.device("cpu")) == 0
    assert 1 <= default_workers(torch.device("cuda")) <= 8
    for wrong in (-1, 1.5, "two", True, 10**9):
        with pytest.raises(ValueError, match="workers must be an integer from 0 to 1,024, but got"):
            gather(None, workers=wrong)


def children(parent=None):
    """Process ids of all that live and descend from a process."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(")")
        except OSError:
            continue
        state, above = rest.split()[:2]
        if state != "Z":
            parents[int(name.split()[0])] = int(above)
    found, frontier = [], [os.getpid() if parent is None else parent]
    while frontier:
        frontier = [pid for pid, above in parents.items() if above in frontier]
        found += frontier
    return found


def alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_process_is_left_behind(tmp_path, how):
    from fastground.tiny.model import build, processor

    build(6).save_pretrained(tmp_path / "model")
    processor(6).save_pretrained(tmp_path / "model")
    arguments = ["discover", str(tmp_path / "model"), "--num-samples", "1000000", "--workers", "2"]
    arguments += ["--out", str(tmp_path / "run"), "--json"]
    program = f"import torch, fastground.cli as c; torch.set_num_threads(1); c.main({arguments})"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        try:
            while not list(tmp_path.glob("run/shards/*.parquet")):
                assert running.poll() is None
                time.sleep(0.1)
            workers = children(running.pid)
            assert len(workers) == 2
            if how == signal.SIGINT:
                os.killpg(running.pid, how)  # as a terminal does
            else:
                running.kill()
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
        end = time.monotonic() + 20
        while any(map(alive, workers)) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(map(alive, workers))
    if how == signal.SIGINT:
        assert err.count("stopping after this image") == 1 and running.returncode == 130
        assert json.loads(out)["num_samples"] > 1000
