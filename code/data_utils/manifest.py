"""manifest.json beside prepared data: where the rows come from, what was dropped, the sha256 of each file.

`scripts/data/prepare.py` and `code/generate.py` write it; evaluation reads it, to record what was scored and to report
a changed file.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest; None where there is none. Raises ValueError if it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}; prepare the data again, or delete the file") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{path}: not a manifest of scripts/data/prepare.py or code/generate.py; rename the file")
    return manifest


def data_origin(folder: Path, split: str = "valid") -> dict[str, Any] | None:
    """Where the rows of `<split>.jsonl` come from, and whether the file is still as it was written.

    Keys: `set`, `source` (a web page), `revision` (a commit; None for a local file), `sha256_matches`. None for a
    folder without a manifest. Raises ValueError as `read_manifest` does, FileNotFoundError without the split.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    written = manifest["files"].get(f"{split}.jsonl", {})
    return {
        "set": manifest.get("set"),
        "source": manifest.get("source", {}).get("page"),
        "revision": manifest.get("source", {}).get("revision"),
        "sha256_matches": sha256(folder / f"{split}.jsonl") == written.get("sha256"),
    }
