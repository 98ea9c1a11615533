"""A model by its name on the hub: a stand-in for the hub that answers, refuses, or is silent."""

import http.server
import json
import threading
import time

import huggingface_hub
import pytest
from fastground import models
from fastground.discovery import discover
from fastground.hub import parted, reached
from fastground.types import HeadRanking, Sample
from PIL import Image
from random_llava import random_llava

NAME, COMMIT = "org/name", "0" * 39 + "1"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves a folder as the hub does the files of `NAME`, and nothing else."""

    folder, asked, closed = None, [], False

    def do_HEAD(self):
        self.asked.append(self.path)
        path = self.folder / self.path.rpartition("/")[2]
        known = self.path.startswith((f"/{NAME}/resolve/main/", f"/{NAME}/resolve/{COMMIT}/"))
        body = path.read_bytes() if path.is_file() and known else None
        if self.closed:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
        elif body is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{path.name}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        return body or b""

    def do_GET(self):
        self.wfile.write(self.do_HEAD())

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, with a model, in place of the hub; its cache is empty."""
    model, processor = random_llava(0)
    folder = tmp_path / "served"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    kind = type("Here", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    constants, address = huggingface_hub.constants, f"http://127.0.0.1:{server.server_port}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def hang_up():
        server.shutdown()
        server.server_close()
        thread.join()

    kind.hang_up = staticmethod(hang_up)
    yield kind
    if thread.is_alive():
        hang_up()


def test_a_hub_that_answers_is_left_to_the_loaders(hub):
    assert reached(NAME) == {} and hub.asked[-1] == f"/{NAME}/resolve/main/config.json"
    hub.closed = True
    assert reached(NAME) == {}, "what is gated, the loaders tell"
    assert reached("org/other") == {} and reached("no name at all") == {}


def test_a_revision_is_asked_for_and_told(hub, tmp_path):
    lvlm = models.load(f"{NAME}@{COMMIT}", device="cpu")
    files = [path for path in hub.asked if "/resolve/" in path]
    assert len(files) > 3 and all(f"/resolve/{COMMIT}/" in path for path in files)
    assert lvlm.revision == COMMIT and lvlm.checkpoint == f"{NAME}@{COMMIT}"
    samples = [Sample(Image.new("RGB", (40, 30)), "a", image_id=n, sample_id=n) for n in range(6)]
    for out in (None, tmp_path / "run"):
        ranking = discover(
            lvlm.model, lvlm.processor, samples, trials=1, checkpoint=lvlm.checkpoint, out=out
        )
        assert ranking.revision == COMMIT
    assert HeadRanking.load(tmp_path / "run").revision == COMMIT
    manifest = tmp_path / "run" / "run.json"
    made = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**made, "revision": "of another page"}))
    goes_on = {"trials": 1, "checkpoint": lvlm.checkpoint, "out": tmp_path / "run"}
    assert discover(lvlm.model, lvlm.processor, samples, **goes_on).num_samples == 6
    (tmp_path / "a@b").mkdir()
    assert parted(str(tmp_path / "a@b")) == (str(tmp_path / "a@b"), {})
    assert parted("tiny") == ("tiny", {}) and models.load("tiny").revision == ""


def test_a_folder_has_no_revisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert parted("model@v1") == ("model@v1", {})  # or the folder's would be taken for it
    with pytest.raises(ValueError, match=r"'model@v1' could not be read"):
        models.load("model@v1")


def test_a_revision_that_is_not_there_is_told(hub):
    with pytest.raises(ValueError, match=r"'org/name@none' could not be read"):
        models.load(f"{NAME}@none")


def test_a_folder_asks_nobody(hub, tmp_path):
    assert reached(str(tmp_path)) == {} and hub.asked == []


def test_a_silent_hub_is_told_at_once(hub, monkeypatch):
    hub.hang_up()
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)  # between tries
    with pytest.raises(ValueError, match=r"'org/name' is no folder here, and http://127\.0\.0\.1:"):
        models.load(NAME)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"does not answer \(.*HF_HUB_OFFLINE"):
        models.load(NAME)
    assert not slept


def test_a_model_in_the_cache_needs_no_hub(hub, monkeypatch):
    first = models.load(NAME, device="cpu")
    hub.hang_up()
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    again = models.load(NAME, device="cpu")
    assert again.revision == first.revision == COMMIT
    assert again.architecture == first.architecture and not slept
