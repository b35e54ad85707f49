"""Student, teacher and tokenizer from a folder or a hub id; LoRA adapters new, continued or merged.

In: paths and a dtype. Out: Transformers or PEFT models on the CPU; the student trainable, the teacher frozen. Weights
come from safetensors alone, and code that comes with a model runs only where --trust-remote-code asks for it.
"""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from arguments import ModelArguments, TeacherArguments
from models.files import check_adapter_path, check_model_path, check_revision, read_json
from models.folders import locate, run_arguments

disable_progress_bar()  # loading and saving report themselves, and every rank would draw a bar


def load_tokenizer(path: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError if it has no EOS; without PAD, EOS fills the place of pads."""
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: its tokenizer has no EOS token, so no answer could end; set eos_token there")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever fills space: lengths say where an example ends
    return tokenizer


def load_student(args: ModelArguments, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """The student: all weights trainable, or (--peft lora) an adapter on frozen weights."""
    model = _load(args.model_path, dtype, args.attn_implementation, args.trust_remote_code, args.model_revision)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if args.peft is None:
        return model
    # The adapter keeps the model's dtype: DeepSpeed holds the fp32 master weights.
    if args.peft_path is not None:
        return PeftModel.from_pretrained(model, args.peft_path, is_trainable=True, autocast_adapter_dtype=False)
    return add_adapter(model, args)


def add_adapter(model: PreTrainedModel, args: ModelArguments) -> PeftModel:
    """`model` with a new adapter, as the flags describe it."""
    names = args.peft_lora_target_modules
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=args.peft_lora_r,
        lora_alpha=args.peft_lora_alpha,
        lora_dropout=args.peft_lora_dropout,
        target_modules=names.split(",") if names and names != "all-linear" else names,
        revision=args.model_revision,  # of the base: whoever loads the adapter gets the same one
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:  # PEFT does not know the architecture, or a name matches nothing
        raise ValueError(f"--peft-lora-target-modules {names}: {error}; name the modules, or pass all-linear") from None


def load_teacher(
    args: TeacherArguments, dtype: torch.dtype, attn_implementation: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The teacher, in evaluation mode, without gradients, its adapter merged."""
    model = _load(args.teacher_model_path, dtype, attn_implementation, trust_remote_code, args.teacher_revision)
    if args.teacher_peft_path is not None:
        model = merge_adapter(model, args.teacher_peft_path)
    return model.eval().requires_grad_(False)


def load_checkpoint(
    path: str,
    peft_path: str | None = None,
    dtype: torch.dtype | str = "auto",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model to evaluate, its adapter merged: a full checkpoint, an adapter (its base from its own config) or both."""
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
    model = _load(path, dtype, attn_implementation, trust_remote_code, revision)
    tokenizer_path = path
    if peft_path is not None:
        model = merge_adapter(model, peft_path)
        if (Path(peft_path) / "tokenizer_config.json").is_file():
            tokenizer_path, revision = peft_path, None
    return model.eval(), load_tokenizer(tokenizer_path, trust_remote_code, revision)


def merge_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """`model` with the adapter in its weights, which gives the logits of the two together.

    Input embedding and head may be one weight. An adapter on either trained that one alone, so they part first: the
    merged model has two, and its config says so.
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
    if not locate(base).exists():  # a hub id, or a folder that has moved: as the run was given it, then
        base = run_arguments(path).get("model_path", base) if Path(base).is_absolute() else base
    return str(locate(base)), config.get("revision")


def _load(
    path: str,
    dtype: torch.dtype | str,
    attn_implementation: str | None,
    trust_remote_code: bool,
    revision: str | None,
) -> PreTrainedModel:
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            revision=revision,
            use_safetensors=True,
            output_loading_info=True,
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
