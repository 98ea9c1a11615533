"""The synthetic world `shapes`: rendered scenes, referring expressions, and their truth.

A scene holds three to six objects that do not overlap, each with a shape, a colour, a size and a
texture. Expressions name one object uniquely, in three kinds as people do in RefCOCO:

    attribute   the small purple star            the square that is red
    location    the leftmost red thing           the circle at the bottom
    relation    the circle left of the blue star

The texture is never named and differs between all objects of a scene: who can say it has found
the object. A scene is a pure function of (split, seed, index), so splits never share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from fastground.counts import check_whole
from fastground.types import Sample

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
COLOURS = {
    "red": (214, 48, 49),
    "green": (56, 158, 66),
    "blue": (52, 94, 214),
    "yellow": (236, 200, 40),
    "purple": (150, 62, 190),
    "orange": (240, 130, 30),
    "cyan": (50, 190, 205),
}
TEXTURES = (
    "plain", "lined", "barred", "slashed", "backslashed", "dotted", "checked", "gridded",
)  # fmt: skip
COUNTS = {3: 0.5, 4: 0.36, 5: 0.1, 6: 0.04}
"""How many objects a scene holds, and how often."""
RADIUS = {1: 0.2, 2: 0.2, 3: 0.2, 4: 0.185, 5: 0.165, 6: 0.15}
"""Of a small object, as a share of the image's side, by how many there are; 5 % more or less."""
LARGER = (1.3, 1.45)
"""Radius of a large object over a small one's."""
SIZES = ("small", "large")
KINDS = ("attribute", "location", "relation")
SPLITS = ("train", "val", "test")
SIDE = 192
TEXTURE_PERIOD = 4.0
"""Pixels, whatever the side, so that one patch sees the same texture at any resolution."""
TEXTURE_SHIFT = 2.0
"""Pixels by which a texture may be shifted, at most."""

_DIRECTIONS = {
    # name: (axis, sign), superlatives, relation words
    "left": ((0, -1), ("the leftmost {0}", "the {0} on the left", "left {0}"), "left of"),
    "right": ((0, 1), ("the rightmost {0}", "the {0} on the right", "right {0}"), "right of"),
    "top": ((1, -1), ("the topmost {0}", "the {0} at the top", "top {0}"), "above"),
    "bottom": ((1, 1), ("the lowest {0}", "the {0} at the bottom", "bottom {0}"), "below"),
}
WORDS = (
    "the", "that", "is", "on", "at", "of", "thing", "small", "large", "left", "right", "top",
    "bottom", "leftmost", "rightmost", "topmost", "lowest", "above", "below", ".",
)  # fmt: skip
VOCABULARY = WORDS + tuple(COLOURS) + SHAPES + TEXTURES


@dataclass(frozen=True)
class Thing:
    """One object of a scene; lengths are fractions of the image's side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    phase: tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Objects and the seed of everything that is drawn around them."""

    things: tuple[Thing, ...]
    noise_seed: int


def scene(
    split: str, seed: int, index: int, counts: dict[int, float] = COUNTS
) -> tuple[Scene, np.random.Generator]:
    """The scene at this index, and the generator that goes on to choose its expressions.

    Raises:
        ValueError: `split` is not train, val or test.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, but got {split!r}")
    rng = np.random.default_rng([SPLITS.index(split), seed, index])
    count = int(rng.choice(list(counts), p=list(counts.values())))
    large = rng.random(count) < (0.45 if count < 4 else 1.2 / count)
    radii = RADIUS[count] * rng.uniform(0.95, 1.05, count)
    places = _place(rng, np.where(large, radii * rng.uniform(*LARGER), radii))
    # A small palette a scene, so that the objects share shapes and colours.
    colours = rng.permutation(list(COLOURS))[: rng.integers(2, 4)]
    shapes = rng.permutation(SHAPES)[: rng.integers(2, 4)]
    textures = rng.permutation(TEXTURES)
    things = tuple(
        Thing(
            str(rng.choice(shapes)), str(rng.choice(colours)), SIZES[int(large[i])],
            str(textures[i]), x, y, radius,
            (rng.uniform(0, TEXTURE_SHIFT), rng.uniform(0, TEXTURE_SHIFT)),
        )
        for i, (x, y, radius) in enumerate(places)
    )  # fmt: skip
    return Scene(things, int(rng.integers(2**31))), rng


def _place(rng: np.random.Generator, radii: np.ndarray) -> list[tuple[float, float, float]]:
    """Centres without overlap, largest first; where one finds no place all start anew, smaller."""
    order = np.argsort(-radii)
    while True:
        placed: dict[int, tuple[float, float, float]] = {}
        for i in order:
            r = float(radii[i])
            for x, y in rng.uniform(r, 1 - r, (24, 2)).tolist():
                if all(
                    (x - a) ** 2 + (y - b) ** 2 > (1.04 * (r + c)) ** 2
                    for a, b, c in placed.values()
                ):
                    placed[int(i)] = (x, y, r)
                    break
            else:
                break
        if len(placed) == len(radii):
            return [placed[i] for i in range(len(radii))]
        radii = radii * 0.995


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Where local coordinates (in radii, y down) lie inside a shape of about unit radius."""
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return (np.abs(u) <= 0.8) & (np.abs(v) <= 0.8)
    if shape == "diamond":
        return np.abs(u) + np.abs(v) <= 1
    if shape == "triangle":
        return (v <= 0.6) & (np.abs(u) * 1.65 <= v + 1)
    if shape == "cross":
        arm = 0.36
        return ((np.abs(u) <= arm) & (np.abs(v) <= 0.95)) | (
            (np.abs(v) <= arm) & (np.abs(u) <= 0.95)
        )
    angle = np.arctan2(u, -v) % (2 * np.pi / 5) - np.pi / 5
    inner = 0.5  # radius of the notches between the five points
    edge = inner * np.sin(np.pi / 5) / (1 - inner * np.cos(np.pi / 5))
    radius = np.hypot(u, v)
    along, across = (
        radius * np.cos(np.pi / 5 - np.abs(angle)),
        radius * np.sin(np.pi / 5 - np.abs(angle)),
    )
    return across <= edge * (1 - along)


def _dark(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Where a texture is dark, from pixel coordinates."""
    across, down = x % period < period / 2, y % period < period / 2
    if texture == "lined":
        return down | np.zeros_like(across)
    if texture == "barred":
        return across | np.zeros_like(down)
    if texture == "slashed":
        return (x + y) % period < period / 2
    if texture == "backslashed":
        return (x - y) % period < period / 2
    if texture == "checked":
        return across ^ down
    if texture == "dotted":
        return (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < period**2 / 7
    if texture == "gridded":
        return (x % period < period / 4) | (y % period < period / 4)
    return np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)


def render(
    scene: Scene, side: int = SIDE, period: float = TEXTURE_PERIOD
) -> tuple[np.ndarray, np.ndarray]:
    """The scene as pixels, and every object's mask.

    Args:
        scene: what to draw.
        side: height and width of the image in pixels.
        period: of the textures, in pixels.

    Returns:
        (side, side, 3) uint8 and (objects, side, side) bool.
    """
    rng = np.random.default_rng(scene.noise_seed)
    base, tint, slope = rng.uniform(150, 225), rng.uniform(-18, 18, 3), rng.uniform(-35, 35, 2)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    light = base + slope[0] * axis[None, :] + slope[1] * axis[:, None]
    image = (light[..., None] + tint).astype(np.float32)
    masks = np.zeros((len(scene.things), side, side), bool)
    for thing, mask in zip(scene.things, masks, strict=True):
        cx, cy, r = thing.x * side, thing.y * side, thing.radius * side
        x0, y0 = max(int(cx - r) - 1, 0), max(int(cy - r) - 1, 0)
        x = np.arange(x0, min(int(cx + r) + 2, side), dtype=np.float32)[None, :] + 0.5
        y = np.arange(y0, min(int(cy + r) + 2, side), dtype=np.float32)[:, None] + 0.5
        rows, columns = slice(y0, y0 + y.shape[0]), slice(x0, x0 + x.shape[1])
        free = ~masks[:, rows, columns].any(0)
        mask[rows, columns] = _inside(thing.shape, (x - cx) / r, (y - cy) / r) & free
        dark = _dark(thing.texture, x + thing.phase[0], y + thing.phase[1], period)
        paint = np.array(COLOURS[thing.colour], np.float32) * np.where(dark, 0.4, 1)[..., None]
        np.copyto(image[rows, columns], paint, where=mask[rows, columns, None])
    image += rng.standard_normal(image.shape, dtype=np.float32) * 10
    return image.clip(0, 255).astype(np.uint8), masks


def expressions(scene: Scene) -> dict[str, list[list[str]]]:
    """Every expression that names one object and no other.

    Returns:
        For each kind, a list an object: the expressions that name it, without the final period.
    """
    things = scene.things
    members = descriptions(things)
    found: dict[str, list[list[str]]] = {kind: [[] for _ in things] for kind in KINDS}
    for (size, colour, shape), who in members.items():
        named = noun((size, colour, shape))
        if len(who) == 1 and (size or colour or shape):
            found["attribute"][who[0]].append(f"the {named}")
            if colour:
                rest = " ".join(w for w in (size, shape or "thing") if w)
                found["attribute"][who[0]].append(f"the {rest} that is {colour}")
        for (axis, sign), superlatives, words in _DIRECTIONS.values():
            at = [sign * (things[i].x, things[i].y)[axis] for i in who]
            if len(who) >= 2 and not size:
                first, second = sorted(range(len(who)), key=lambda j: -at[j])[:2]
                if at[first] - at[second] >= 0.08:
                    found["location"][who[first]] += [s.format(named) for s in superlatives]
            if len(who) >= 2 and not (size and colour and shape):
                _relate(found["relation"], things, members, named, who, at, axis, sign, words)
    return found


def descriptions(things: tuple[Thing, ...]) -> dict[tuple[str, str, str], list[int]]:
    """Who fits each (size, colour, shape) that some object fits, empty words fitting all."""
    members: dict[tuple[str, str, str], list[int]] = {}
    for i, thing in enumerate(things):
        for said in product((True, False), repeat=3):
            words = (thing.size, thing.colour, thing.shape)
            key = tuple(w if s else "" for w, s in zip(words, said, strict=True))
            members.setdefault(key, []).append(i)  # type: ignore[arg-type]
    return members


def noun(words: tuple[str, str, str]) -> str:
    """A description in words: (size, colour, shape), of which the empty ones are not said."""
    size, colour, shape = words
    return " ".join(w for w in (size, colour, shape or "thing") if w)


def _relate(
    found: list[list[str]],
    things: tuple[Thing, ...],
    members: dict[tuple[str, str, str], list[int]],
    noun: str,
    who: list[int],
    at: list[float],
    axis: int,
    sign: int,
    words: str,
) -> None:
    """Add "the {noun} left of the {other}" where one of `who` is there, and clearly no other."""
    for (size, colour, shape), (anchor, *more) in members.items():
        if more or not shape or (size and colour) or anchor in who:
            continue
        origin = sign * (things[anchor].x, things[anchor].y)[axis]
        beyond = [a - origin for a in at]
        inside = [j for j, b in enumerate(beyond) if b > 0.08]
        if len(inside) == 1 and all(b < -0.02 for j, b in enumerate(beyond) if j != inside[0]):
            other = " ".join(w for w in (size, colour, shape) if w)
            found[who[inside[0]]].append(f"the {noun} {words} the {other}")


_CYCLE = ("attribute",) * 4 + ("location",) * 3 + ("relation",) * 3
PER_IMAGE = 7
"""Expressions, at most."""
MOST_SAMPLES = 10_000_000
"""Of a stream without end: more take weeks, and 80 GB of discovery's table at 1,024 heads."""


def shapes(
    split: str = "train", num_samples: int = 1000, seed: int = 0, *, several: bool = False
) -> Iterator[Sample]:
    """Samples of the synthetic world, about seven to an image, images one after another.

    Args:
        split: train, val or test; they never share a scene.
        num_samples: how many expressions: four in ten by attribute, three by location, three by
            relation, as far as a scene allows.
        seed: another world of the same kind.
        several: expressions that mean all objects of a class, at least two, instead of one.

    Returns:
        Samples with a 192 x 192 image, box, mask, kind and the answer (texture, colour, shape).

    Raises:
        ValueError: an unknown split, or a number of samples or a seed that cannot be.
    """
    way_out = "shapes are drawn without end, so ask for fewer"
    check_whole("num_samples", num_samples, 0, MOST_SAMPLES, way_out)
    check_whole("seed", seed, 0)
    scene(split, seed, 0)
    if several:
        from fastground.datasets.shapes import several as plural

        return plural.several(split, num_samples, seed)
    return _single(split, num_samples, seed)


def _single(split: str, num_samples: int, seed: int) -> Iterator[Sample]:
    from PIL import Image

    made = index = 0
    while made < num_samples:
        this, rng = scene(split, seed, index)
        pixels, masks = render(this)
        image = Image.fromarray(pixels)
        count = min(PER_IMAGE, num_samples - made)
        for kind, target, text in said(expressions(this), rng, count, made):
            thing = this.things[target]
            yield Sample(
                image=image,
                expression=text,
                box=mask_box(masks[target]),
                mask=masks[target],
                image_id=index,
                sample_id=made,
                kind=kind,
                answer=(thing.texture, thing.colour, thing.shape),
            )
            made += 1
        index += 1


def said(
    found: dict[str, list[list[str]]], rng: np.random.Generator, count: int, first: int = 0
) -> list[tuple[str, int, str]]:
    """Expressions of a scene, none twice: kind, object, words.

    Args:
        found: from `expressions`.
        rng: from `scene`.
        count: how many; fewer where the scene has no more.
        first: how many were said of scenes before, which says whose kind's turn it is.
    """
    chosen: list[tuple[str, int, str]] = []
    while len(chosen) < count:
        kind = _CYCLE[(first + len(chosen)) % len(_CYCLE)]
        one = choose(found, kind, rng, {text for _, _, text in chosen})
        if one is None:
            break
        chosen.append(one)
    return chosen


def choose(
    found: dict[str, list[list[str]]], kind: str, rng: np.random.Generator, taken: set[str]
) -> tuple[str, int, str] | None:
    """One expression not yet taken: the wanted kind, else another; an object first, then words."""
    for option in (kind, *KINDS):
        texts = [(i, [t for t in ts if t not in taken]) for i, ts in enumerate(found[option])]
        texts = [(i, ts) for i, ts in texts if ts]
        if texts:
            target, words = texts[rng.integers(len(texts))]
            return option, target, words[rng.integers(len(words))]
    return None


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The tight box of a mask: x1, y1, x2, y2, half-open."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)
