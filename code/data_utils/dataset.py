"""Rows -> token ids, tokenised once and cached.

In: the rows of a split (`data_utils/sources.py`, `rows.py`). Out: `InstructionDataset`, token ids that the datasets
library maps into memory. Rows pass through in blocks, so that memory does not grow with their number.
"""

import hashlib
import inspect
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from arguments import DataArguments
from data_utils.batches import Example, ExampleTable
from data_utils.encoding import RowEncoder
from data_utils.prompts import PromptTemplate, prompt_template
from data_utils.rows import FORMS, Row, parse, read_rows
from data_utils.sources import Source, as_source, find_source, training_sources
from runtime.ranks import all_ranks, is_first_of_node

__all__ = ["InstructionDataset", "Row", "Source", "find_source", "load_data", "load_instruction_data", "read_rows"]

TOKENISATION = 4  # part of the cache's key: raise it when the same row would give other ids or columns
KEY_LENGTH = 24  # hexadecimal digits in the name of a cache folder
ROWS_PER_WORKER = 4000  # with fewer, another process costs more than it saves
EXAMPLES_AT_ONCE = 10_000  # whose keys are computed together

TEXTS = datasets.Features({"place": datasets.Value("string"), "text": datasets.Value("string")})
IDS = datasets.Features(
    {name: datasets.List(datasets.Value("int32")) for name in ("prompt_ids", "response_ids", "spans")}
    | {name: datasets.Value("bool") for name in ("prompt_cut", "response_cut", "unfinished")}
    | {name: datasets.Value("int32") for name in ("turns_cut", "learnt", "largest_id", "form")}
)


class InstructionDataset(ExampleTable):
    """The tokenised rows of a split.

    cut_prompts, cut_responses: how many were too long and are cut. cut_chats: how many lack their oldest turns.
    unfinished: how many responses came without their end, in rows with `"cut": true`.
    forms: how many rows were recognised as what.
    """

    def __init__(self, table: datasets.Dataset):
        columns = table.data
        self._prompts, self._responses, self._spans = (columns[c] for c in ("prompt_ids", "response_ids", "spans"))
        self.lengths = _list_lengths(self._prompts) + _list_lengths(self._responses)
        self.responses = columns["learnt"].to_numpy().astype(np.int64)
        self.cut_prompts = int(pc.sum(columns["prompt_cut"]).as_py())
        self.cut_responses = int(pc.sum(columns["response_cut"]).as_py())
        self.unfinished = int(pc.sum(columns["unfinished"]).as_py())
        self.cut_chats = int((columns["turns_cut"].to_numpy() > 0).sum())
        self.max_token_id = pc.max(columns["largest_id"]).as_py()
        counts = np.bincount(columns["form"].to_numpy())
        self.forms = {FORMS[form]: int(count) for form, count in enumerate(counts) if count}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Example:
        # Read from the mapped columns: the formatting of `datasets` takes ten times as long per row.
        columns = self._prompts, self._responses, self._spans
        return Example(*(column[index].values.to_numpy() for column in columns))

    def keys(self) -> list[bytes]:
        return [example.key for first in range(0, len(self), EXAMPLES_AT_ONCE) for example in self._block(first)]

    def _block(self, first: int) -> Iterator[Example]:
        columns = (column.slice(first, EXAMPLES_AT_ONCE) for column in (self._prompts, self._responses, self._spans))
        return (Example(*lists) for lists in zip(*map(_split, columns)))


def load_instruction_data(
    source: Source | Path, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int = -1
) -> InstructionDataset:
    """The tokenised rows of a split, from the cache if it has them.

    limit: number of first rows to use; -1: all. The template may set the tokenizer's EOS (`prompts.prompt_template`).
    Raises FileNotFoundError and ValueError as `read_rows` does.
    """
    source, template = as_source(source), prompt_template(args.prompt_template, tokenizer)
    folder = _cache_folder(source, template, tokenizer, args, limit)
    if args.force_process or not folder.is_dir():
        _tokenise(source, RowEncoder(tokenizer, template, args.max_prompt_length, args), folder, limit)
    return InstructionDataset(datasets.load_from_disk(str(folder)))


def load_train_and_dev(
    tokenizer: PreTrainedTokenizerBase, args: DataArguments
) -> tuple[InstructionDataset, InstructionDataset | None]:
    """train and dev of --data-dir (`sources.training_sources`). Raises as `load_instruction_data` does."""
    train, dev = training_sources(args)
    data = load_instruction_data(train, tokenizer, args, args.train_num)
    return data, None if dev is None else load_instruction_data(dev, tokenizer, args, args.dev_num)


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


def _tokenise(source: Source, encoder: RowEncoder, folder: Path, limit: int) -> None:
    """Writes the tokenised rows into `folder`, which appears under its name only when it is complete."""
    # A name per process, unlike those of runtime.atomic: several runs may tokenise the same rows at once.
    unfinished = folder.with_name(f"{folder.name}.{platform.node()}-{os.getpid()}.tmp")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder.parent, suffix=".tmp") as scratch:
        texts = _texts(source, limit, scratch)
        wanted = encoder.args.data_process_workers
        workers = max(1, min(os.cpu_count() or 1 if wanted == -1 else wanted, len(texts) // ROWS_PER_WORKER))
        texts.map(
            lambda batch: _encode(batch, encoder),
            batched=True,
            num_proc=workers if workers > 1 else None,
            remove_columns=list(TEXTS),
            features=IDS,
            new_fingerprint=folder.name[-KEY_LENGTH:],
        ).save_to_disk(str(unfinished))
    if encoder.args.force_process:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)  # another process was faster


def _texts(source: Source, limit: int, scratch: str) -> datasets.Dataset:
    """The rows as they stand in the data, on disk, so that several processes can share them."""
    try:
        return datasets.Dataset.from_generator(
            lambda: ({"place": place, "text": text} for place, text in source.rows(limit)),
            features=TEXTS,
            cache_dir=scratch,
            fingerprint="texts",
        )
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None


def _encode(batch: dict[str, list[str]], encoder: RowEncoder) -> dict[str, list]:
    rows = [parse(text, place, encoder.template) for place, text in zip(batch["place"], batch["text"])]
    columns: dict[str, list] = {name: [] for name in IDS}
    for row, encoded in zip(rows, encoder.examples(rows)):
        example = Example(encoded.prompt_ids, encoded.response_ids, encoded.spans)
        values = encoded._asdict() | {
            "learnt": example.predicted,
            "largest_id": max((*encoded.prompt_ids, *encoded.response_ids)),
            "form": row.form,
        }
        for name, value in values.items():
            columns[name].append(value)
    return columns


def _cache_folder(
    source: Source, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, args: DataArguments, limit: int
) -> Path:
    """The cache folder; a hash of everything that decides the token ids is part of its name."""
    key = hashlib.sha256(source.digest().encode())
    tokenizer("")  # resets truncation and padding that the tokenizer was saved with: they are part of `to_str`
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    written_by = (inspect.getsource(type(template)), template.identity, args.train_on)
    for part in (vocabulary, special, args.max_length, args.max_prompt_length, limit, written_by, TOKENISATION):
        key.update(repr(part).encode())
    root = Path(args.processed_data_dir or Path(datasets.config.HF_DATASETS_CACHE) / "instruction_data")
    root.mkdir(parents=True, exist_ok=True)
    return root / f"{source.label}-{key.hexdigest()[:KEY_LENGTH]}"


def _list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    return pc.list_value_length(column).to_numpy()


def _split(column: pa.ChunkedArray) -> list[np.ndarray]:
    """The lists of a column, as arrays."""
    return np.split(pc.list_flatten(column).to_numpy(), _list_lengths(column).cumsum()[:-1])
