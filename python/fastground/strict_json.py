"""JSON as every reader takes it: NaN and infinity, which it lacks and Python writes, are null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(content: Any, *, indent: int | None = 1) -> str:
    """The content as JSON.

    Args:
        content: as `json.dumps` takes it; null stands for each number that is not finite.
        indent: as there.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
