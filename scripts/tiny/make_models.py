"""Make the tiny models of the sample data: a byte-level BPE tokenizer and two randomly initialised Llama models.

In:  ``data/sample/train.jsonl``, from which the tokenizer learns. The same file and seeds make the same models.
Out: ``OUT/teacher-init`` and ``OUT/student-init``, Hugging Face folders with the model (safetensors) and the tokenizer.
Run: ``python scripts/tiny/make_models.py [OUT=model_hub/tiny] [DATA=data/sample/train.jsonl]``
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 1536
MAX_LENGTH = 256
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
# The constant pieces of the Alpaca prompt are one token each, so that the template costs two or three tokens per row.
TASK = "Below is an instruction that describes a task"
WRITE = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
TEMPLATE = [
    f"{TASK}. {WRITE}",
    f"{TASK}, paired with an input that provides further context. {WRITE}",
    "\n\n### Input:\n",
    "\n\n### Response:\n",
]
# Weights start wider than the library's 0.02, about 1 / sqrt(hidden_size): narrow models then learn much sooner.
SHAPES = {
    "teacher-init": {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "initializer_range": 0.06},
    "student-init": {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3, "initializer_range": 0.1},
}
SEEDS = {"teacher-init": 1, "student-init": 2}


def texts(path: Path) -> Iterator[str]:
    """Yield every field of every row."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield from (value for value in json.loads(line).values() if value)


def make_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer: special tokens, bytes and merges, then the pieces of the prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(TEMPLATE),
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(path), trainer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in TEMPLATE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(name: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build one randomly initialised model."""
    torch.manual_seed(SEEDS[name])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **SHAPES[name],
    )
    return LlamaForCausalLM(config)


def main(out: str = "model_hub/tiny", data: str = "data/sample/train.jsonl") -> None:
    """Write both folders."""
    tokenizer = make_tokenizer(Path(data))
    for name in SHAPES:
        model = make_model(name, tokenizer)
        model.save_pretrained(Path(out) / name)
        tokenizer.save_pretrained(Path(out) / name)
        print(f"{Path(out) / name}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
