"""The native core, as all of fastground takes it: told what class tensors are of.

It reads and makes tensors by functions that their class names, and without them knows none. Nobody
else imports `_core`, so that no call can come before that.
"""

from __future__ import annotations

from torch import Tensor

from fastground import _core

__all__ = ["_core"]

_core.use_tensors(Tensor)
