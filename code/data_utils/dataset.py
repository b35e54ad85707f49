"""Instruction data on disk -> token ids, tokenised once and cached.

In: a jsonl file with `instruction`, `input`, `output` (text or a list of texts) and optionally `prompt`, or with the
field names of OTHER_NAMES. Out: `InstructionDataset`, memory-mapped token ids through the datasets library.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from arguments import DataArguments
from data_utils.batches import Example
from data_utils.prompts import alpaca_prompt, cut_prompts, encode_pairs
from runtime.ranks import all_ranks, is_first_of_node

TOKENISATION = 2  # part of the cache's key: raise it when the same row would give other ids
KEY_LENGTH = 24  # hexadecimal digits of a cache folder's name
ROWS_PER_WORKER = 4000  # below this a further process costs more than it saves


# Dolly's own rows (instruction, context, response), and those of TRL (prompt, completion).
OTHER_NAMES = (("input", "context"), ("output", "response"), ("output", "completion"))
# Chats: the field that holds the turns -> where a turn has its text.
CHATS = {"messages": "content", "conversations": "value"}
OTHER_FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}  # as the datasets library says


@dataclass(frozen=True)
class Row:
    """One line: its prompt, the responses that count as right (training uses the first), and where it stands."""

    prompt: str
    responses: tuple[str, ...]
    place: str = field(default="", compare=False)


class InstructionDataset:
    """Tokenised examples by index.

    lengths, responses: tokens of each example, and how many of them are the response's.
    cut_prompts, cut_responses: how many were too long.
    """

    def __init__(self, table: datasets.Dataset):
        columns = table.data
        self._prompts, self._responses = columns["prompt_ids"], columns["response_ids"]
        self.responses = _list_lengths(columns["response_ids"])
        self.lengths = _list_lengths(columns["prompt_ids"]) + self.responses
        self.cut_prompts = int(pc.sum(columns["prompt_cut"]).as_py())
        self.cut_responses = int(pc.sum(columns["response_cut"]).as_py())
        self.max_token_id = max(pc.max(pc.list_flatten(columns[c])).as_py() for c in ("prompt_ids", "response_ids"))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        # Straight from the mapped columns: through the data set's own formatting a row takes ten times as long.
        return Example(self._prompts[index].values.to_numpy(), self._responses[index].values.to_numpy())

    def keys(self) -> list[bytes]:
        """`Example.key` of every example."""
        columns = self._prompts, self._responses
        ids = [pc.list_flatten(column).to_numpy() for column in columns]
        ends = [_list_lengths(column).cumsum()[:-1] for column in columns]
        prompts, responses = (np.split(values, at) for values, at in zip(ids, ends))
        return [Example(prompt, response).key for prompt, response in zip(prompts, responses)]


def load_instruction_data(
    path: Path, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int = -1
) -> InstructionDataset:
    """The tokenised rows of a file, from the cache where they are there already.

    limit: first rows only; -1: all. Raises FileNotFoundError and ValueError as `read_rows` does.
    """
    folder = _cache_folder(path, tokenizer, args, limit)
    if args.force_process or not folder.is_dir():
        _tokenise(read_rows(path, limit), tokenizer, args, folder)
    return InstructionDataset(datasets.load_from_disk(str(folder)))


def load_train_and_dev(
    tokenizer: PreTrainedTokenizerBase, args: DataArguments
) -> tuple[InstructionDataset, InstructionDataset | None]:
    """train.jsonl and, where there is one, dev.jsonl of --data-dir. Raises as `load_instruction_data` does."""
    train_file, dev_file = (Path(args.data_dir) / f"{name}.jsonl" for name in ("train", "dev"))
    train = load_instruction_data(train_file, tokenizer, args, args.train_num)
    return train, load_instruction_data(dev_file, tokenizer, args, args.dev_num) if dev_file.is_file() else None


def read_rows(path: Path, limit: int = -1, empty_references: bool = False) -> list[Row]:
    """The rows of a jsonl file. Raises with file, line and remedy: FileNotFoundError, ValueError.

    empty_references: a row may lack an answer, as in evaluation, where it counts 0; its one response is then "".
    """
    check_rows_file(path)
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if limit != -1 and len(rows) == limit:
            break
        if line.strip():
            rows.append(_parse(line, f"{path}:{number}", empty_references))
    if not rows:
        raise ValueError(f"{path}: no rows; every line holds one JSON object with instruction, input and output")
    return rows


def check_rows_file(path: Path) -> None:
    """Raises FileNotFoundError if there is no such jsonl file, with what is there instead and how to convert it."""
    if path.is_file():
        return
    folder = path.parent
    if folder.is_file():
        raise FileNotFoundError(f"--data-dir {folder}: a file; pass the folder, and name the file {path.name} in it")
    near = sorted([*folder.glob("*"), *folder.glob("data/*")])  # as exports and as hub data sets lie
    others = [file for file in near if file.suffix in OTHER_FILES and file.is_file()]
    fitting = [file for file in others if file.name.startswith(path.stem)]
    if not fitting:
        found = ", ".join(str(file.relative_to(folder)) for file in others[:5])
        there = f" (found: {found})" if found else ""
        raise FileNotFoundError(f"--data-dir {folder}: no {path.name} there{there}; see data/README.md")
    kind, files = OTHER_FILES[fitting[0].suffix], [str(file) for file in fitting if file.suffix == fitting[0].suffix]
    program = f"from datasets import load_dataset as l; l({kind!r}, data_files={files})['train'].to_json({str(path)!r})"
    there = fitting[0].relative_to(folder)
    raise FileNotFoundError(f"--data-dir {folder}: no {path.name} there, but {there}; convert it: {_python(program)}")


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from None


def _parse(line: str, place: str, empty_references: bool) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # bad syntax, a number of too many digits, too many brackets
        raise ValueError(f"{place}: not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {type(row).__name__}, not an object; write {{'instruction': ..., 'output': ...}}")
    for name, other in OTHER_NAMES:
        if name not in row and other in row:
            row[name] = row[other]
    for name in ("instruction", "input", "prompt"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{place}: {name} is {type(row[name]).__name__}; write a string")
    prompt = row.get("prompt") or (row.get("instruction") and alpaca_prompt(row["instruction"], row.get("input") or ""))
    if not prompt:
        raise ValueError(f"{place}: {_chat(row) or 'neither instruction nor prompt; every row needs one of them'}")
    if "output" not in row:
        raise ValueError(f"{place}: no output; write the response as a string, or several as a list")
    responses = _responses(row["output"], place, empty_references)
    try:
        "".join((prompt, *responses)).encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair; tokenizers refuse it
        raise ValueError(f"{place}: not text ({error.reason}); write whole characters") from None
    return Row(prompt, responses, place)


def _responses(output: object, place: str, may_be_empty: bool) -> tuple[str, ...]:
    responses = output if isinstance(output, list) else [output]
    if may_be_empty and all(isinstance(response, str | None) for response in responses):
        return tuple(response for response in responses if response and response.strip()) or ("",)
    if not responses or not all(isinstance(response, str) and response.strip() for response in responses):
        raise ValueError(f"{place}: output is empty or not text; write a response or remove the row")
    return tuple(responses)


def _chat(row: dict) -> str | None:
    """What to do with a chat: a row here is one prompt and its response."""
    for name, text in CHATS.items():
        if name in row:
            program = (
                f"import json, sys; rows = (json.loads(line)[{name!r}] for line in sys.stdin); "
                f"[print(json.dumps(dict(instruction=r[-2][{text!r}], output=r[-1][{text!r}]))) for r in rows]"
            )
            return (
                f"a chat ({name}), where a row is one instruction and its output; to keep the last two turns of each: "
                f"{_python(program)} < chats.jsonl > train.jsonl"
            )
    return None


def _python(program: str) -> str:
    """A line for the shell; between double quotes, which read better, where nothing in it means anything there."""
    return f"python -c {shlex.quote(program)}" if set(program) & set('"$`\\!') else f'python -c "{program}"'


def _tokenise(rows: list[Row], tokenizer: PreTrainedTokenizerBase, args: DataArguments, folder: Path) -> None:
    """Writes the tokenised rows into `folder`, complete or not at all."""
    workers = os.cpu_count() or 1 if args.data_process_workers == -1 else args.data_process_workers
    workers = max(1, min(workers, len(rows) // ROWS_PER_WORKER))
    table = datasets.Dataset.from_dict(
        {"prompt": [row.prompt for row in rows], "response": [row.responses[0] for row in rows]}
    )
    unfinished = folder.with_name(f"{folder.name}.{platform.node()}-{os.getpid()}.tmp")
    datasets.disable_progress_bars()
    table.map(
        lambda batch: _encode(batch, tokenizer, args.max_length, args.max_prompt_length),
        batched=True,
        num_proc=workers if workers > 1 else None,
        remove_columns=["prompt", "response"],
        new_fingerprint=folder.name[-KEY_LENGTH:],
    ).save_to_disk(str(unfinished))
    if args.force_process:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)  # another process was faster, with the same rows


def _encode(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerBase, max_length: int, max_prompt_length: int
) -> dict[str, list]:
    whole_prompts, responses = encode_pairs(tokenizer, batch["prompt"], batch["response"])
    prompts = cut_prompts(tokenizer, whole_prompts, max_prompt_length)
    room = [max_length - len(ids) for ids in prompts]
    return {
        "prompt_ids": prompts,
        "response_ids": [ids[:fits] for ids, fits in zip(responses, room)],
        "prompt_cut": [len(ids) > max_prompt_length for ids in whole_prompts],
        "response_cut": [len(ids) > fits for ids, fits in zip(responses, room)],
    }


def _cache_folder(path: Path, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int) -> Path:
    """Named by everything that decides the token ids."""
    check_rows_file(path)
    key = hashlib.sha256(path.read_bytes())
    tokenizer("")  # drops the truncation and padding that a tokenizer may be stored with: they are part of its text
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    for part in (vocabulary, special, args.max_length, args.max_prompt_length, limit, TOKENISATION):
        key.update(repr(part).encode())
    root = Path(args.processed_data_dir or Path(datasets.config.HF_DATASETS_CACHE) / "instruction_data")
    root.mkdir(parents=True, exist_ok=True)
    return root / f"{path.parent.name}-{path.stem}-{key.hexdigest()[:KEY_LENGTH]}"


def _list_lengths(column) -> np.ndarray:
    return pc.list_value_length(column).to_numpy()


def load_data(
    tokenizer: PreTrainedTokenizerBase, args: DataArguments
) -> tuple[InstructionDataset, InstructionDataset | None]:
    """`load_train_and_dev` on every rank: the first process of each node tokenises, the others read its cache."""
    with all_ranks():
        if is_first_of_node():
            train, dev = load_train_and_dev(tokenizer, args)
    with all_ranks():
        if not is_first_of_node():
            train, dev = load_train_and_dev(tokenizer, replace(args, force_process=False))
    return train, dev
