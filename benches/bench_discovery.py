"""Discovery as a whole, from JPEG files to two numbers a head: what one waits for.

    python benches/bench_discovery.py          tiny, a small LLaVA and a small Qwen3.5, float32, a
                                               CPU's thread
    python benches/bench_discovery.py --gpu    LLaVA-1.5-7B's shape, bfloat16: a tenth of as many
                                               images and expressions as RefCOCO's training split

    discover               an image's seven expressions packed, several images a forward; Qwen3.5's,
                           whose layers are recurrent between, behind the image's cached keys
    discover, one by one   an expression a forward, its image read anew
    eager, SciPy           as published: so too, with output_attentions=True; SciPy, map by map

Then where the time goes: each part alone on the same images, and on a GPU beside its floor.
Goals: goals.py.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import entropy_peers
import harness
import numpy as np
import random_lvlms
import readme_tables
import torch
from bench_capture import EXPRESSIONS
from fastground import models, packing
from fastground.attention import attention_of_encoded
from fastground.capture import capture
from fastground.discovery import collect
from fastground.models import LVLM
from fastground.models.geometry import read_image
from fastground.shards import Shard, key
from fastground.stats import head_statistics
from fastground.types import Recipe, Sample
from goals import DISCOVER, ONE_BY_ONE, PUBLISHED, TEN_MINUTES
from harness import Row
from PIL import Image

TRAIN_SAMPLES, TRAIN_IMAGES = 120_624, 16_994
"""Of RefCOCO's training split."""
DRAWN, PARTS = 64, 32
"""So many photographs are drawn, and then read again; of so many the parts are measured."""
FLOPS, BYTES = 790e12, 4.8e12
"""What an H200 does in a second at best: in bfloat16, and from its memory."""


def photos(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> list[str]:
    """Files of JPEG images of COCO's usual size, as smooth and as noisy as photographs."""
    random = np.random.default_rng(0)
    files: list[str] = []
    for index in range(min(count, DRAWN)):
        coarse = Image.fromarray(random.integers(0, 255, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + random.normal(0, 8, smooth.shape)
        files.append(str(folder / f"{index:06d}.jpg"))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return [files[index % DRAWN] for index in range(count)]


def samples_of(files: list[str]) -> list[Sample]:
    """All expressions of each image."""
    return [
        Sample(file, expression, image_id=i, sample_id=i * len(EXPRESSIONS) + j)
        for i, file in enumerate(files)
        for j, expression in enumerate(EXPRESSIONS)
    ]


class Ways:
    """The two numbers of every head and sample, found in several ways."""

    def __init__(self, lvlm: LVLM, samples: list[Sample], recipe: Recipe) -> None:
        self.lvlm, self.samples, self.recipe = lvlm, samples, recipe
        self.apart = [replace(sample, image_id=sample.sample_id) for sample in samples]
        self.layers = list(lvlm.layers_with_heads)
        self.maps = len(self.layers) * lvlm.architecture["num_heads"]
        self.calls: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
            DISCOVER: lambda: self.discover(self.samples),
            ONE_BY_ONE: lambda: self.discover(self.apart, max_tokens=1),
            PUBLISHED: self.published,
        }

    def discover(self, samples: list[Sample], **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Sums and entropies, (samples, layers with heads * heads) each."""
        table = collect(self.lvlm, samples, recipe=self.recipe, **options)
        both = table.sums[:, self.layers], table.entropies[:, self.layers]
        return both[0].reshape(-1, self.maps), both[1].reshape(-1, self.maps)

    @torch.no_grad()
    def published(self) -> tuple[np.ndarray, np.ndarray]:
        """The same, sample by sample and map by map."""
        model = self.lvlm.model
        model.set_attn_implementation("eager")
        sums, entropies = [], []
        for sample in self.samples:
            image = read_image(sample.image)
            encoded = self.lvlm.encode(image, [sample.expression], self.recipe)
            inputs, rows = placed(packing.separate(encoded), model.device)
            attentions = model(
                **inputs, use_cache=False, logits_to_keep=1, output_attentions=True
            ).attentions
            asking = torch.cat([a[0, :, rows[0, 1]] for a in attentions if a is not None])
            maps = asking[:, list(encoded.layout.tokens)].float().cpu().numpy()
            sums.append(maps.sum(1))
            entropies.append(entropy_peers.scipy_per_map(maps.reshape(-1, *encoded.layout.grid)))
        model.set_attn_implementation("sdpa")
        return np.stack(sums), np.stack(entropies)

    def errors(self) -> dict[str, str]:
        """By contender, its sums' largest difference from the published way's."""
        truth = self.published()[0]
        ours = (DISCOVER, ONE_BY_ONE)
        return {name: f"{np.abs(self.calls[name]()[0] - truth).max():.0e}" for name in ours}

    def rates(self, rows: list[Row]) -> list[Row]:
        """The rows, of times for a sample, with what is done in a second."""
        for row in rows:
            row.expressions_per_s = 1e6 / row.time_us
            row.maps_per_s = row.expressions_per_s * self.maps
        return rows


def placed(made: tuple[dict[str, Any], torch.Tensor], device: Any) -> tuple[Any, torch.Tensor]:
    """Inputs on a device, and their asking rows."""
    inputs, rows = made
    return {name: value.to(device) for name, value in inputs.items()}, rows


def parts(ways: Ways, images: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Discovery of the first images, and each of its parts alone."""
    lvlm, recipe = ways.lvlm, ways.recipe
    model, count = lvlm.model, len(EXPRESSIONS)
    last = lvlm.architecture["num_layers"] - 1
    samples = ways.samples[: images * count]
    files = [sample.image for sample in samples[::count]]
    pictures = [read_image(file) for file in files]
    encoded = [lvlm.encode(picture, EXPRESSIONS, recipe) for picture in pictures]
    packs = [placed(packing.pack(*b), model.device) for b in packing.batches(encoded)]
    layouts = [[part.layout for part in batch] for batch in packing.batches(encoded)]
    found = list(attention_of_encoded(lvlm, encoded, recipe=recipe))
    numbers = dict(zip(("sums", "entropies"), ways.discover(samples), strict=True))

    @torch.no_grad()
    def towers() -> None:
        for inputs, _ in packs:
            model.get_image_features(pixel_values=inputs["pixel_values"])

    @torch.no_grad()
    def captures(heads: list[tuple[int, int]] | None) -> None:
        for (inputs, rows), where in zip(packs, layouts, strict=True):
            with capture(model, heads, rows, last, where, packed=True):
                model(**inputs, use_cache=False)

    return {
        DISCOVER: lambda: ways.discover(samples),
        "JPEG decoded": lambda: [read_image(file) for file in files],
        "resized, tokens": lambda: [lvlm.encode(p, EXPRESSIONS, recipe) for p in pictures],
        "vision tower": towers,
        "forwards: tower, prefill": lambda: captures([(last, 0)]),
        "with capture: and rows": lambda: captures(None),
        "statistics, to the host": lambda: [
            [part.cpu() for part in head_statistics(maps, recipe)] for maps in found
        ],
        "shard written": lambda: Shard.write(
            folder / "shard.parquet", [key(sample) for sample in samples], [], numbers, {}
        ),
    }


def floors(ways: Ways) -> dict[str, float]:
    """Microseconds an image that an H200 needs at least, by part; what is not named needs little.

    A token takes two operations a weight of the language model; the keys are read once an image,
    and the maps once for the statistics.
    """
    layers = ways.lvlm.model.get_decoder().layers
    text = ways.lvlm.model.config.get_text_config(decoder=True)
    encoded = ways.lvlm.encode(read_image(ways.samples[0].image), EXPRESSIONS, ways.recipe)
    prefix = encoded.prefix_length
    tokens = prefix + sum(len(ids) - prefix for ids in encoded.token_ids)
    prefill = 2 * sum(weight.numel() for weight in layers.parameters()) * tokens / FLOPS
    width = text.num_key_value_heads * text.hidden_size // text.num_attention_heads
    keys = text.num_hidden_layers * tokens * width * 2 / BYTES
    maps = len(EXPRESSIONS) * ways.maps * len(encoded.layout.tokens) * 4 / BYTES
    return {
        "forwards: tower, prefill": 1e6 * prefill,
        "with capture: and rows": 1e6 * (prefill + keys),
        "statistics, to the host": 1e6 * maps,
    }


def where(ways: Ways, model: str, images: int, clock: str, **sampling: Any) -> list[Row]:
    """The time of each part, for an image, beside that of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        rows = harness.compare(
            f"{model}, in parts", parts(ways, images, Path(folder)), items=images, clock=clock,
            **sampling,
        )  # fmt: skip
    least = floors(ways) if clock == "cuda" else {}
    for row in rows:
        if row.contender in least:
            row.floor = least[row.contender] / row.time_us
    return rows


@contextmanager
def busy() -> Iterator[list[float]]:
    """Twice a second the share of the time at which a kernel ran, as nvidia-smi tells it."""
    query = [
        "nvidia-smi",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        "-i",
        "0",
    ]
    shares: list[float] = []
    ended = Event()

    def ask() -> None:
        while not ended.wait(0.5):
            try:
                told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
                shares.append(float(told) / 100)
            except (OSError, subprocess.CalledProcessError, ValueError):
                return  # what is not told here must not end what is measured

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield shares
        finally:
            ended.set()
        asking.result()


def once(
    ways: Ways,
    few: int,
    folder: Path,
    clock: str,
    watched: Callable[[], AbstractContextManager[list[float]]],
) -> list[Row]:
    """All samples discovered into a folder, once; the others on the first few.

    The last row is no measurement, but the time of a sample of the whole training split in ten
    minutes.
    """
    now = harness.CLOCKS[clock]
    short = Ways(ways.lvlm, ways.samples[:few], ways.recipe)
    errors = short.errors()  # and all is warm
    with watched() as shares:
        begin = now()
        ways.discover(ways.samples, out=folder)
        times = {DISCOVER: (now() - begin) / len(ways.samples)}
    errors[DISCOVER] += f", GPU busy {np.mean(shares):.0%}" if shares else ", GPU's share not told"
    for name in (ONE_BY_ONE, PUBLISHED):
        begin = now()
        short.calls[name]()
        times[name] = (now() - begin) / few
    times[TEN_MINUTES] = 600 / TRAIN_SAMPLES
    rows = [
        Row("LLaVA", name, 1e6 * each, 0, each / times[DISCOVER], errors.get(name, ""))
        for name, each in times.items()
    ]
    return ways.rates(rows)


def on_cpu(given: Any) -> Iterator[list[Row]]:
    """tiny, and others of the true token layouts."""
    harness.one_thread()
    shapes = random_lvlms.small(given.layers, given.width)
    of = {"LLaVA": shapes["LLaVA"], "Qwen3.5": shapes["Qwen2.5-VL"]}
    lvlms = {"tiny": (models.load("tiny"), Recipe())} | {
        name: (random_lvlms.build(name, shape, "cpu", torch.float32), Recipe(template="chat"))
        for name, shape in of.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        samples = samples_of(photos(Path(folder), given.images or 2))
        for name, (lvlm, recipe) in lvlms.items():
            ways = Ways(lvlm, samples, recipe)
            compared = harness.compare(
                name, ways.calls, items=len(samples), errors=ways.errors(),
                **harness.sampling(given),
            )  # fmt: skip
            yield ways.rates(compared)
            if not lvlm.shares_prefix:  # the parts below are those of packs
                continue
            images = len(samples) // len(EXPRESSIONS)
            yield where(ways, name, images, "cpu", **harness.sampling(given))


def on_gpu(given: Any) -> Iterator[list[Row]]:
    """LLaVA-1.5-7B's shape."""
    lvlm = random_lvlms.build("LLaVA", random_lvlms.LLAVA_7B, "cuda", torch.bfloat16)
    count = given.images or TRAIN_SAMPLES // 10 // len(EXPRESSIONS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = Ways(lvlm, samples_of(photos(folder, count)), Recipe(template="chat"))
        yield once(ways, 2 * len(EXPRESSIONS), folder / "run", "cuda", busy)
        yield where(ways, "LLaVA", min(PARTS, count), "cuda", **harness.sampling(given))


def main() -> None:
    options = harness.parser("Discovery, packed, one by one, and in the published way.")
    options.add_argument("--gpu", action="store_true", help="LLaVA-1.5-7B's shape, on CUDA")
    options.add_argument("--images", type=int, help="with seven expressions each")
    options.add_argument("--layers", type=int, default=8, help="of the small LLaVA")
    options.add_argument("--width", type=int, default=512, help="of the small LLaVA")
    given = options.parse_args()
    name = "discovery-gpu" if given.gpu else "discovery"
    described = (
        "LLaVA-1.5-7B's shape, bfloat16" if given.gpu else
        f"LLaVA of {given.layers} layers, {given.width} wide; float32, one thread, CPU time"
    )  # fmt: skip
    described += "; times for a sample, and in parts for an image"
    measured = on_gpu(given) if given.gpu else on_cpu(given)
    rows = harness.kept(name, described, measured, save=not given.no_save)
    harness.report(name, described, rows, save=not given.no_save)
    readme_tables.print_goals({name: {"rows": [vars(row) for row in rows]}}, only=name)


if __name__ == "__main__":
    main()
