"""What may differ between the run that left a state and the command that resumes it.

In: the settings in state.json and those of this start. Out: the harmless changes, for the log; or a ValueError that
names every flag that would make another run of it.
"""

from pathlib import Path

from arguments import TrainArguments
from data_utils.batches import Layout
from training.state import Resume

# Flags that decide what is written when, how the same sums are computed, or where the data are (contents are compared).
MAY_CHANGE = frozenset(
    "save_dir resume resume_interval max_bad_steps log_interval save_interval eval_interval keep_best_n_checkpoints "
    "eval_batch_size loss_chunk_mb compile_loss gradient_checkpointing attn_implementation packing data_dir "
    "data_split data_revision data_process_workers processed_data_dir force_process deepspeed_config precision "
    "global_batch_size teacher_cache model_type ckpt_name teacher_ckpt_name generation_cache_mb report_to probe_rows "
    "eval_at_start diagnose_every".split()
)
LENGTH_FLAGS = ("num_epochs", "total_iters")
# Flags that states of earlier versions lack, and the value with which those runs trained.
ADDED_FLAGS = {
    "prompt_template": "alpaca",
    "train_on": "all",
    "student_gen": False,
    "model_bits": None,
    "teacher_bits": None,
}
WITH_ADAPTIVE_ROWS = {"save_interval", "eval_interval"}  # decide when the dev loss moves the share of sampled steps


def check_layout(resume: Resume, layout: Layout, args: TrainArguments) -> None:
    """Records how the models take examples, known once they are loaded.

    Raises ValueError where a token budget makes the steps depend on the layout, and it has changed.
    """
    resume.settings["layout"] = layout
    before = resume.start["settings"]["layout"] if resume.start is not None else layout
    if args.tokens_per_micro_batch is not None and (before == "padded") != (layout == "padded"):
        raise ValueError(
            f"--save-dir {args.save_dir}: the run has taken its steps in {_kind(before)} batches, and would now "
            f"take {_kind(layout)} ones; --tokens-per-micro-batch {args.tokens_per_micro_batch} then makes other "
            "steps of the rows; start it with --packing and --attn-implementation as before, or start over with "
            "--resume never (what is there moves to previous/), or pass another --save-dir"
        )


def check_settings(start: dict, new: dict, args: TrainArguments, source: Path) -> list[str]:
    """The changes that do no harm, for the log. Raises ValueError that names the flags of those that would."""
    old, position = start["settings"], start["position"]
    old_flags = ADDED_FLAGS | old["flags"]
    pairs = {name: (value, new["flags"][name]) for name, value in old_flags.items() if name in new["flags"]}
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    allowed, adaptive = set(MAY_CHANGE), old_flags["student_gen"] and old_flags["gen_schedule"] == "adaptive"
    if adaptive:
        allowed -= WITH_ADAPTIVE_ROWS
    depends = args.lr_decay_style not in ("constant", "noam") or args.warmup_ratio or start["criterion_counts_steps"]
    if not depends and not (adaptive and old_flags["replay_ratio"] != "constant"):
        allowed |= set(LENGTH_FLAGS)  # nothing before the end depends on where the end is
    if position["finished"] and (longer := [name for name in LENGTH_FLAGS if name in changed]):
        raise ValueError(
            f"{_flag(longer[0])} {changed[longer[0]][1]}: the run in {source} is finished after {position['step']} "
            f"steps, and its optimiser state is gone; {extension(start, source)}"
        )
    wrong = [f"{_flag(name)} {now} (it has {was})" for name, (was, now) in changed.items() if name not in allowed]
    if old["deepspeed"] != new["deepspeed"]:
        wrong.append(f"--deepspeed_config {args.deepspeed_config} (the settings in it differ)")
    if old["world_size"] != new["world_size"]:
        wrong.append(f"{new['world_size']} processes (it has {old['world_size']})")
    if args.tokens_per_micro_batch and old["layout"] != "padded" and not new["flags"]["packing"]:
        wrong.append("--packing False (it has packed batches; a token budget makes other steps of padded ones)")
    other_data = {name for name in old["data"] if old["data"][name] != new["data"].get(name)}
    wrong += [f"--data-dir (another {name}.jsonl)" for name in ("train", "dev") if name in other_data]
    wrong += ["--prompt-template (the file has changed)"] if "template" in other_data else []
    if not position["finished"] and args.num_epochs < position["epoch"]:
        wrong.append(f"--num-epochs {args.num_epochs} (it is in epoch {position['epoch']})")
    if args.total_iters is not None and args.total_iters < position["step"]:
        wrong.append(f"--total-iters {args.total_iters} (it has taken {position['step']} steps)")
    if wrong:
        raise ValueError(
            f"--save-dir {args.save_dir}: the run in {source} cannot be continued with {', '.join(wrong)}; start it as "
            "before, or start over with --resume never (what is there moves to previous/), or pass another --save-dir "
            "(SAVE_DIR in front of a script)"
        )
    quiet = {"save_dir", "resume"}
    return [f"{_flag(name)} {was} -> {now}" for name, (was, now) in changed.items() if name not in quiet]


def extension(start: dict, source: Path) -> str:
    """How the model of a finished run is trained further."""
    lora = start["settings"]["flags"]["peft"] is not None
    flag, variable = ("--peft-path", "PEFT_PATH") if lora else ("--model-path", "CKPT_PATH")
    checkpoint = source / max(start["best"])[1]
    return (
        "to train further, start a new run, with a new optimiser and schedule, from its checkpoint: "
        f"{flag} {checkpoint} and another --save-dir ({variable} and SAVE_DIR in the scripts)"
    )


def _kind(layout: Layout) -> str:
    return "padded" if layout == "padded" else "packed"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
