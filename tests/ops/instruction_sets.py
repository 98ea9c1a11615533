"""One call under every instruction set that this processor has."""

import torch
from fastground import _core


def each():
    """Takes the kernels of one instruction set after the other; the best when done."""
    try:
        for name in _core.instruction_sets():
            _core.use(name)
            yield name
    finally:
        _core.use("")


def assert_same_bits(call):
    """`call` gives the same tensor, or several tensors, to the bit under each of them."""
    expected = None
    for name in each():
        result = call()
        parts = (result,) if isinstance(result, torch.Tensor) else result
        bits = [part.numpy().tobytes() for part in parts]
        expected = expected or bits
        assert bits == expected, name
