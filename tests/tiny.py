"""Tiny models, a tokenizer and rows, made in the test: `make_models(folder)`, `make_rows(count)`."""

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "red blue green small large quick slow old young river hill stone bread apple cloud song letter number".split()


def make_rows(count: int, seed: int = 0) -> list[dict]:
    """Rows of different lengths, some with an input, some with several right outputs."""
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))

    rows = []
    for i in range(count):
        output = text(2, 14)
        rows.append(
            {
                "instruction": f"Say {text(1, 6)}.",
                "input": text(3, 12) if i % 3 == 0 else "",
                "output": [output, text(2, 5)] if i % 5 == 0 else output,
            }
        )
    return rows


def tokenizer_texts() -> list[str]:
    """What tiny tokenizers are trained on, the prompt template included, so that prompts are short."""
    from data_utils.prompts import prompt_template

    alpaca = prompt_template("alpaca")
    return [alpaca.render(row["instruction"], row["input"]) + str(row["output"]) for row in make_rows(50, seed=1)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the rows' words, with distinct PAD and EOS and no BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(tokenizer_texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def llama(vocabulary: int, hidden: int, layers: int, tied: bool, seed: int, **config) -> LlamaForCausalLM:
    """A randomly initialised Llama with logits spread enough for losses to differ."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | config))


def make_models(folder: Path) -> None:
    """`teacher`, `student` and `student_tied` under `folder`."""
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    for name, model in {
        "teacher": llama(vocabulary, hidden=48, layers=3, tied=False, seed=0),
        "student": llama(vocabulary, hidden=32, layers=2, tied=False, seed=1),
        "student_tied": llama(vocabulary, hidden=32, layers=2, tied=True, seed=2),
    }.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
