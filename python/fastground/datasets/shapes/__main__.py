"""`python -m fastground.datasets.shapes export DIR`: the drawn world as files of RefCOCO."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastground.datasets.shapes.export import export


def main(arguments: list[str] | None = None) -> int:
    """Write the files; 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m fastground.datasets.shapes")
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "export", help="write refs(unc).p, instances.json and train2014/*.jpg"
    )
    command.add_argument("folder", type=Path, metavar="DIR")
    command.add_argument("--images", type=int, default=200, help="of all splits (200)")
    command.add_argument("--per-image", type=float, default=7.1, help="expressions, on average")
    command.add_argument("--side", type=int, default=192, help="of an image, in pixels (192)")
    command.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    try:
        sizes = export(
            chosen.folder, chosen.images, chosen.per_image, side=chosen.side, seed=chosen.seed
        )
    except (ValueError, OSError) as error:
        print(f"fastground: {error}", file=sys.stderr)
        return 2
    for split, (images, refs, texts) in sizes.items():
        print(f"{split}: {images:,} images, {refs:,} references, {texts:,} expressions")
    print(f"wrote {chosen.folder}; try: fastground discover tiny --dataset refcoco --data "
          f"{chosen.folder}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
