"""Downloads models from the hub: config, tokenizer, safetensors. Called by download.sh.

In: hub ids and folders. Out: each folder complete, with download.json: hub id, revision, and the commit that the
revision meant when the download began. A second call continues that commit, and refuses another one.

    python scripts/models/download.py --student openai-community/gpt2 model_hub/gpt2/gpt2-base [--revision main]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "code"))
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError

from models.files import read_json
from runtime.atomic import write_text

RECORD = "download.json"
TEXTS = ["*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]  # config, tokenizer, licence
SAFETENSORS, PICKLES = "*.safetensors", "pytorch_model*.bin"
COMMIT_LENGTH = 40


def download(hub_id: str, folder: Path, revision: str, convert: bool) -> None:
    """Raises ValueError with the remedy, and what the hub's client raises for a missing network or licence."""
    commit = started_commit(hub_id, folder, revision)
    if commit is None:
        commit = HfApi().model_info(hub_id, revision=revision).sha
        folder.mkdir(parents=True, exist_ok=True)
        record = {"hub_id": hub_id, "revision": revision, "commit": commit}
        write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")
    # Top-level files only: some repositories hold the same weights in other formats, in folders.
    files = [name for name in HfApi().list_repo_files(hub_id, revision=commit) if "/" not in name]
    chosen = matching(files, [*TEXTS, SAFETENSORS])
    pickles = matching(files, [PICKLES]) if not matching(files, [SAFETENSORS]) else []
    if pickles and not convert:
        raise ValueError(f"{hub_id}: has pickled weights only; pass --convert to turn them into safetensors")
    converted = any(folder.glob(SAFETENSORS)) and not any(folder.glob(PICKLES))
    if not converted:
        chosen += pickles
    print(f"{hub_id} {commit}: {len(chosen)} files into {folder}", flush=True)
    snapshot_download(hub_id, revision=commit, local_dir=folder, allow_patterns=chosen)
    convert_weights(folder)


def matching(files: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in files if any(Path(name).match(pattern) for pattern in patterns)]


def started_commit(hub_id: str, folder: Path, revision: str) -> str | None:
    """The commit of the download that `folder` holds. Raises ValueError if that is not what is asked for."""
    if not (folder / RECORD).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder}: holds files without a {RECORD}; move the folder away")
        return None
    record = read_json("download", folder / RECORD)
    started = record["hub_id"], record["revision"], record["commit"]
    if started[0] != hub_id or revision not in started[1:]:
        raise ValueError(
            f"{folder}: holds {started[0]} at {started[1]} ({started[2]}), not {hub_id} at {revision}; "
            "move the folder away to download another one"
        )
    return record["commit"]


def convert_weights(folder: Path) -> None:
    """Pickled weights of a complete download -> safetensors. Nothing but tensors is unpickled (weights_only)."""
    pickles = sorted(folder.glob(PICKLES))
    if not pickles:
        return
    import torch  # seconds to import
    from safetensors.torch import save_file

    names = [path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors") for path in pickles]
    places: dict[str, str] = {}
    for path, name in zip(pickles, names):
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        # Tied or sliced tensors share memory, which safetensors refuses.
        save_file(
            {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / name, {"format": "pt"}
        )
        places |= dict.fromkeys(tensors, name)
    if len(names) > 1:
        index = json.dumps({"metadata": {}, "weight_map": places}, indent=2)
        write_text(folder / "model.safetensors.index.json", index + "\n")
    for path in pickles:
        path.unlink()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description="Download the models of a family.", allow_abbrev=False)
    for role in ("teacher", "student"):
        parser.add_argument(f"--{role}", nargs=2, metavar=("HUB_ID", "FOLDER"))
    parser.add_argument("--only", choices=("teacher", "student"), help="default: both")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--convert", action="store_true", help="turn pickled weights into safetensors")
    args = parser.parse_args(argv)
    models = {role: getattr(args, role) for role in ("teacher", "student") if args.only in (None, role)}
    models = {role: model for role, model in models.items() if model}
    if not models:
        raise ValueError(f"--only {args.only}: this family has none on the hub")
    if len(args.revision) == COMMIT_LENGTH and len(models) > 1:
        raise ValueError(f"REVISION={args.revision}: a commit is of one model; add --only teacher or --only student")
    for hub_id, folder in models.values():
        download(hub_id, Path(folder), args.revision, args.convert)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, HTTPError) as error:  # HTTPError: no network
        sys.exit(f"download.py: {error}")
