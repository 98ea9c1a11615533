"""RefCOCO, RefCOCO+ and RefCOCOg, from their authors' files or from copies of them in Parquet.

    DATA/refcoco/refs(unc).p       references: an object, its split, two to four sentences
         refcoco/instances.json    COCO's images and annotations of them
         train2014/COCO_train2014_000000581857.jpg

    image 581857 -- annotation 1719310 (box, mask) -- reference 0 -- sentences 0, 1, 2
                 -- annotation ...                 -- reference 1 -- sentences 3, 4

One image becomes one `AnnotatedImage` with all its sentences of the split. How many images,
references and sentences a split has is known, and asserted: a copy that has been cut, filtered or
mixed gives other scores under the same name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from fastground.datasets import masks, parquet
from fastground.datasets.annotated import AnnotatedImage, Phrase, Reference, xyxy
from fastground.datasets.files import by_id, needed, one_of, read_json
from fastground.datasets.unpickle import load_plain

AUTHORS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""The data sets, and whose split is the usual one."""
Counts = tuple[int, int, int]
"""Images, references, expressions."""
SIZES: dict[tuple[str, str], dict[str, Counts]] = {
    ("refcoco", "unc"): {
        "train": (16_994, 42_404, 120_624),
        "val": (1_500, 3_811, 10_834),
        "testA": (750, 1_975, 5_657),
        "testB": (750, 1_810, 5_095),
    },
    ("refcoco+", "unc"): {
        "train": (16_992, 42_278, 120_191),
        "val": (1_500, 3_805, 10_758),
        "testA": (750, 1_975, 5_726),
        "testB": (750, 1_798, 4_889),
    },
    ("refcocog", "umd"): {
        "train": (21_899, 42_226, 80_512),
        "val": (1_300, 2_573, 4_896),
        "test": (2_600, 5_023, 9_602),
    },
}
SIZES_FILE = "sizes.json"
"""A folder's own sizes, for a part of the data or another of the same form."""
SENTENCES = ("all", "first")
REFS_FROM = "get refcoco.zip, refcoco+.zip or refcocog.zip: https://github.com/lichengunc/refer"
COCO_FROM = "get COCO's train2014 images: https://cocodataset.org/#download"


def annotated_images(
    data: str | Path,
    split: str = "train",
    *,
    variant: str = "refcoco",
    by: str | None = None,
    sentences: str = "all",
    exclude_eval_images: bool = False,
    check_sizes: bool = True,
    images: str | Path | None = None,
) -> list[AnnotatedImage]:
    """The images of a split, in the order of the file, with their sentences.

    Args:
        data: the folder that holds refcoco/ and train2014/, or refcoco/ itself, or a folder of
            Parquet or Arrow files in the layout of jxu124/refcoco or lmms-lab/RefCOCO.
        split: train, val, testA, testB; for refcocog train, val, test.
        variant: refcoco, refcoco+ or refcocog.
        by: whose split: unc, umd or google; the usual one unless given.
        sentences: all, or the first of each reference.
        exclude_eval_images: leave out of train the images that are in val or test of any of the
            three data sets, since train of one overlaps those of the others.
        check_sizes: refuse a split that has not as many images, references and sentences as it
            should; those by google are not known here and not checked.
        images: the folder of the images, where it is not one of the usual places.

    Raises:
        FileNotFoundError: a file is missing; says which, and where to get it.
        ValueError: an unknown variant, split or choice, a pickle that holds more than plain data,
            a duplicate id, or another number of images, references or sentences.
    """
    if variant not in AUTHORS:
        raise ValueError(f"variant must be one of {', '.join(AUTHORS)}, but got {variant!r}")
    if sentences not in SENTENCES:
        raise ValueError(f"sentences must be all or first, but got {sentences!r}")
    by = by or AUTHORS[variant]
    known = SIZES.get((variant, by))
    if known is not None:
        one_of(split, known, f"{variant} by {by}")
    if exclude_eval_images and split != "train":
        raise ValueError(f"exclude_eval_images must be False for split {split!r}: it is for train")

    folder = Path(data)
    home = _home(folder, variant, by)
    copy = home is None and parquet.files(folder, ("train", "val", "validation", "test", "testA"))
    if home is None and copy:
        references = parquet.references(folder, variant, split, _image_folder(images, folder))
        if any(isinstance(r.source, Path) for r in references):
            needed([_image_folder(images, folder)], "images", COCO_FROM)
        name, own = str(folder), None
    else:
        home = home or folder / variant
        path = home / f"refs({by}).p"
        references = _originals(home, path, split, images)
        name, own = str(path), _own_sizes(home / SIZES_FILE, path.name)
    if check_sizes:
        _check_sizes(references, (own or known or {}).get(split), f"{variant} {split}", name)
    left_out: set[int] = set()
    if exclude_eval_images:
        if home is None:
            raise ValueError(
                "exclude_eval_images must be False for Parquet files, which tell of one data set "
                f"alone; {REFS_FROM}"
            )
        left_out = _eval_images(home.absolute().parent)
    return _by_image((r for r in references if r.image_id not in left_out), sentences)


def _home(folder: Path, variant: str, by: str) -> Path | None:
    """Where the authors' files are, if they are."""
    for home in (folder / variant, folder):
        if (home / f"refs({by}).p").exists() and (home == folder / variant or _fits(home, variant)):
            return home
    return None


def _fits(home: Path, variant: str) -> bool:
    """A folder named after another of the three is not taken for this one."""
    return home.resolve().name not in AUTHORS or home.resolve().name == variant


def _image_folder(images: str | Path | None, *roots: Path) -> Path:
    """COCO's train2014: where it was said to be, or in one of the usual places."""
    usual = ("train2014", "images/train2014", "images/mscoco/images/train2014", "coco/train2014")
    places = [root / name for root in roots for name in usual]
    if images is not None:
        places = [Path(images)]
    return next((p for p in places if p.is_dir()), places[0])


def _originals(home: Path, path: Path, split: str, images: str | Path | None) -> list[Reference]:
    refs = load_plain(needed([path], "references", REFS_FROM))
    instances_path = needed([home / "instances.json"], "annotations", REFS_FROM)
    folder = needed([_image_folder(images, home.absolute().parent, home)], "images", COCO_FROM)
    if not isinstance(refs, list) or not all(isinstance(r, dict) for r in refs):
        raise ValueError(f"{path} must be a list of references, but is not; {REFS_FROM}")
    by_id(refs, "ref_id", path, "reference")
    one_of(split, dict.fromkeys(str(r.get("split")) for r in refs), str(path))
    refs = [r for r in refs if r.get("split") == split]
    instances = read_json(instances_path)
    try:
        photos = by_id(instances["images"], "id", instances_path, "image")
        annotations = by_id(instances["annotations"], "id", instances_path, "annotation")
        found = []
        for ref in refs:
            photo, annotation = photos[ref["image_id"]], annotations[ref["ann_id"]]
            if annotation["image_id"] != ref["image_id"]:
                raise ValueError(
                    f"reference {ref['ref_id']} must be about image {annotation['image_id']}, "
                    f"which its annotation is of, but is about {ref['image_id']}"
                )
            found.append(
                Reference(
                    ref["ref_id"], ref["image_id"],
                    tuple((s["sent_id"], str(s["sent"])) for s in ref["sentences"]),
                    xyxy(annotation["bbox"]), annotation["segmentation"],
                    folder / photo["file_name"], (int(photo["height"]), int(photo["width"])),
                )
            )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} and {instances_path.name} must be RefCOCO's, but something is missing: "
            f"{type(error).__name__} {error}; {REFS_FROM}"
        ) from error
    return found


def _own_sizes(path: Path, refs_name: str) -> dict[str, Counts] | None:
    """What the folder says of itself."""
    if not path.is_file():
        return None
    try:
        told = read_json(path).get(refs_name)
        return told and {split: (n[0], n[1], n[2]) for split, n in told.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold the splits of {refs_name} with three counts each, but does not"
        ) from error


def _check_sizes(references: list[Reference], wanted: Counts | None, what: str, name: str) -> None:
    images = len({r.image_id for r in references})
    got = (images, len(references), sum(len(r.sentences) for r in references))
    if wanted is None or wanted == got:
        return
    mixed = ""
    if what.endswith(" val") and got[1] == wanted[1] + 5_000:
        mixed = "; it is mixed with the 5,000 references of Google's val, as lmms-lab's is"
    words = "{:,} images, {:,} references and {:,} expressions"
    raise ValueError(
        f"{what} must have {words.format(*wanted)}, but {name} has {words.format(*got)}{mixed}; "
        "get the original, or take it as it is with check_sizes=False (--option check_sizes=false)"
    )


def _eval_images(root: Path) -> set[int]:
    """The images of val and test of all three data sets, as usually split."""
    found = set()
    for variant, by in AUTHORS.items():
        path = needed([root / variant / f"refs({by}).p"], "exclude_eval_images", REFS_FROM)
        try:
            found |= {r["image_id"] for r in load_plain(path) if r["split"] != "train"}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} must be a list of references, but is not") from error
    return found


def _by_image(references: Iterable[Reference], sentences: str) -> list[AnnotatedImage]:
    groups: dict[int, list[Reference]] = {}
    for reference in references:
        groups.setdefault(reference.image_id, []).append(reference)
    seen: set[int] = set()
    found = []
    for image_id, members in groups.items():
        phrases = []
        for reference in members:
            draw = partial(masks.coco, reference.segmentation) if reference.segmentation else None
            asked = reference.sentences[: 1 if sentences == "first" else None]
            for place, (sent_id, text) in enumerate(asked):
                if sent_id in seen:
                    raise ValueError(
                        f"sentences must have ids of their own, but {sent_id} is twice"
                    )
                seen.add(sent_id)
                phrases.append(Phrase(text, sent_id, reference.box, draw, first=place == 0))
        if phrases:
            found.append(
                AnnotatedImage(members[0].source, image_id, tuple(phrases), members[0].size)
            )
    return found
