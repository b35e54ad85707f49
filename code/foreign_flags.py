"""Flags of other programs: what is accepted without effect, what has another name here, what is refused, and why."""

# Reference flags without a meaning here: what they asked for always happens, or never does, whatever their value.
IGNORED_FLAGS = frozenset(
    "base-path model-type teacher-model-type n-gpu n-nodes ckpt-name teacher-ckpt-name peft-name teacher-peft-name "
    "type task do-train do-valid do-eval teacher-model-fp16 model-dtype teacher-model-dtype mid-log-num "
    "save-additional-suffix save-rollout num-workers min-prompt-length json-data bin-data txt-data prompt-type "
    "eval-ppl eval-rw only-prompt seed-order seed-data seed-ppo seed-lm attn-dtype xops-attn loss-scale model-parallel "
    "model-parallel-size no-value dropout-path-rate force-process-demo gen-num eb-sample-times data-names peft "
    "eval-gen data-process-workers eval-tqdm report-logits only-save-projector debug gen-num-beams".split()
)
# Values of ignored flags that would have had an effect: a pattern of the others, and what to use instead.
HARMLESS_VALUES = {
    "type": (
        r"(?!adaptive|mixed).*",
        "choose the rows with --student-gen --gen-schedule adaptive (short: --distillm) or mixed (--gkd), and the "
        "objective with --kd-objective",
    ),
    "gen-num-beams": ("1", "training answers are sampled, without beams; pass 1, or drop the flag"),
}
LAUNCHER_FLAGS = frozenset(("deepspeed", "local-rank", "deepscale", "deepspeed-config"))
# Flags of other trainers (Transformers, TRL, LLaMA-Factory, Axolotl) under the names that they have here.
RENAMED_FLAGS = {
    **dict.fromkeys(("model-name-or-path", "model-name", "model", "pretrained-model-name-or-path"), "model-path"),
    "teacher-model-name-or-path": "teacher-model-path",
    **dict.fromkeys(("dataset", "dataset-name", "dataset-path", "train-file", "data-path", "data"), "data-dir"),
    **dict.fromkeys(("output-dir", "output", "out-dir"), "save-dir"),
    "resume-from-checkpoint": "resume",
    "overwrite-output-dir": "resume never",
    "num-train-epochs": "num-epochs",
    "max-steps": "total-iters",
    **dict.fromkeys(("per-device-train-batch-size", "train-batch-size", "micro-batch-size"), "batch-size"),
    **dict.fromkeys(("per-device-eval-batch-size", "per-gpu-eval-batch-size"), "eval-batch-size"),
    "grad-accum": "gradient-accumulation-steps",
    "learning-rate": "lr",
    "min-lr": "lr-min",
    **dict.fromkeys(("lr-scheduler-type", "lr-scheduler"), "lr-decay-style"),
    "warmup-steps": "warmup-iters",
    "max-grad-norm": "clip-grad",
    "logging-steps": "log-interval",
    **dict.fromkeys(("eval-steps", "eval-strategy", "evaluation-strategy"), "eval-interval"),
    **dict.fromkeys(("save-steps", "save-strategy"), "save-interval"),
    "save-total-limit": "keep-best-n-checkpoints",
    "max-train-samples": "train-num",
    **dict.fromkeys(("max-eval-samples", "max-samples", "limit"), "dev-num"),
    **dict.fromkeys(("max-seq-length", "max-seq-len", "model-max-length", "cutoff-len", "block-size"), "max-length"),
    "predict-with-generate": "eval-gen",
    **dict.fromkeys(("use-peft", "use-lora"), "peft lora"),
    **dict.fromkeys(("lora-r", "lora-rank"), "peft-lora-r"),
    "lora-alpha": "peft-lora-alpha",
    "lora-dropout": "peft-lora-dropout",
    **dict.fromkeys(("lora-target-modules", "lora-target"), "peft-lora-target-modules"),
    **dict.fromkeys(("adapter", "adapter-path", "adapter-name-or-path", "lora-path"), "peft-path"),
    **dict.fromkeys(("use-flash-attention-2", "use-flash-attn", "flash-attn"), "attn-implementation flash_attention_2"),
    "loss-type": "kd-objective",
    "skew-alpha": "skew-lambda",
    "beta": "js-beta",
    **{f"load-in-{bits}bit": f"model-bits {bits}" for bits in (4, 8)},
    "torch-dtype": "dtype",
    **{short: f"dtype {long}" for short, long in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"))},
}
# Flags that would change the run if they were ignored: refused, with what to use instead.
REPLACED_FLAGS = {
    "train-ratio": "pass the number of rows with --train-num",
    "dev-ratio": "pass the number of rows with --dev-num",
    "lr-decay-iters": "the schedule always ends at the last step; shorten the run with --total-iters",
    "train-iters-per-epoch": "an epoch is one pass over the data; shorten the run with --total-iters or --train-num",
    "scheduler-name": "choose the schedule with --lr-decay-style",
    "deepscale-config": "pass the file with --deepspeed_config",
    "load": "start from a checkpoint with --model-path",
    "lm-data-dir": "only instruction data is trained on; see --data-dir",
    "prompt-data-dir": "only instruction data is trained on; see --data-dir",
    "pretrain-data-dir": "only instruction data is trained on; see --data-dir",
    "teacher-temperature": "--kd-temperature divides the logits of both models",
    "label-smoothing": "the labels' share of the loss is plain cross-entropy",
    "push-to-hub": "bash scripts/export.sh uploads a finished run; see docs/export.md",
    "eval-gen-repeat-times": "one pass of dev answers ranks a checkpoint; code/evaluate.py takes several --seed",
    **{
        name: f"pass --precision {value} (PRECISION={value} in front of a script), or --deepspeed_config FILE "
        "(configs/deepspeed)"
        for name, value in {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "tf32": "fp32"}.items()
    },
    **dict.fromkeys(
        ("logging-dir", "run-name"), "logs are in --save-dir, and trackers (--report-to) show its name; drop the flag"
    ),
    **dict.fromkeys(("optim", "adam-beta1", "adam-beta2", "adam-epsilon"), "the optimiser is PyTorch's AdamW"),
    **dict.fromkeys(
        ("projector-config-path", "projector-path", "projector-lr", "pretrained-projector", "pretrained-projector-lr"),
        "objectives that need a projector are not part of this framework",
    ),
    **dict.fromkeys(
        (
            "vocab-alignment-path",
            "teacher-to-student-token-mapping",
            "teacher-to-student-id-mapping",
            "student-to-teacher-token-mapping",
            "student-to-teacher-id-mapping",
        ),
        "teacher and student share a vocabulary, which is checked at the start",
    ),
}
