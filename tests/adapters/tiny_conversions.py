"""The paper's models that transformers does not load, converted from their authors' layouts."""

from pathlib import Path
from tempfile import TemporaryDirectory

import originals
from families import Family
from fastground import models


def converted(name, seed):
    """(model, processor), by way of files in the original layout."""
    with TemporaryDirectory() as folder:
        source = originals.write(originals.make(name, seed), Path(folder) / "original")
        out = models.convert(source, Path(folder) / "converted")
        lvlm = models.load(out, device="cpu")
    return lvlm.model, lvlm.processor


FAMILIES = [
    Family("llava_v1", lambda seed: converted("llava_v1", seed)),
    Family("sharegpt4v", lambda seed: converted("sharegpt4v", seed)),
    Family("yi_vl", lambda seed: converted("yi_vl", seed)),
    Family("internvl_chat", lambda seed: converted("internvl_chat", seed)),
]
