"""What all tests share: hypothesis settings that repeat, and the implementations under test.

Who needs a GPU is marked `gpu`, and only so left out without one: .ci/gpu-check runs `-m gpu`.
"""

import re
import signal
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch
from fastground import dispatch

hypothesis.settings.register_profile(
    "fastground",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.register_profile(
    "few", hypothesis.settings.get_profile("fastground"), max_examples=20
)
hypothesis.settings.load_profile("fastground")
torch.set_num_threads(1)  # tiny models take several times as long with more
# A script's background ignores Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.arange(1 << 16, dtype=torch.float32).cos()  # a process's first may be off: see models/lvlm.py


@dataclass
class Implementation:
    """Calls an operation with its arrays on the device, and brings the results back to the CPU."""

    name: str
    device: str

    def __call__(self, operation, *arrays, **keywords):
        place = lambda x: x.to(self.device) if isinstance(x, torch.Tensor) else x  # noqa: E731
        keywords = {name: place(value) for name, value in keywords.items()}
        result = operation(*map(place, arrays), **keywords)
        if isinstance(result, torch.Tensor):
            return self._back(result)
        return type(result)(*map(self._back, result))

    def _back(self, result):
        assert result.device.type == self.device
        return result.cpu()


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test left out for want of a GPU without the marker would never run anywhere."""
    report = yield
    why = str(call.excinfo.value) if report.skipped else ""
    if re.search("CUDA|GPU", why) and not item.get_closest_marker("gpu"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must be marked gpu, but skips itself: {why}"
    return report


@pytest.fixture(params=["reference", "native", pytest.param("cuda", marks=pytest.mark.gpu)])
def implementation(request, monkeypatch):
    """Every implementation of the operations on maps; those absent here are skipped."""
    if request.param != "cuda":
        monkeypatch.setenv("FASTGROUND_IMPLEMENTATION", request.param)
        return Implementation(request.param, "cpu")
    monkeypatch.delenv("FASTGROUND_IMPLEMENTATION", raising=False)
    if dispatch.cuda_core is None:
        pytest.skip("built without CUDA kernels")
    return Implementation("cuda", "cuda")


@pytest.fixture(autouse=True)
def fixed_seeds():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a random model that knows the words of the data set shapes."""
    from fastground.tiny.model import build, processor

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    build(6).save_pretrained(folder)
    processor(6).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def heads(model, tmp_path_factory):
    """What discover wrote for it."""
    from fastground.cli import main

    out = tmp_path_factory.mktemp("heads")
    with pytest.raises(SystemExit) as leaving:
        main(["discover", str(model), "--num-samples", "12", "--trials", "2", "--out", str(out)])
    assert leaving.value.code == 0
    return out


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """A file with a drawn scene."""
    from fastground import datasets

    (sample,) = datasets.load("shapes", split="test", num_samples=1, seed=0)
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    sample.image.save(path)
    return path
