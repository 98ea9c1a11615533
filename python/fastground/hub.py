"""The hub, asked once whether it answers: loaders ask it for each file, five times with pauses."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def parted(checkpoint: str) -> tuple[str, dict[str, Any]]:
    """A checkpoint's name, and the revision after its @ as `from_pretrained` takes it.

    A folder is whole, whatever it is called, and has no revisions.
    """
    name, _, revision = checkpoint.partition("@")
    if not revision or Path(checkpoint).is_dir() or Path(name).is_dir():
        return checkpoint, {}
    return name, {"revision": revision}


def commit(name: str, **revision: Any) -> str:
    """The commit that a model was read from, where the hub's cache has it; of a folder none."""
    if Path(name).is_dir():
        return ""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json", **revision)
    return Path(cached).parent.name if isinstance(cached, str) else ""


def reached(name: str, **revision: Any) -> dict[str, Any]:
    """How `from_pretrained` is to read a checkpoint: keywords for it.

    Args:
        name: a folder, or a name on the hub.
        revision: the keyword of that name; its main one, unless given.

    Returns:
        Where the hub does not answer, but its cache holds the model, that it alone is read; else
        none.

    Raises:
        ValueError: the hub does not answer in HF_HUB_ETAG_TIMEOUT seconds, or is not to be asked,
            and its cache does not hold the model.
    """
    if Path(name).is_dir():
        return {}
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    no_answer: Any = errors  # names what its client raises, of whatever version
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(name, "config.json", **revision))
    except (errors.HfHubHTTPError, ValueError):  # what is wrong with the name, loaders tell
        return {}
    except (no_answer.HTTPError, errors.OfflineModeIsEnabled) as error:
        if isinstance(hub.try_to_load_from_cache(name, "config.json", **revision), str):
            return {"local_files_only": True}
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"checkpoint must be a folder or a model on the hub, but {name!r} is no folder here, "
            f"and {constants.ENDPOINT} does not answer ({why}); give the folder that holds the "
            "model, or mend the network"
        ) from error
    return {}
