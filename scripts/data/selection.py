"""Which rows of a set count, step by step, and how they are split; each step counts and lists what it drops."""

import argparse
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sources.base import BadRow, Example

LISTED = 10  # dropped rows per step that the manifest names


class Selection:
    """The examples that are left, and a record of each step: rows dropped, rows left, the first ones dropped."""

    def __init__(self, items: Iterable[Example | BadRow]):
        self.examples = list(items)
        self.steps: list[dict[str, Any]] = [{"step": "read", "rows": len(self.examples)}]

    def drop(self, step: str, reasons: Iterable[str | None]) -> None:
        """Drops each example for which there is a reason."""
        pairs = list(zip(self.examples, reasons))
        dropped = [f"{example.place}: {reason}" for example, reason in pairs if reason]
        self.examples = [example for example, reason in pairs if not reason]
        record = {"step": step, "dropped": len(dropped), "rows": len(self.examples)}
        self.steps.append(record | ({"first": dropped[:LISTED]} if dropped else {}))

    def sample(self, number: int, seed: int) -> None:
        """Keeps that many examples, or all, in an order that the seed decides."""
        before = len(self.examples)
        self.examples = shuffled(self.examples, seed)[:number]
        self.steps.append({"step": "not drawn", "dropped": before - len(self.examples), "rows": len(self.examples)})


def select(items: Iterable[Example | BadRow], tokenizer: Any | None, args: argparse.Namespace) -> Selection:
    """The examples that count."""
    selection = Selection(items)
    selection.drop("bad", [item.reason if isinstance(item, BadRow) else None for item in selection.examples])
    selection.drop("empty", map(emptiness, selection.examples))
    selection.drop("duplicate", repetitions(selection.examples))
    if args.min_response_tokens:
        selection.drop("too short", too_short(selection.examples, tokenizer, args.min_response_tokens))
    if args.max_prompt_length or args.max_length:
        selection.drop("too long", too_long(selection.examples, tokenizer, args))
    if args.sample:
        selection.sample(args.sample, args.seed)
    return selection


def emptiness(example: Example) -> str | None:
    if not example.instruction:
        return "no instruction"
    return None if example.references else "no response"


def repetitions(examples: Sequence[Example]) -> list[str | None]:
    """A repetition could be trained on in one split and tested in another."""
    first: dict[tuple, str] = {}
    reasons = []
    for example in examples:
        key = (example.instruction, example.input, example.references)
        reasons.append(f"repeats {first[key]}" if key in first else None)
        first.setdefault(key, example.place)
    return reasons


def load_tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer  # seconds to import

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer {path}: {error}") from error


def too_short(examples: Sequence[Example], tokenizer: Any | None, limit: int) -> Iterator[str | None]:
    """By the first reference, in words, or in tokens if there is a tokenizer."""
    for example in examples:
        text = example.references[0]
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer else text.split())
        yield f"response of {length} {'tokens' if tokenizer else 'words'}" if length < limit else None


def too_long(examples: Sequence[Example], tokenizer: Any, args: argparse.Namespace) -> Iterator[str | None]:
    """Tokens as in training: the prompt in the Alpaca template, the first reference with EOS."""
    from data_utils.prompts import alpaca_prompt, encode_pairs  # imports transformers

    prompts = [alpaca_prompt(example.instruction, example.input) for example in examples]
    for prompt, response in zip(*encode_pairs(tokenizer, prompts, [example.references[0] for example in examples])):
        length, total = len(prompt), len(prompt) + len(response)
        if args.max_prompt_length and length > args.max_prompt_length:
            yield f"prompt of {length} tokens"
        elif args.max_length and total > args.max_length:
            yield f"{total} tokens"
        else:
            yield None


def split(examples: Sequence[Example], args: argparse.Namespace) -> dict[str, Sequence[Example]]:
    """All are `valid`; with --dev-num, disjoint `valid`, `dev` and `train` (the rest) as the seed decides.

    Raises ValueError when nothing is left.
    """
    if not examples:
        raise ValueError("no row is left; the steps above say why")
    dev_num, valid_num = args.dev_num, args.valid_num
    if not dev_num:
        return {"valid": examples}
    if len(examples) <= dev_num + valid_num:
        raise ValueError(
            f"--dev-num {dev_num} --valid-num {valid_num}: only {len(examples)} examples, none is left for training; "
            "pass smaller numbers"
        )
    rows = shuffled(examples, args.seed)
    return {
        "valid": rows[:valid_num],
        "dev": rows[valid_num : valid_num + dev_num],
        "train": rows[valid_num + dev_num :],
    }


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    examples = list(examples)
    random.Random(seed).shuffle(examples)
    return examples
