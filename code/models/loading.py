"""Loads student, teacher and tokenizer from a folder or a hub id; makes, continues or merges LoRA adapters.

In: paths and a dtype. Out: Transformers or PEFT models on the CPU; the student trainable, the teacher frozen. Weights
come from safetensors only, and code that comes with a model runs only with --trust-remote-code.
"""

from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from arguments import ModelArguments, TeacherArguments
from models.files import check_adapter_path, check_model_path, check_revision, read_json
from models.folders import locate, run_arguments

disable_progress_bar()  # every rank would draw one


def load_tokenizer(path: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; if it has no PAD token, EOS is used. Raises ValueError if it has no EOS."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    except OSError as error:  # no such name on the hub, or no connection
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}; pass the folder of a model or a hub id") from None
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: its tokenizer has no EOS token, so no answer could end; set eos_token there")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # no harm: lengths tell where an example ends, not PAD
    return tokenizer


def load_student(args: ModelArguments, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """The student: all weights trainable, or (--peft lora) an adapter on frozen weights."""
    model = _load(
        args.model_path,
        dtype,
        attn_implementation=args.attn_implementation,
        trust_remote_code=args.trust_remote_code,
        revision=args.model_revision,
        **_quantised(args.model_bits, dtype),
    )
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.peft is None:
        return model
    # No fp32 adapter: DeepSpeed holds the fp32 master weights.
    if args.peft_path is not None:
        return PeftModel.from_pretrained(model, args.peft_path, is_trainable=True, autocast_adapter_dtype=False)
    return add_adapter(model, args)


def place(model: PreTrainedModel | PeftModel, device: torch.device | str) -> PreTrainedModel | PeftModel:
    """`model` on the device; a quantised one is there already, and refuses to be moved."""
    return model if getattr(model, "is_quantized", False) else model.to(device)


def _quantised(bits: str | None, dtype: torch.dtype) -> dict:
    """Options with which bitsandbytes holds the linear layers before the head in 4 or 8 bits, on this rank's GPU."""
    if bits is None:
        return {}
    if bits == "8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:  # as QLoRA: NormalFloat, its scales quantised again. Dettmers et al. 2023, arXiv 2305.14314
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": get_accelerator().current_device_name()}}


def add_adapter(model: PreTrainedModel, args: ModelArguments) -> PeftModel:
    """`model` with a new adapter, as the --peft-lora flags describe it."""
    names = args.peft_lora_target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.peft_lora_r,
        lora_alpha=args.peft_lora_alpha,
        lora_dropout=args.peft_lora_dropout,
        target_modules=names.split(",") if names and names != "all-linear" else names,
        revision=args.model_revision,  # of the base, so that loading the adapter finds the same one
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:  # unknown architecture, or a name that matches no module
        raise ValueError(f"--peft-lora-target-modules {names}: {error}; name the modules, or pass all-linear") from None


def load_teacher(
    args: TeacherArguments, dtype: torch.dtype, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The teacher, frozen and in evaluation mode, its adapter merged."""
    model = _load(
        args.teacher_model_path,
        dtype,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
        revision=args.teacher_revision,
        **_quantised(args.teacher_bits, dtype),
    )
    if args.teacher_peft_path is not None:
        model = merge_adapter(model, args.teacher_peft_path)
    return model.eval().requires_grad_(False)


def load_checkpoint(
    path: str, *, trust_remote_code: bool = False, revision: str | None = None, **options
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """`load_checkpoint_model`, which takes the options, and the tokenizer."""
    shared = {"trust_remote_code": trust_remote_code, "revision": revision}
    return load_checkpoint_model(path, **shared, **options), load_checkpoint_tokenizer(path, **shared)


def load_checkpoint_model(
    path: str,
    peft_path: str | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> PreTrainedModel:
    """A model to evaluate, any adapter merged.

    path: a full checkpoint, to which `peft_path` adds an adapter; or an adapter alone, whose config names its base.
    """
    path, peft_path, revision = check_checkpoint(path, peft_path, revision)
    model = _load(
        path, dtype, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, revision=revision
    )
    if peft_path is not None:
        model = merge_adapter(model, peft_path)
    return model.eval()


def load_checkpoint_tokenizer(
    path: str, peft_path: str | None = None, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: the adapter's, if it has one. Raises ValueError as `check_checkpoint` does."""
    path, peft_path, revision = check_checkpoint(path, peft_path, revision)
    if peft_path is not None and (Path(peft_path) / "tokenizer_config.json").is_file():
        path, revision = peft_path, None
    return load_tokenizer(path, trust_remote_code, revision)


def load_trained(
    path: str, peft_path: str | None, revision: str | None, dtype: torch.dtype, trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """What training had: the adapter beside the weights, not merged. path to revision: from `check_checkpoint`."""
    model = _load(path, dtype, trust_remote_code=trust_remote_code, revision=revision)
    return (model if peft_path is None else PeftModel.from_pretrained(model, peft_path)).eval()


def positions_of(config: PretrainedConfig) -> int | None:
    """How many tokens the model has positions for; None if it has no limit or names none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_checkpoint(
    path: str, peft_path: str | None = None, revision: str | None = None
) -> tuple[str, str | None, str | None]:
    """Model, adapter and the model's revision of a checkpoint to evaluate, as `load_checkpoint` takes it.

    Raises ValueError if a folder is missing or incomplete.
    """
    check_revision("--model-revision", revision, path)
    if peft_path is None and (Path(path) / "adapter_config.json").is_file():
        peft_path = path
        path, revision = adapter_base(path)
        try:
            check_model_path("its base", path)
        except ValueError as error:
            raise ValueError(f"{peft_path}: {error}; pass --model-path BASE --peft-path {peft_path}") from None
    check_model_path("--model-path", path)
    if peft_path is not None:
        check_adapter_path("--peft-path", peft_path)
    return path, peft_path, revision


def merge_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """`model` with the adapter merged into its weights; the logits are those of model and adapter.

    If input embedding and head are tied and the adapter is on one of them, it was not trained for the other. So the two
    are untied before merging, also in the config.
    """
    adapted = PeftModel.from_pretrained(model, path)
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        embedding, head = (end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends)
        if head is not None and head.weight is embedding.weight:
            head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
    return adapted.merge_and_unload()


def adapter_base(path: str) -> tuple[str, str | None]:
    """The base model that an adapter names, and its revision."""
    config = read_json("adapter", Path(path) / "adapter_config.json")
    base = config.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{path}: the adapter names no base; pass --model-path BASE --peft-path {path}")
    if not locate(base).exists():  # a hub id, or a folder seen from elsewhere: the run's args.json knows it too
        base = run_arguments(path).get("model_path", base) if Path(base).is_absolute() else base
    return str(locate(base)), config.get("revision")


def _load(path: str, dtype: torch.dtype | str, **options) -> PreTrainedModel:
    """Raises ValueError if a weight is missing, or is not in safetensors."""
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    except OSError as error:  # no such name on the hub, no connection, or no safetensors there
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}; pass the folder of a model or a hub id, with safetensors") from None
    if loaded["missing_keys"]:
        missing = sorted(loaded["missing_keys"])
        raise ValueError(
            f"{path}: no weights for {len(missing)} of the model's tensors ({', '.join(missing[:3])}), which would "
            "start at random; pass a complete causal language model"
        )
    return model
