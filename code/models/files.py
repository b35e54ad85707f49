"""Checks the folder of a model or an adapter by its safetensors headers, without loading weights.

In: a path as passed to a flag. Out: names and shapes of the tensors; or a ValueError that names flag, file and remedy
if the folder is not a model, is incomplete, or holds pickles.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from models.folders import ROOT

MODEL, ADAPTER = "model.safetensors", "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "adapter_model.bin", "*.pt", "*.pth", "*.ckpt")
SAMPLES, SAMPLE_BYTES = 1024, 4096  # read by `digest`; a file that is not larger than all samples is read whole
LONGEST_HEADER = 100 * 2**20  # bytes; the limit of the safetensors library


def check_model_path(flag: str, path: str) -> None:
    """Raises ValueError if `path` is neither the folder of a model nor a possible hub id (`name` or `owner/name`)."""
    folder = Path(path)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            read_json(flag, folder / "config.json")
            read_shapes(flag, path)
            return
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"{flag} {path}: a LoRA adapter; pass its base here and the adapter as the PEFT path")
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise ValueError(f"{flag} {path}: no config.json there (found: {found}); pass the folder of a model")
    is_hub_id = path.count("/") <= 1 and not path.startswith((".", "/", "~", "outputs/", "model_hub/"))
    in_folder = path.count("/") == 1 and folder.parent.exists()  # a local folder, not an owner on the hub
    if folder.exists() or in_folder or not is_hub_id:
        remedy = "train it first, or " if path.startswith("outputs/") else ""
        if path.startswith("model_hub/"):
            remedy += f"{_download(path) or 'put a model there (model_hub/README.md)'}, or "
        raise ValueError(f"{flag} {path}: no such folder; {remedy}pass the folder of a model or a hub id")


def _download(path: str) -> str | None:
    """How to fill this folder, if it is one of a family whose model is on the hub."""
    of_model = re.compile(rf"_hub=\S+\n\w+_path={re.escape(path.rstrip('/'))}\s")
    families = (file for file in sorted(ROOT.glob("scripts/*/family.sh")) if of_model.search(file.read_text()))
    return next((f"download it (bash scripts/models/download.sh {file.parent.name})" for file in families), None)


def check_adapter_path(flag: str, path: str) -> None:
    """Raises ValueError if `path` is not the folder of a complete LoRA adapter."""
    if not (Path(path) / "adapter_config.json").is_file():
        raise ValueError(f"{flag} {path}: no adapter_config.json there; pass the epoch folder of a LoRA run")
    read_json(flag, Path(path) / "adapter_config.json")
    read_shapes(flag, path, ADAPTER)


def check_revision(flag: str, revision: str | None, path: str) -> None:
    """Raises ValueError if `path` is a folder: a revision would be ignored."""
    if revision is not None and Path(path).is_dir():
        raise ValueError(
            f"{flag} {revision}: {path} is a folder, which has no revisions; drop the flag or pass a hub id"
        )


def read_json(flag: str, path: Path) -> dict:
    """The object in a JSON file. Raises ValueError if it is not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not UTF-8
        raise ValueError(f"{flag} {path}: not JSON ({error}); copy the folder again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path}: {type(content).__name__}, not an object; copy the folder again")
    return content


def weight_files(flag: str, folder: str, name: str = MODEL) -> list[Path]:
    """The files that should hold a folder's weights: `name`, or the shards that the index lists."""
    files = [Path(folder) / name]
    if name == MODEL and not files[0].is_file() and (Path(folder) / INDEX).is_file():
        index = read_json(flag, Path(folder) / INDEX)
        files = [Path(folder) / shard for shard in sorted(set(index.get("weight_map", {}).values()))]
    return files


def read_shapes(flag: str, folder: str, name: str = MODEL) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a folder's weights. Raises ValueError if a file is missing or truncated."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(flag, folder, name):
        if not file.is_file():
            raise ValueError(f"{flag} {folder}: {_missing(Path(folder), file.name)}")
        shapes |= _read_header(flag, file)
    return shapes


def _missing(folder: Path, name: str) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and name in (MODEL, ADAPTER):
        return (
            f"{', '.join(pickles[:3])} but no {name}; pickled weights can run code and are not loaded: convert them "
            "where you trust them, with from_pretrained(...).save_pretrained(folder)"
        )
    return f"no {name} there; the folder is incomplete: copy it again, or pass another checkpoint"


def _read_header(flag: str, file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name. A safetensors file is the header's length in 8 bytes, the JSON header, and the data."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"{flag} {file}: no safetensors file, or cut short in its header; copy it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            raise ValueError(f"{flag} {file}: its safetensors header is broken; copy the file again") from None
    if size != 8 + length + end:
        raise ValueError(
            f"{flag} {file}: {size} bytes where its header describes {8 + length + end}; the file is incomplete: "
            "copy it again, or pass another checkpoint"
        )
    return shapes


def digest(files: Sequence[Path]) -> str:
    """A hash of names, sizes and samples of the files.

    Samples suffice, since training changes weights everywhere, and reading 100 GB takes long.
    """
    found = hashlib.blake2b(digest_size=12)
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                found.update(file.read())
                continue
            for i in range(SAMPLES):
                file.seek(i * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()
