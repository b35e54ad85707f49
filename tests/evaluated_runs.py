"""Evaluations of runs on disk, made without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from evaluation.metrics import Answer
from evaluation.results import Results, write_summary
from evaluation.scoring import Scores


def write_evaluation(
    run: Path,
    name: str,
    texts: Sequence[str],
    rouge_of_seed: Callable[[int], Sequence[float]],
    seeds: Sequence[int] = (10, 20),
    save_dir: Path | None = None,
    **settings,
) -> Path:
    """Of the run's checkpoint on a set: these answers under each seed, the reference is "red". Returns the run.

    save_dir: where the results go; default: as without --save-dir.
    """
    checkpoint = run / "epoch1_step2_loss1.0"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "config.json").write_text("{}")
    root = save_dir or run / "eval" / checkpoint.name
    of_set = {"set": name, "split": "valid", "rows": {"count": len(texts)}, "decoding": {"do_sample": True}}
    notes = {"model_path": str(checkpoint), "peft_path": None}
    results = Results(root, f"{name}-valid", {"weights": run.name, **of_set, **settings}, notes)
    for seed in seeds:
        values = list(rouge_of_seed(seed))
        answers = [Answer(f"Say red, {i}.", text, ("red",), tokens=2, ended=True) for i, text in enumerate(texts)]
        results.write(seed, answers, Scores({"rougeL": values}, {"rougeL": float(np.mean(values))}), 0)
    write_summary(root)
    return run
