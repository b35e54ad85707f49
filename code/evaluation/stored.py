"""The evaluations of several runs on disk that may be compared: equal settings but for the weights.

In: runs, checkpoints or folders of results. Out: `Comparable`, with one score per example, the mean over its seeds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.defaults import results_folder
from evaluation.differences import differences, without_weights
from evaluation.results import NOTES, read_answers, read_metrics
from models.folders import find_checkpoint, locate, short_names

SET_SETTINGS = ("set", "rows")  # what differs between the sets of an evaluation


@dataclass(frozen=True)
class Stored:
    """An evaluation on disk. seeds: those that are complete. made: when the latest of them was."""

    folder: Path
    settings: Mapping
    seeds: list[int]
    made: str

    @property
    def set(self) -> str:
        return self.settings["set"]


@dataclass(frozen=True)
class Comparable:
    """scores: per example, by run and set. evaluations: where they come from. notes: what was left out, and why."""

    scores: dict[str, dict[str, np.ndarray]]
    evaluations: dict[str, dict[str, Stored]]
    notes: list[str]


def named_runs(paths: Sequence[str], teacher: str | None = None) -> tuple[dict[str, str], str | None]:
    """The checkpoints by short names, the teacher's last, and the teacher's name. Raises ValueError."""
    found = [find_checkpoint("RUN_OR_CKPT", path) for path in paths]
    if teacher is not None:
        found.append(find_checkpoint("--teacher", teacher))
    names = short_names(found)
    if len(set(names)) < len(names):
        raise ValueError(f"RUN_OR_CKPT {' '.join(found)}: one is named twice; name each once, the teacher by --teacher")
    return dict(zip(names, found)), None if teacher is None else names[-1]


def read_comparable(runs: Mapping[str, str], metric: str, results: str | None = None) -> Comparable:
    """runs: by a short name the run, the checkpoint, or the folder of its results. results: as for `find_stored`.

    Raises ValueError where no evaluation is common to all, and says what differs.
    """
    chosen, notes = common_evaluations(runs, results)
    scores: dict[str, dict[str, np.ndarray]] = {run: {} for run in runs}
    for name, of_runs in chosen.items():
        seeds = common_seeds(of_runs)
        if not seeds:
            notes.append(f"{name}: no seed in common, so each run's own seeds count")
        for run, evaluation in of_runs.items():
            scores[run][name] = example_scores(evaluation, seeds or evaluation.seeds, metric)
    evaluations = {run: {name: of_runs[run] for name, of_runs in chosen.items()} for run in runs}
    return Comparable(scores, evaluations, notes)


def common_evaluations(
    runs: Mapping[str, str], results: str | None = None
) -> tuple[dict[str, dict[str, Stored]], list[str]]:
    """By set, the evaluation of each run; and notes on what was left out. Raises ValueError as `read_comparable`."""
    return _common({run: find_stored(path, results) for run, path in runs.items()})


def common_seeds(of_runs: Mapping[str, Stored]) -> list[int]:
    return sorted(set.intersection(*(set(evaluation.seeds) for evaluation in of_runs.values())))


def find_stored(path: str, results: str | None = None) -> list[Stored]:
    """The evaluations of a run, a checkpoint or a folder of results, the latest last. Raises ValueError.

    results: the folder that they were written to by --save-dir, perhaps with those of other checkpoints.
    """
    is_results = results is None and (Path(path) / "summary.json").is_file()
    checkpoint = path if is_results else find_checkpoint("RUN_OR_CKPT", path)
    root = Path(path) if is_results else locate(results) if results is not None else results_folder(checkpoint)
    found = []
    for file in root.glob("*/*/settings.json"):
        record = json.loads(file.read_text())
        if results is not None and not _same_path(record["peft_path"] or record["model_path"], checkpoint):
            continue
        if metrics := read_metrics(file.parent):
            settings = {name: value for name, value in record.items() if name not in NOTES}
            seeds = [of_seed["seed"] for of_seed in metrics]
            found.append(Stored(file.parent, settings, seeds, max(of_seed["made"] for of_seed in metrics)))
    if not found:
        raise ValueError(
            f"RUN_OR_CKPT {path}: no evaluation of it in {root}; bash scripts/eval/run_eval.sh {path}, or name the "
            "folder with --results if it was evaluated with --save-dir"
        )
    if is_results and len({json.dumps(evaluation.settings["weights"]) for evaluation in found}) > 1:
        raise ValueError(
            f"RUN_OR_CKPT {path}: holds evaluations of several checkpoints; pass the checkpoints, and --results {path}"
        )
    return sorted(found, key=lambda evaluation: evaluation.made)


def _same_path(first: str, second: str) -> bool:
    """Also where one is relative to the repository, as the scripts pass it."""
    return locate(first).resolve() == locate(second).resolve()


def example_scores(evaluation: Stored, seeds: Sequence[int], metric: str) -> np.ndarray:
    """One score per example, the mean over the seeds. Raises ValueError if there is no such score."""
    of_seeds = [read_answers(evaluation.folder, seed) for seed in seeds]
    for seed, records in zip(seeds, of_seeds):
        if any(metric not in record for record in records):
            known = ", ".join(name for name, value in records[0].items() if isinstance(value, float))
            raise ValueError(
                f"--metric {metric}: {evaluation.folder}/seed{seed} has only {known}; the same evaluation again adds "
                "missing metrics (--metrics: slow ones)"
            )
    return np.mean([[record[metric] for record in records] for records in of_seeds], axis=0)


def _common(stored: Mapping[str, list[Stored]]) -> tuple[dict[str, dict[str, Stored]], list[str]]:
    """By set, the evaluation of each run; and notes. Raises ValueError if there is none.

    Of several ways to evaluate: the one with most sets, then the latest.
    """
    by_settings = {
        run: {_key(found.settings, ("weights",)): found for found in of_run} for run, of_run in stored.items()
    }
    first, *others = by_settings.values()
    common = [key for key in first if all(key in other for other in others)]
    ways: dict[str, dict[str, dict[str, Stored]]] = {}
    for key in sorted(common, key=lambda key: first[key].made):
        way = ways.setdefault(_key(first[key].settings, ("weights", *SET_SETTINGS)), {})
        way[first[key].set] = {run: of_run[key] for run, of_run in by_settings.items()}  # the latest of a set wins
    if not ways:
        raise ValueError("\n".join(["no evaluation with the same settings is common to all runs", *_reasons(stored)]))
    chosen = max(
        ways.values(), key=lambda way: (len(way), max(found.made for of in way.values() for found in of.values()))
    )
    notes = [f"not compared: {reason}" for reason in _reasons(stored, chosen)]
    if len(ways) > 1:
        ours = without_weights(next(iter(next(iter(chosen.values())).values())).settings)
        notes.append(f"{len(ways) - 1} other ways to evaluate are common to all runs; compared is {ours['decoding']}")
    return chosen, notes


def _key(settings: Mapping, leave_out: Sequence[str]) -> str:
    return json.dumps({name: value for name, value in settings.items() if name not in leave_out}, sort_keys=True)


def _reasons(stored: Mapping[str, list[Stored]], compared: Sequence[str] | Mapping = ()) -> list[str]:
    """Why the sets that are not compared are not: no evaluation, or what differs between the latest ones."""
    latest = {run: {found.set: found for found in of_run} for run, of_run in stored.items()}
    reasons = []
    for name in dict.fromkeys(name for of_run in latest.values() for name in of_run):
        if name in compared:
            continue
        if lacking := [run for run, of_run in latest.items() if name not in of_run]:
            reasons.append(f"{name}: {', '.join(lacking)} not evaluated on it (--data-dir)")
        else:
            settings = {run: of_run[name].settings for run, of_run in latest.items()}
            reasons += [f"{name}: {line}" for line in differences(settings)]
    return reasons
