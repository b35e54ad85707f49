"""Memory that the families' recipes need on one 24 GB GPU, one 80 GB GPU and eight: an estimate; nothing is trained.

From the flags that each script would pass (a dry run) and the models' published shapes, without weights. Weights,
gradients, optimiser and teacher are counted by preflight. Activations under gradient checkpointing are the input of
each layer plus all that one layer saves for its backward, counted on a model of one and of two layers without weights;
attention is counted as a kernel that keeps no scores. RESERVE stands for the loss's chunks, the CUDA context and
fragmentation. The first of WAYS that has room for an example of --max-length is shown, with its largest batch.

    python benchmarks/bench_memory.py [FAMILY ...]        prints a markdown table

No family was run on a GPU to test it.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "code")]

from arguments import ModelArguments, TrainConfig, parse_train_arguments  # noqa: E402
from models.loading import add_adapter  # noqa: E402
from preflight.estimates import bytes_per_rank  # noqa: E402
from preflight.report import Report, size  # noqa: E402
from preflight.skeleton import ModelFacts, student_facts, teacher_facts  # noqa: E402
from runtime.deepspeed_settings import read_deepspeed_settings  # noqa: E402
from runtime.ranks import Ranks  # noqa: E402

GB = 10**9
RESERVE, USABLE = 3 * GB, 0.95
LARGEST_BATCH = 8  # examples of a micro-batch; also no more than the step's share of a GPU
DS = "configs/deepspeed/ds_config"


class Machine(NamedTuple):
    name: str
    gpus: int
    bytes_per_gpu: int


MACHINES = [Machine("1 x 24 GB", 1, 24 * GB), Machine("1 x 80 GB", 1, 80 * GB), Machine("8 x 80 GB", 8, 80 * GB)]
# From the simplest on: DeepSpeed file, and whether the teacher is read from a cache.
WAYS = [
    (f"{DS}_bf16.json", False),
    (f"{DS}_bf16.json", True),
    (f"{DS}_zero2_bf16.json", False),
    (f"{DS}_zero2_bf16.json", True),
    (f"{DS}_zero3_bf16.json", False),
    (f"{DS}_zero2_offload_bf16.json", True),
    (f"{DS}_zero3_offload_bf16.json", True),
]


def llama(layers: int, hidden: int, mlp: int, heads: int, key_values: int, vocabulary: int, **more) -> LlamaConfig:
    return LlamaConfig(
        **sizes(layers, hidden, mlp, heads, key_values, vocabulary), **{"tie_word_embeddings": False} | more
    )


def sizes(layers: int, hidden: int, mlp: int, heads: int, key_values: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
    }


TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
QWEN_7B = Qwen2Config(**sizes(28, 3584, 18944, 28, 4, 152064), **UNTIED)
LLAMA_7B = llama(32, 4096, 11008, 32, 32, 32000)
GEMMA = {"head_dim": 256, "sliding_window": 512}
SHAPES: dict[str, PretrainedConfig] = {
    "openai-community/gpt2-xl": GPT2Config(n_layer=48, n_embd=1600, n_head=25),
    "openai-community/gpt2": GPT2Config(),
    "meta-llama/Llama-2-7b-hf": LLAMA_7B,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": llama(22, 2048, 5632, 32, 4, 32000),
    "Qwen/Qwen2.5-7B": QWEN_7B,
    "Qwen/Qwen2.5-0.5B": Qwen2Config(**sizes(24, 896, 4864, 14, 2, 151936), **TIED),
    "Qwen/Qwen2-7B": QWEN_7B,
    "Qwen/Qwen2-1.5B": Qwen2Config(**sizes(28, 1536, 8960, 12, 2, 151936), **TIED),
    "Qwen/Qwen3-8B-Base": Qwen3Config(**sizes(36, 4096, 12288, 32, 8, 151936), head_dim=128, **UNTIED),
    "Qwen/Qwen3-0.6B-Base": Qwen3Config(**sizes(28, 1024, 3072, 16, 8, 151936), head_dim=128, **TIED),
    "openlm-research/open_llama_7b_v2": LLAMA_7B,
    "openlm-research/open_llama_3b_v2": llama(26, 3200, 8640, 32, 32, 32000),
    "allenai/OLMo-2-1124-7B": Olmo2Config(**sizes(32, 4096, 11008, 32, 32, 100352), **UNTIED),
    "allenai/OLMo-2-0425-1B": Olmo2Config(**sizes(16, 2048, 8192, 16, 16, 100352), **UNTIED),
    "google/gemma-3-1b-pt": Gemma3TextConfig(**sizes(26, 1152, 6912, 4, 1, 262144), **GEMMA),
    "google/gemma-3-270m": Gemma3TextConfig(**sizes(18, 640, 2048, 4, 1, 262144), **GEMMA),
    "meta-llama/Llama-3.2-3B": llama(28, 3072, 8192, 24, 8, 128256, head_dim=128, **TIED),
    "meta-llama/Llama-3.2-1B": llama(16, 2048, 8192, 32, 8, 128256, head_dim=64, **TIED),
    "HuggingFaceTB/SmolLM2-135M-Instruct": llama(30, 576, 1536, 9, 3, 49152, **TIED),
    "SmolLM2-18L": llama(18, 576, 1536, 9, 3, 49152, **TIED),
}
KD_SCRIPTS = {"gpt2": "kd_gpt2_base", "tinyllama": "kd_tinyllama"}
TEACHER_SCRIPTS = {"gpt2": "sft_gpt2_xlarge", "tinyllama": "sft_teacher_llama2"}


# ---- activations -----------------------------------------------------------------------------------------------------


class Attention(torch.autograd.Function):
    """Keeps queries, keys, values and output for its backward, as flash attention does. No arithmetic: shapes only."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def attention(module, query, key, value, attention_mask, **_):
    return Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("shapes_only", attention)


def saved_bytes(config: PretrainedConfig, layers: int, args: ModelArguments, tokens: int) -> int:
    """What `layers` layers keep of one row of that many tokens for their backward, beside parameters."""
    settings = config.to_dict() | {"num_hidden_layers": layers}
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:layers]
    of_layers = config.__class__.from_dict(settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(of_layers, attn_implementation="shapes_only", dtype=torch.bfloat16)
        if args.peft is not None:
            model = add_adapter(model, args)
        ids = torch.zeros(1, tokens, dtype=torch.long)
        known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        seen: dict[int, tuple[int, torch.Tensor]] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                seen[storage._cdata] = storage.nbytes(), tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()(input_ids=ids, use_cache=False, logits_to_keep=1)
    return sum(count for count, _ in seen.values())


def activation_bytes(config: PretrainedConfig, run: TrainConfig) -> int:
    """Under gradient checkpointing, for one example of --max-length."""
    tokens = run.data.max_length
    one_layer = saved_bytes(config, 2, run.model, tokens) - saved_bytes(config, 1, run.model, tokens)
    return config.num_hidden_layers * tokens * config.hidden_size * 2 + one_layer


# ---- a script on a machine -------------------------------------------------------------------------------------------


def flags_of(script: str) -> TrainConfig:
    environment = {**os.environ, "DRY_RUN": "1", "GPUS": "0", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    words = shlex.split(done.splitlines()[-1])
    return parse_train_arguments(words[words.index("code/distillation.py") + 1 :])


def hub_ids(family: str) -> tuple[str, str]:
    """Of teacher and student."""
    found = dict(re.findall(r"(?m)^(\w+)_hub=(\S+)", (ROOT / f"scripts/{family}/family.sh").read_text()))
    return found["teacher"], found.get("student", "SmolLM2-18L")


def facts(config: TrainConfig, student: str, teacher: str | None) -> tuple[ModelFacts, ModelFacts | None]:
    """The models as preflight sees them, from folders without tensors."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for hub_id in filter(None, (student, teacher)):
            paths[hub_id] = str(Path(folder) / hub_id.replace("/", "--"))
            SHAPES[hub_id].save_pretrained(paths[hub_id])
            save_file({}, Path(paths[hub_id]) / "model.safetensors")
        of_student = student_facts(replace(config.model, model_path=paths[student]), Report())
        if teacher is None:
            return of_student, None
        args = replace(config.teacher, teacher_model_path=paths[teacher], teacher_peft_path=None)
        return of_student, teacher_facts(args, False, Report())


def ways(
    config: TrainConfig, machine: Machine, models: tuple[ModelFacts, ModelFacts | None]
) -> Iterator[tuple[str, bool, dict[str, int], dict[str, int]]]:
    """DeepSpeed file, cache, bytes on the GPU and on the host of each way."""
    ranks = Ranks(machine.gpus, machine.gpus)
    for file, cache in WAYS:
        if machine.gpus == 1 and "zero" in file and "offload" not in file:  # nothing to shard
            continue
        cache = cache and models[1] is not None
        teacher_args = replace(config.teacher, teacher_cache="cache" if cache else None)
        tried = config._replace(train=replace(config.train, deepspeed_config=str(ROOT / file)), teacher=teacher_args)
        yield file, cache, *bytes_per_rank(tried, read_deepspeed_settings(tried.train), *models, ranks)


def cell(config: TrainConfig, machine: Machine, models: tuple[ModelFacts, ModelFacts | None], per_example: int) -> str:
    """The first way that fits, its largest batch, and what is counted."""
    most = min(LARGEST_BATCH, config.train.global_batch_size // machine.gpus)
    for file, cache, on_gpu, on_host in ways(config, machine, models):
        left = machine.bytes_per_gpu * USABLE - sum(on_gpu.values()) - RESERVE
        fitting = [n for n in (1, 2, 4, 8) if n * per_example <= left and n <= most]
        if fitting:
            name = Path(file).stem.removeprefix("ds_config_").removesuffix("bf16").rstrip("_") or "zero1"
            way = f"{name.replace('_', ' ')}{' + cache' if cache else ''}"
            host = f" + {size(sum(on_host.values()))} host" if on_host else ""
            return f"{way}, {fitting[-1]}: {size(sum(on_gpu.values()))}{host}"
    return "no"


def main(families: list[str]) -> None:
    header = ["family", "script", "`LR`", *(machine.name for machine in MACHINES), "activations per example"]
    print("".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header))), end="")
    folders = sorted(path.parent.name for path in ROOT.glob("scripts/*/family.sh"))
    for family in families or [folder for folder in folders if folder != "tiny"]:
        teacher, student = hub_ids(family)
        for script, trained, taught_by in (
            (TEACHER_SCRIPTS.get(family, "sft_teacher"), teacher, None),
            (KD_SCRIPTS.get(family, "kd_student"), student, teacher),
        ):
            config = flags_of(f"scripts/{family}/{script}.sh")
            models = facts(config, trained, taught_by)
            per_example = activation_bytes(SHAPES[trained], config)
            cells = [cell(config, machine, models, per_example) for machine in MACHINES]
            print(f"| {' | '.join([family, script, f'{config.train.lr:g}', *cells, size(per_example)])} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
