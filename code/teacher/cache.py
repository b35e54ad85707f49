"""The teacher's hidden states on disk: after one pass over the data, training needs only the teacher's head.

The last hidden states times the frozen head are the teacher's logits, over the whole vocabulary and at any temperature;
so one cache serves every objective. Examples are found by their token ids (`Example.key`): runs with other orders,
seeds, lengths and subsets read the same cache, and examples that it lacks are added.

    <folder>/manifest.json            which teacher made it; a cache of another one is refused
    <folder>/head.safetensors         the teacher's head
    <folder>/states-*.safetensors     a shard: keys [K, 16], counts [K], states [N, E] of K examples

Shapes: N response positions, E hidden size of the teacher, V vocabulary.
"""

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from arguments import TeacherArguments
from data_utils.batches import Example, ExampleTable
from models.files import INDEX, MODEL, digest, weight_files
from models.heads import LanguageModelHead
from models.sharding import frozen_linear
from runtime.atomic import WriteError, existing_part, new_file, remove_unfinished, write_text
from runtime.deepspeed_settings import dtype_name
from runtime.locks import Held, lock
from runtime.log import logger

FORMAT = 1
SECONDS_BETWEEN_LOOKS = 1.0  # at a lock that another run holds
MANIFEST, HEAD, LOCK = "manifest.json", "head.safetensors", ".filling.lock"
SHARD_BYTES, SHARD_SECONDS = 2**28, 60.0  # a shard is written when it reaches this size or age
HUB_FILES = ["config.json", MODEL, INDEX, "model-*.safetensors"]


class TeacherCache:
    """The cache in `folder` of the teacher with the fingerprint `made_by`.

    Raises ValueError if another teacher made it, or if a file is damaged.
    """

    def __init__(self, folder: str, made_by: dict[str, str]):
        self.folder = Path(folder)
        self.made_by = made_by
        self._shards: dict[str, safe_open] = {}
        self._places: dict[bytes, tuple[str, int, int]] = {}  # shard, first position, positions
        self.refresh()

    @property
    def exists(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def refresh(self) -> None:
        """Finds shards that ranks or other runs have added. Raises as the constructor does."""
        if not self.exists:
            return
        self._check_maker(json.loads((self.folder / MANIFEST).read_text())["made_by"])
        for path in sorted(self.folder.glob("states-*.safetensors")):
            if path.name in self._shards:
                continue
            try:
                shard = safe_open(path, "pt")
                keys, counts = shard.get_tensor("keys").numpy(), shard.get_tensor("counts").tolist()
            except (SafetensorError, OSError) as error:
                raise ValueError(f"--teacher-cache {path}: damaged ({error}); delete this file and run again") from None
            self._shards[path.name] = shard
            first = 0
            for key, count in zip(keys, counts):
                self._places[key.tobytes()] = path.name, first, count
                first += count

    def missing(self, datasets: Sequence[ExampleTable]) -> list[tuple[ExampleTable, int]]:
        """Examples whose states are missing, without repetition, as (data set, index); longest first."""
        found = {
            key: (data, index) for data in datasets for index, key in enumerate(data.keys()) if key not in self._places
        }
        return sorted(found.values(), key=lambda place: -place[0].lengths[place[1]])

    def states(self, examples: Sequence[Example]) -> Tensor:
        """hidden_NE at the response positions of the examples, in their order."""
        parts = []
        for example in examples:
            name, first, count = self._places[example.key]
            parts.append(self._shards[name].get_slice("states")[first : first + count])
        return torch.cat(parts)

    def head(self, device: torch.device) -> LanguageModelHead:
        manifest = json.loads((self.folder / MANIFEST).read_text())
        tensors = load_file(self.folder / HEAD)
        linear = frozen_linear(tensors["weight"], tensors.get("bias")).to(device)
        return LanguageModelHead(linear, scale=manifest["scale"], softcap=manifest["softcap"])

    def start(self, head: LanguageModelHead, teacher: str) -> None:
        """Writes the head and then the manifest, which makes the folder a cache. `teacher`: its path, for readers.

        Raises ValueError if there are states without a manifest (teacher unknown).
        """
        if any(self.folder.glob("states-*")):
            raise ValueError(f"--teacher-cache {self.folder}: has states but no {MANIFEST}; delete the folder")
        tensors = dict(zip(("weight", "bias"), (p.cpu().contiguous() for p in head.parameters() if p is not None)))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._save(HEAD, tensors)
        manifest = {"made_by": self.made_by, "teacher": teacher, "scale": head.scale, "softcap": head.softcap}
        write_text(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def write_shard(self, keys: Sequence[bytes], states: Sequence[Tensor]) -> None:
        """Adds the states [positions, E] of each example. Raises WriteError; complete shards stay intact."""
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, 16),
            "counts": torch.tensor([len(part) for part in states]),
            "states": torch.cat(list(states)),
        }
        self._save(f"states-{uuid.uuid4().hex}.safetensors", tensors)

    def check_room(self, size: int) -> None:
        """Raises ValueError if `size` bytes do not fit on the disk."""
        free = shutil.disk_usage(existing_part(self.folder)).free
        if size > free:
            raise ValueError(
                f"--teacher-cache {self.folder}: takes {size / 1e9:.2f} GB more, and the disk has {free / 1e9:.2f} GB; "
                "pass a folder on another disk, lower --train-num, or drop the flag"
            )

    def lock(self) -> TextIO:
        """Keeps other runs from filling the cache until the returned file is closed, and removes unfinished files.

        Waits for another run that is filling it. A pause between two looks, not a blocking lock: signals end the wait.
        """
        told = False
        while True:
            try:
                file, _ = lock(self.folder / LOCK)
                break
            except Held as holder:
                if not told:
                    logger.info("teacher cache %s: another run is filling it (%s); waits for it", self.folder, holder)
                told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        remove_unfinished(self.folder)
        return file

    def _save(self, name: str, tensors: dict[str, Tensor]) -> None:
        with new_file(self.folder / name) as part:
            save_file(tensors, part)
            part.chmod(0o644)  # safetensors makes files that only the owner can read; a cache is shared

    def _check_maker(self, made_by: dict[str, str]) -> None:
        different = [name for name, value in self.made_by.items() if made_by.get(name) != value]
        if different:
            what = ", ".join(f"{name} {made_by.get(name)}, not {self.made_by[name]}" for name in different)
            raise ValueError(
                f"--teacher-cache {self.folder}: made by another teacher ({what}); pass another folder, or delete it"
            )


class ShardWriter:
    """Collects the states that one rank computes, and writes them in shards."""

    def __init__(self, cache: TeacherCache):
        self.cache = cache
        self._keys: list[bytes] = []
        self._states: list[Tensor] = []
        self._started = time.monotonic()
        self._failure: WriteError | None = None

    def add(self, examples: Sequence[Example], hidden_NE: Tensor) -> None:
        """Adds the states of the examples, and writes a shard if it is due.

        The error of a failed write is raised by `close`: a sharded teacher needs this rank until the pass ends.
        """
        if self._failure is not None:
            return
        self._keys += [example.key for example in examples]
        self._states += hidden_NE.cpu().split([example.predicted for example in examples])
        size = sum(part.numel() * part.element_size() for part in self._states)
        if size >= SHARD_BYTES or time.monotonic() - self._started > SHARD_SECONDS:
            try:
                self._flush()
            except WriteError as error:
                self._failure = error

    def close(self) -> None:
        """Writes the last shard. Raises WriteError."""
        if self._failure is not None:
            raise self._failure
        self._flush()

    def _flush(self) -> None:
        if self._keys:
            self.cache.write_shard(self._keys, self._states)
        self._keys, self._states, self._started = [], [], time.monotonic()


def fingerprint(args: TeacherArguments, dtype: torch.dtype) -> dict[str, str]:
    """What the teacher's hidden states depend on besides the token ids. Reads samples of the weight files."""
    path, folder = args.teacher_model_path, Path(args.teacher_model_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(path, revision=args.teacher_revision, allow_patterns=HUB_FILES))
    weights = weight_files("--teacher-model-path", str(folder))
    adapter = args.teacher_peft_path
    return {
        "format": str(FORMAT),
        "weights": digest([folder / "config.json", *weights]),
        "adapter": digest(sorted(Path(adapter).glob("adapter_*"))) if adapter else "none",
        "dtype": dtype_name(dtype) + (f", {args.teacher_bits} bits" if args.teacher_bits else ""),
    }
