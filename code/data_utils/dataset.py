"""Instruction data on disk -> token ids, tokenised once and cached.

In: a jsonl file, one JSON object per line with `instruction`, `input`, `output` (a text or a list of texts) and
optionally `prompt`, or with the field names of OTHER_NAMES. Out: `InstructionDataset`, token ids that the datasets
library maps into memory.
"""

import hashlib
import inspect
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
from data_utils.batches import Example, ExampleTable
from data_utils.prompts import PromptTemplate, cut_prompts, encode_pairs, prompt_template
from runtime.ranks import all_ranks, is_first_of_node

TOKENISATION = 2  # part of the cache's key: raise it when the same row would give other ids
KEY_LENGTH = 24  # hexadecimal digits in the name of a cache folder
ROWS_PER_WORKER = 4000  # with fewer, another process costs more than it saves

# Rows of Dolly as published (instruction, context, response) and of TRL (prompt, completion).
OTHER_NAMES = (("input", "context"), ("output", "response"), ("output", "completion"))
# Chats: the field with the turns -> the field of a turn with its text.
CHATS = {"messages": "content", "conversations": "value"}
# Files that the datasets library reads: ending -> name of its loader.
OTHER_FILES = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Row:
    """One line of a jsonl file.

    responses: all that count as right; training uses the first. place: FILE:LINE, for messages.
    cut: the response stops before its end, so no EOS follows.
    """

    prompt: str
    responses: tuple[str, ...]
    place: str = field(default="", compare=False)
    cut: bool = False


class InstructionDataset(ExampleTable):
    """The tokenised rows of a file. cut_prompts, cut_responses: how many were too long and are cut."""

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
        # Read from the mapped columns: the formatting of `datasets` takes ten times as long per row.
        return Example(self._prompts[index].values.to_numpy(), self._responses[index].values.to_numpy())

    def keys(self) -> list[bytes]:
        columns = self._prompts, self._responses
        ids = [pc.list_flatten(column).to_numpy() for column in columns]
        ends = [_list_lengths(column).cumsum()[:-1] for column in columns]
        prompts, responses = (np.split(values, at) for values, at in zip(ids, ends))
        return [Example(prompt, response).key for prompt, response in zip(prompts, responses)]


def load_instruction_data(
    path: Path, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int = -1
) -> InstructionDataset:
    """The tokenised rows of a file, from the cache if it has them.

    limit: number of first rows to use; -1: all. Raises FileNotFoundError and ValueError as `read_rows` does.
    """
    folder = _cache_folder(path, tokenizer, args, limit)
    if args.force_process or not folder.is_dir():
        _tokenise(read_rows(path, prompt_template(args.prompt_template), limit), tokenizer, args, folder)
    return InstructionDataset(datasets.load_from_disk(str(folder)))


def load_train_and_dev(
    tokenizer: PreTrainedTokenizerBase, args: DataArguments
) -> tuple[InstructionDataset, InstructionDataset | None]:
    """train.jsonl and, if it exists, dev.jsonl of --data-dir. Raises as `load_instruction_data` does."""
    train_file, dev_file = (Path(args.data_dir) / f"{name}.jsonl" for name in ("train", "dev"))
    train = load_instruction_data(train_file, tokenizer, args, args.train_num)
    return train, load_instruction_data(dev_file, tokenizer, args, args.dev_num) if dev_file.is_file() else None


def read_rows(path: Path, template: PromptTemplate, limit: int = -1, empty_references: bool = False) -> list[Row]:
    """The rows of a jsonl file. Raises FileNotFoundError or ValueError with file, line and remedy.

    template: for rows without a `prompt`. limit: number of first rows to use; -1: all.
    empty_references: allows rows without an answer, whose one response is then ""; an evaluation scores them 0.
    """
    check_rows_file(path)
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if limit != -1 and len(rows) == limit:
            break
        if line.strip():
            rows.append(_parse(line, f"{path}:{number}", template, empty_references))
    if not rows:
        raise ValueError(f"{path}: no rows; every line holds one JSON object with instruction, input and output")
    return rows


def check_rows_file(path: Path) -> None:
    """Raises FileNotFoundError if the jsonl file does not exist. It names what exists instead and how to convert it."""
    if path.is_file():
        return
    folder = path.parent
    if folder.is_file():
        raise FileNotFoundError(f"--data-dir {folder}: a file; pass the folder, and name the file {path.name} in it")
    near = sorted([*folder.glob("*"), *folder.glob("data/*")])  # data sets of the hub keep their files in data/
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


def _parse(line: str, place: str, template: PromptTemplate, empty_references: bool) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # bad syntax, a number of too many digits, too many brackets
        raise ValueError(f"{place}: not JSON ({error}); write one JSON object per line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: {type(row).__name__}, not an object; write {{'instruction': ..., 'output': ...}}")
    for name, other in OTHER_NAMES:
        if name not in row and other in row:
            row[name] = row[other]
    for name in ("instruction", "input", "prompt"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{place}: {name} is {type(row[name]).__name__}; write a string")
    prompt = row.get("prompt")
    if not prompt and row.get("instruction"):
        prompt = template.render(row["instruction"], row.get("input") or "")
    if not prompt:
        raise ValueError(f"{place}: {_chat(row) or 'neither instruction nor prompt; every row needs one of them'}")
    if "output" not in row:
        raise ValueError(f"{place}: no output; write the response as a string, or several as a list")
    responses = _responses(row["output"], place, empty_references)
    try:
        "".join((prompt, *responses)).encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair, which tokenizers refuse
        raise ValueError(f"{place}: not text ({error.reason}); write whole characters") from None
    return Row(prompt, responses, place, row.get("cut") is True)


def _responses(output: object, place: str, may_be_empty: bool) -> tuple[str, ...]:
    responses = output if isinstance(output, list) else [output]
    if may_be_empty and all(isinstance(response, str | None) for response in responses):
        return tuple(response for response in responses if response and response.strip()) or ("",)
    if not responses or not all(isinstance(response, str) and response.strip() for response in responses):
        raise ValueError(f"{place}: output is empty or not text; write a response or remove the row")
    return tuple(responses)


def _chat(row: dict) -> str | None:
    """What to do about a row that is a chat; None if it is not."""
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
    """A shell command. Double quotes read better, so they are used where the shell expands nothing between them."""
    return f"python -c {shlex.quote(program)}" if set(program) & set('"$`\\!') else f'python -c "{program}"'


def _tokenise(rows: list[Row], tokenizer: PreTrainedTokenizerBase, args: DataArguments, folder: Path) -> None:
    """Writes the tokenised rows into `folder`, which appears under its name only when it is complete."""
    workers = os.cpu_count() or 1 if args.data_process_workers == -1 else args.data_process_workers
    workers = max(1, min(workers, len(rows) // ROWS_PER_WORKER))
    table = datasets.Dataset.from_dict(
        {
            "prompt": [row.prompt for row in rows],
            "response": [row.responses[0] for row in rows],
            "cut": [row.cut for row in rows],
        }
    )
    # A name per process, unlike those of runtime.atomic: several runs may tokenise the same rows at once.
    unfinished = folder.with_name(f"{folder.name}.{platform.node()}-{os.getpid()}.tmp")
    datasets.disable_progress_bars()
    table.map(
        lambda batch: _encode(batch, tokenizer, args),
        batched=True,
        num_proc=workers if workers > 1 else None,
        remove_columns=["prompt", "response", "cut"],
        new_fingerprint=folder.name[-KEY_LENGTH:],
    ).save_to_disk(str(unfinished))
    if args.force_process:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)  # another process was faster


def _encode(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, args: DataArguments) -> dict[str, list]:
    whole_prompts, responses = encode_pairs(tokenizer, batch["prompt"], batch["response"], batch["cut"])
    ending = prompt_template(args.prompt_template).ending
    prompts = cut_prompts(tokenizer, whole_prompts, args.max_prompt_length, ending)
    room = [args.max_length - len(ids) for ids in prompts]
    return {
        "prompt_ids": prompts,
        "response_ids": [ids[:fits] for ids, fits in zip(responses, room)],
        "prompt_cut": [len(ids) > args.max_prompt_length for ids in whole_prompts],
        "response_cut": [len(ids) > fits for ids, fits in zip(responses, room)],
    }


def _cache_folder(path: Path, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int) -> Path:
    """The cache folder; a hash of everything that decides the token ids is part of its name."""
    check_rows_file(path)
    key = hashlib.sha256(path.read_bytes())
    tokenizer("")  # resets truncation and padding that the tokenizer was saved with: they are part of `to_str`
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    template = inspect.getsource(type(prompt_template(args.prompt_template)))
    for part in (vocabulary, special, args.max_length, args.max_prompt_length, limit, template, TOKENISATION):
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
