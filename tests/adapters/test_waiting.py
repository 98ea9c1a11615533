"""What the host waits for a GPU for, from the inputs to the two numbers a head."""

import traceback
import warnings
from contextlib import contextmanager

import pytest
import torch
from families import all_families
from fastground.attention import attention_of_encoded
from fastground.models import wrap
from fastground.stats import head_statistics
from fastground.types import Recipe
from test_adapters import TEXTS, picture


@contextmanager
def waits():
    """A set that gets who waits: file and function, of fastground or transformers."""
    readers = set()

    def note(message, *_, **__):
        if "synchroniz" in str(message):
            ours = ("/fastground/", "/transformers/")
            within = [f for f in traceback.extract_stack() if any(o in f.filename for o in ours)]
            readers.add("/".join([*within[-1].filename.split("/")[-1:], within[-1].name]))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield readers
        finally:
            torch.cuda.set_sync_debug_mode("default")


OF_MASKS = "masking_utils.py/_ignore_causal_mask_sdpa", "asking.py/__init__"
"""Who reads whether a mask of two axes hides any token."""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "packed"), [("llava", True), ("llava", False), ("gemma3", True), ("qwen3_5", True)]
)
def test_expressions_do_not_wait_for_a_gpu(name, packed):
    """But for transformers, which counts the image's tokens and reads its size in patches."""
    [family] = [family for family in all_families() if family.name == name]
    lvlm = wrap(*family.build(0))
    lvlm.model.cuda()
    recipe, layers = Recipe(), lvlm.layers_with_heads
    for _ in range(2):  # the first forwards test the capture
        encoded = lvlm.encode(picture(), TEXTS, recipe)
        with waits() as readers:
            for heads in (None, [(layers[-1], 1), (layers[0], 0)]):
                for maps in attention_of_encoded(
                    lvlm, [encoded], recipe=recipe, heads=heads, packed=packed
                ):
                    head_statistics(maps, recipe, nan="propagate")
    masks = {reader for reader in readers if reader in OF_MASKS or "mask" in reader.split("/")[0]}
    assert masks == (set() if packed else set(OF_MASKS))
    others = {reader for reader in readers - masks if not reader.startswith("modeling_")}
    assert others <= {
        "import_utils.py/torch_compilable_check", "cache_utils.py/lazy_initialization",
        "vision_utils.py/get_vision_interpolation_indices_and_weights",
        "vision_utils.py/get_vision_position_ids",
    }  # fmt: skip
    assert readers
