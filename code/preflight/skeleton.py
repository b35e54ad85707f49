"""Models without weights, built on the meta device: parameters are counted, and shapes compared with the files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from arguments import ModelArguments, TeacherArguments
from models.files import ADAPTER, read_json, read_shapes
from models.loading import add_adapter
from preflight.report import Report


@dataclass(frozen=True)
class ModelFacts:
    """A model as it will be loaded; counts are of parameters.

    linear: in the weights of linear layers before the head, which are those that can be quantised.
    head_rows, head_columns: shape of the head's weight, ids x hidden size.
    """

    path: str
    config: PretrainedConfig
    parameters: int
    trainable: int
    linear: int
    head_rows: int
    head_columns: int

    @property
    def text_config(self) -> PretrainedConfig:
        return self.config.get_text_config()


def student_facts(args: ModelArguments, report: Report) -> ModelFacts:
    """Raises ValueError if the files are not a model, or --peft-path does not fit it."""
    model = _skeleton("--model-path", args.model_path, args.trust_remote_code, args.model_revision)
    if args.peft_path is not None:
        model = check_adapter_fits("--peft-path", args.peft_path, model, args.model_path, report, trains=True)
    elif args.peft is not None:
        model = add_adapter(model, args)
    return _facts(args.model_path, model)


def teacher_facts(args: TeacherArguments, trust_remote_code: bool, report: Report) -> ModelFacts:
    """Raises ValueError if the files are not a model. An adapter that does not fit goes into the report as an error."""
    path = args.teacher_model_path
    model = _skeleton("--teacher-model-path", path, trust_remote_code, args.teacher_revision)
    facts = _facts(path, model.requires_grad_(False))  # without the adapter, which will be merged
    if args.teacher_peft_path is not None:
        with report.collect_errors():
            check_adapter_fits("--teacher-peft-path", args.teacher_peft_path, model, path, report)
    return facts


def check_adapter_fits(
    flag: str, path: str, base: PreTrainedModel, base_path: str, report: Report, trains: bool = False
) -> PeftModel:
    """`base`, without weights, wrapped by PEFT. Raises ValueError if the adapter's tensors do not fit.

    PEFT refuses other shapes only after the base is loaded, and initialises tensors that the adapter lacks.
    """
    named = read_json(flag, Path(path) / "adapter_config.json").get("base_model_name_or_path") or "no base"
    advice = f"it was made for {named}: pass that base, or an adapter of this one"
    try:
        config = PeftConfig.from_pretrained(path)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{flag} {path}: PEFT cannot read its adapter_config.json ({error}); copy it again") from None
    if config.peft_type != PeftType.LORA:
        raise ValueError(f"{flag} {path}: a {config.peft_type} adapter; pass a LoRA adapter")
    config.inference_mode = not trains
    try:
        model = PeftModel(base, config, low_cpu_mem_usage=True)
    except ValueError as error:  # the base has none of its target modules
        raise ValueError(f"{flag} {path}: does not fit {base_path} ({error}); {advice}") from None
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    found = read_shapes(flag, path, ADAPTER)
    wrong = [name for name, shape in expected.items() if found.get(name) != shape]
    wrong += [name for name in found if "lora_" in name and name not in expected]
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{flag} {path}: does not fit {base_path}: {len(wrong)} tensors differ, the first is {first}, which is "
            f"{_shape(found.get(first))} in the adapter and {_shape(expected.get(first))} for the base; {advice}"
        )
    if Path(named).name != Path(base_path).name:
        report.warn(
            f"{flag} {path}: made for {named}, used with {base_path}; the shapes fit, but if these are two models the "
            "adapter will not work as trained: pass the base it was made for"
        )
    return model


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))


def _skeleton(flag: str, path: str, trust_remote_code: bool, revision: str | None) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=revision)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason or "custom code" in reason:
            reason = "it comes with code of its own; read that code, then pass --trust-remote-code to run it"
        else:
            reason += "; pass the folder or the hub id of a causal language model"
        raise ValueError(f"{flag} {path}: {reason}") from None
    _check_shapes(flag, path, model)
    return model


def _check_shapes(flag: str, path: str, model: PreTrainedModel) -> None:
    """Raises ValueError if tensors have other shapes than config.json says. Missing tensors are found at loading."""
    if not Path(path).is_dir() or hasattr(model.config, "quantization_config"):
        return
    found = read_shapes(flag, path)
    for name, tensor in model.state_dict().items():
        if found.get(name, tuple(tensor.shape)) != tuple(tensor.shape):
            raise ValueError(
                f"{flag} {path}: {name} is {list(found[name])} in the weights and {list(tensor.shape)} by config.json; "
                "the folder mixes two models: copy it again"
            )


def _facts(path: str, model: PreTrainedModel | PeftModel) -> ModelFacts:
    parameters = list(model.parameters())
    head = model.get_output_embeddings().weight
    linear = (module.weight for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)))
    return ModelFacts(
        path=path,
        config=model.config,
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        linear=sum(weight.numel() for weight in linear if weight is not head and not weight.requires_grad),
        head_rows=head.shape[0],
        head_columns=head.shape[1],
    )
