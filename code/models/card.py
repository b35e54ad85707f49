"""The model card of a checkpoint: README.md with YAML front matter, as the hub and its tools read it.

In: the flags of the run (args.json), the name of the checkpoint, scores and prompt template where known. Out:
markdown. Nothing in it depends on where the run lies: a folder is named by its own name, or by the hub id that it comes
from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from arguments import KDArguments
from data_utils.manifest import MANIFEST, read_manifest, sha256
from data_utils.prompts import PromptTemplate
from models.files import read_json
from models.folders import locate, run_arguments
from models.usage import usage
from runtime.log import counted_rows

CARD = "README.md"
TAG = "causal-lm-distillation"  # front matter with this tag is of a card made here
FURTHEST = 8  # models between a checkpoint and the hub id that it comes from
DEV_SCORES = {"loss": "dev NLL, nats per token", "rougel": "dev ROUGE-L"}  # as a checkpoint's name has them
# Flags that decide what is learnt, beside the objective's own.
SETTINGS = (
    "peft_lora_r peft_lora_alpha peft_lora_dropout peft_lora_target_modules model_bits teacher_bits teacher_dtype "
    "prompt_template max_length max_prompt_length train_num num_epochs total_iters batch_size "
    "gradient_accumulation_steps tokens_per_micro_batch lr lr_min lr_decay_style warmup_iters warmup_ratio "
    "weight_decay clip_grad seed"
).split()


@dataclass(frozen=True)
class SetScore:
    """A checkpoint's score on a test set, with its 95 % interval. rows: of the set. seeds: answers to each."""

    name: str
    metric: str
    mean: float
    low: float
    high: float
    rows: int
    seeds: int


@dataclass(frozen=True)
class Origin:
    """hub_id: of the model that a folder comes from, None if it is unknown. licence: the one that its card names."""

    hub_id: str | None
    licence: str | None


def origin(path: str) -> Origin:
    """Follows a model back to the hub: through runs, adapters, cut students and cards that were made here."""
    licence = None
    for _ in range(FURTHEST):
        folder = locate(path)
        if not folder.is_dir() and not _is_hub_id(path):
            break  # a folder that is gone
        metadata = _front_matter(folder / CARD if folder.is_dir() else try_to_load_from_cache(path, CARD))
        licence = licence or metadata.get("license")
        if not folder.is_dir():
            return Origin(path, licence)
        if TAG in (metadata.get("tags") or ()) and metadata.get("base_model"):
            return Origin(metadata["base_model"], licence)
        if (before := _before(folder)) is None:
            break
        path = before
    return Origin(None, licence)


def model_card(
    checkpoint: str,
    run: Mapping,
    base: str | None = None,
    scores: Sequence[SetScore] = (),
    adapter: bool = False,
    template: PromptTemplate | None = None,
) -> str:
    """The text of README.md.

    checkpoint: its name, which has its epoch, step and dev scores. run: args.json, empty if there is none. base: the
    model that training began from, where args.json does not name it. adapter: the folder holds a LoRA adapter alone.
    template: of its prompts, if that is known.
    """
    student = run.get("model_path") or base
    start = origin(student) if student else Origin(None, None)
    data = _data(run)
    objective = _objective(run)
    metadata = ModelCardData(
        base_model=start.hub_id,
        base_model_relation="adapter" if adapter else "finetune",
        license=start.licence,
        datasets=[data["hub_id"]] if data.get("hub_id") else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[TAG, *(["distillation", objective] if run.get("teacher_model_path") else ["fine-tuned"])],
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {_title(run, student, start)}",
        _summary(run, objective, checkpoint, start, student),
        *([] if template is None else ["## Usage\n\n" + usage(template, _answer_length(run), adapter)]),
        "## Scores\n\n" + _scores(checkpoint, scores),
        "## Training\n\n" + _table(("setting", "value"), _settings(run, objective)),
        "## Data\n\n" + _table(("", ""), data["rows"]),
    ]
    versions = run.get("run", {}).get("versions", {})
    if versions:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        sections.append(f"## Versions\n\n{listed}")
    return "\n\n".join(sections) + "\n"


def _front_matter(path: object) -> dict:
    """Of a card on the disk; empty where there is none, or it cannot be read."""
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return {}
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, YAMLError):  # another author's, and broken
        return {}


def _is_hub_id(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.startswith(("outputs/", "model_hub/"))


def _before(folder: Path) -> str | None:
    """The model that a folder was made from."""
    if (trained_from := run_arguments(str(folder)).get("model_path")) is not None:
        return trained_from
    for name, key in (("adapter_config.json", "base_model_name_or_path"), ("origin.json", "model")):
        if (folder / name).is_file():
            return read_json("card", folder / name).get(key)
    return None


def _objective(run: Mapping) -> str:
    return KDArguments(criterion=run.get("criterion"), kd_objective=run.get("kd_objective")).objective


def _name(path: str | None, label: str | None = None) -> str:
    """A model for readers: its hub id, else the label it has in the run, else its folder's name."""
    if path is None:
        return "unknown"
    return label or Path(path).name if locate(path).is_dir() or path.count("/") > 1 else path


def _title(run: Mapping, student: str | None, start: Origin) -> str:
    name = _name(start.hub_id or student, run.get("ckpt_name"))
    if not run.get("teacher_model_path"):
        return f"{name}, fine-tuned"
    return f"{name}, distilled from {_name(run['teacher_model_path'], run.get('teacher_ckpt_name'))}"


def _summary(run: Mapping, objective: str, checkpoint: str, start: Origin, student: str | None) -> str:
    began = start.hub_id or _name(student, run.get("ckpt_name"))
    lines = [f"Checkpoint `{checkpoint}` of a run that began from `{began}`."]
    if (teacher := run.get("teacher_model_path")) is not None:
        its_origin = origin(run.get("teacher_peft_path") or teacher).hub_id
        of = f" (from `{its_origin}`)" if its_origin not in (None, teacher) else ""
        lines.append(f"Teacher: `{_name(teacher, run.get('teacher_ckpt_name'))}`{of}. Objective: `{objective}`.")
    if run.get("model_bits"):
        lines.append(f"The adapter was trained on a base in {run['model_bits']} bits.")
    return " ".join(lines)


def _scores(checkpoint: str, scores: Sequence[SetScore]) -> str:
    values = dict(re.findall(r"_([a-z]+)(nan|inf|[\d.]+\d)", checkpoint))
    lines = [f"{title}: {values[name]}." for name, title in DEV_SCORES.items() if name in values]
    if scores:
        rows = [
            (of.name, of.metric, f"{of.mean:.2f} [{of.low:.2f}, {of.high:.2f}]", of.rows, of.seeds) for of in scores
        ]
        lines += ["", _table(("test set", "metric", "mean [95 % interval]", "rows", "seeds"), rows)]
    else:
        lines.append("Not evaluated on test sets when this card was written.")
    return "\n".join(lines)


def _answer_length(run: Mapping) -> int | None:
    """As evaluation has it."""
    return run["max_length"] - run["max_prompt_length"] if {"max_length", "max_prompt_length"} <= run.keys() else None


def _settings(run: Mapping, objective: str) -> list[tuple[str, object]]:
    """Objective, its hyper-parameters that were changed, and the flags in SETTINGS that were set."""
    rows: list[tuple[str, object]] = [("objective", objective)]
    for field in fields(KDArguments):
        value = run.get(field.name)
        named = field.name in ("kd_objective", "criterion", "loss_chunk_mb", "compile_loss")
        if value is not None and not named and (field.name.startswith("kd_") or value != field.default):
            rows.append((field.name, value))
    names = [name for name in SETTINGS if run.get("peft") or not name.startswith("peft_")]
    rows += [(name, run[name]) for name in names if run.get(name) not in (None, -1, False)]
    settings = run.get("deepspeed", {})
    precision = next((name for name in ("bf16", "fp16") if settings.get(name, {}).get("enabled")), "fp32")
    if run:
        stage = settings.get("zero_optimization", {}).get("stage", 0)
        rows += [("precision", precision), ("ZeRO stage", stage), ("ranks", run.get("run", {}).get("ranks", "?"))]
    return rows


def _data(run: Mapping) -> dict:
    """rows: of the table. hub_id: of the data set, if its manifest names one."""
    if not run.get("data_dir"):
        return {"rows": [("data", "unknown")]}
    folder = locate(str(run["data_dir"]))
    rows: list[tuple[str, object]] = [("folder", f"`{folder.name}`")]
    for split, forms in run.get("run", {}).get("rows", {}).items():
        counts = ", ".join(f"{count:,} of `{form}`" for form, count in forms.items())
        rows.append((f"{split}, used here", f"{counted_rows(sum(forms.values()))}: {counts}"))
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return {"rows": [*rows, (MANIFEST, "cannot be read")]}
    if manifest is None:
        return {"rows": [*rows, (MANIFEST, "none")]}
    source = manifest.get("source", {})
    rows += [(name, manifest[name]) for name in ("title", "licence") if manifest.get(name)]
    rows += [(name, source[name]) for name in ("page", "revision") if source.get(name)]
    rows += [
        (f"`{name}`", (f"{of['rows']} rows, " if "rows" in of else "") + f"sha256 `{of.get('sha256')}`")
        for name, of in manifest["files"].items()
    ]
    rows.append((f"`{MANIFEST}`", f"sha256 `{sha256(folder / MANIFEST)}`"))
    hub_id = re.fullmatch(r"https://huggingface\.co/datasets/([\w.-]+(?:/[\w.-]+)?)/?", str(source.get("page")))
    return {"rows": rows, "hub_id": hub_id and hub_id[1]}


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in cells)
