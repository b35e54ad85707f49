"""What the benchmarks share: row lengths of Dolly, models of random weights, a process a case, a dated result."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Layers, hidden size, size of the MLP, heads, key-value heads.
SMOLLM2 = (30, 576, 1536, 9, 3)  # SmolLM2-135M
SMOLLM2_10L = (10, *SMOLLM2[1:])  # 10 of its layers

# Tokens of prompt and response of 64 rows of databricks-dolly-15k: the shape of real batches without the data. Each 16
# of them have the mean lengths of the whole (1,000 rows, SmolLM2's tokenizer): 151 tokens, 77 of the response.
DOLLY = [
    *((35, 58), (58, 40), (71, 41), (42, 22), (38, 66), (229, 30), (40, 92), (41, 117), (67, 58), (36, 179)),
    *((47, 125), (37, 21), (123, 94), (52, 167), (34, 99), (218, 35), (36, 476), (224, 31), (34, 54), (46, 3)),
    *((36, 163), (45, 76), (38, 19), (40, 19), (36, 21), (162, 44), (41, 200), (47, 14), (137, 24), (170, 5)),
    *((41, 64), (51, 30), (51, 349), (167, 25), (41, 65), (39, 33), (43, 16), (36, 75), (38, 12), (256, 15)),
    *((34, 84), (77, 162), (49, 103), (42, 76), (105, 54), (42, 6), (89, 50), (52, 112), (39, 22), (45, 48)),
    *((61, 46), (256, 95), (53, 28), (75, 178), (139, 56), (50, 61), (41, 61), (48, 24), (47, 22), (157, 111)),
    *((38, 66), (34, 84), (35, 230), (49, 103)),
]


def llama(shape: tuple[int, ...], vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Random weights; tied embeddings."""
    layers, hidden, mlp, heads, key_value_heads = shape
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def in_process(script: str, arguments: Sequence[str], environment: dict[str, str] | None = None) -> dict:
    """What `script` prints last, as JSON; in a process of its own its peak memory is its own."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, stdout=subprocess.PIPE, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def write_result(name: str, settings: dict, **found: object) -> None:
    """benchmarks/results/<date>-<name>.json; absolute paths in the settings become their last part."""
    path = Path(__file__).parent / f"results/{date.today()}-{name}.json"
    settings = settings | {"threads": torch.get_num_threads()}
    settings |= {key: Path(value).name for key, value in settings.items() if str(value).startswith("/")}
    path.write_text(json.dumps({"settings": settings, **found}, indent=2) + "\n")
