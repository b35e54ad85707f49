"""Reads the evaluations of a checkpoint (evaluation/results.py says where they are) and compares those of runs.

Shapes: N examples of a set.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.comparison import LEVEL, Comparison, bootstrap_means, compare, holm
from reporting.titles import titles

METRIC = "rougeL"  # evaluation.metrics.MAIN_METRIC; importing that takes seconds
NOT_OF_THE_SETTING = {"weights", "model_path", "peft_path", "data_dir", "data"}  # these may differ within a comparison
EXAMPLES = 4  # gains, and losses, that are shown of a pair


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one set. scores_N: mean over the seeds. answers: of the first seed, as in answers.jsonl.

    setting: equal for evaluations that may be compared. seconds: per answer.
    """

    name: str
    setting: str
    made: str
    scores_N: np.ndarray
    seed_means: dict[int, float]
    answers: list[dict]
    seconds: float | None


@dataclass(frozen=True)
class Pair:
    """`second` minus `first`, labels of groups. p: after Holm's correction over all pairs."""

    first: str
    second: str
    result: Comparison
    p: float
    gap_closed: float | None


@dataclass(frozen=True)
class Scored:
    """The score of a model on the sets that all models of a report were evaluated on, with its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int


def read_evaluations(checkpoint: Path) -> list[Evaluation]:
    """All of a checkpoint, the latest last; empty if it was never evaluated."""
    root = checkpoint.parent / "eval" / checkpoint.name
    found = [evaluation for path in root.glob("*/*/settings.json") if (evaluation := _read(path.parent)) is not None]
    return sorted(found, key=lambda evaluation: evaluation.made)


def comparable(models: Mapping[str, Sequence[Evaluation]]) -> dict[str, dict[str, Evaluation]]:
    """Per model, by set, one evaluation under the same settings as the others'; only sets that all models have.

    Of several settings that all have, the latest.
    """
    if not models:
        return {}
    keys = [{(of_set.name, of_set.setting): of_set for of_set in evaluations} for evaluations in models.values()]
    shared = [key for key in keys[0] if all(key in of_model for of_model in keys[1:])]  # the latest last
    chosen = dict(shared)
    sizes = {key: {len(of_model[key].scores_N) for of_model in keys} for key in chosen.items()}
    names = [name for name in chosen if len(sizes[name, chosen[name]]) == 1]
    return {label: {name: of_model[name, chosen[name]] for name in names} for label, of_model in zip(models, keys)}


def scored(evaluations: Mapping[str, Evaluation]) -> Scored | None:
    """Every set counts alike."""
    if not evaluations:
        return None
    sets = [evaluation.scores_N for evaluation in evaluations.values()]
    low, high = np.quantile(bootstrap_means(sets, seed=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    seeds = min(len(evaluation.seed_means) for evaluation in evaluations.values())
    return Scored(float(np.mean([scores.mean() for scores in sets])), float(low), float(high), seeds)


def pairs(models: Mapping[str, Mapping[str, Evaluation]], teacher: Scored | None) -> list[Pair]:
    """Every model against each that comes before it."""
    labels = [label for label, evaluations in models.items() if evaluations]
    scores = {label: {name: of_set.scores_N for name, of_set in models[label].items()} for label in labels}
    both = [(first, second) for i, second in enumerate(labels) for first in labels[:i]]
    results = [compare(scores[first], scores[second]) for first, second in both]
    adjusted = holm([result.p for result in results])
    return [
        Pair(first, second, result, p, _gap_closed(scores[first], result, teacher))
        for (first, second), result, p in zip(both, results, adjusted)
    ]


def extremes(models: Mapping[str, Mapping[str, Evaluation]], first: str, second: str) -> list[dict]:
    """The examples on which `second` gains and loses most against `first`, the largest gain first."""
    changes = [
        (float(second_score - first_score), name, i)
        for name in models[first]
        for i, (first_score, second_score) in enumerate(
            zip(models[first][name].scores_N, models[second][name].scores_N)
        )
    ]
    changes.sort(reverse=True)
    chosen = [change for change in changes[:EXAMPLES] if change[0] > 0]
    chosen += [change for change in changes[-EXAMPLES:] if change[0] < 0]
    prompts = {
        name: [str(answer.get("prompt", "")) for answer in of_set.answers] for name, of_set in models[first].items()
    }
    named = {name: titles(of_set) for name, of_set in prompts.items()}
    return [
        {
            "change": change,
            "set": name,
            "row": i + 1,
            "title": named[name][i],
            "prompt": prompts[name][i],
            "references": [str(text) for text in models[first][name].answers[i].get("references", [])],
            "answers": [
                (label, str(of_set[name].answers[i].get("answer", "")), float(of_set[name].scores_N[i]))
                for label, of_set in models.items()
            ],
        }
        for change, name, i in chosen
    ]


def settings_differ(models: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """Sets that several models were evaluated on, but never under the same settings."""
    by_set = Counter(name for found in models.values() for name in {of_set.name for of_set in found})
    by_key = Counter(key for found in models.values() for key in {(of_set.name, of_set.setting) for of_set in found})
    shared = {name for (name, _), count in by_key.items() if count == by_set[name]}
    return sorted(name for name, count in by_set.items() if count > 1 and name not in shared)


def _gap_closed(first: Mapping[str, np.ndarray], result: Comparison, teacher: Scored | None) -> float | None:
    """Share of the gap between `first` and the teacher; None unless the teacher is better."""
    gap = 0.0 if teacher is None else teacher.mean - float(np.mean([scores.mean() for scores in first.values()]))
    return result.difference / gap if gap > 0 else None


def _read(folder: Path) -> Evaluation | None:
    """None if no seed is complete, or the scores of a seed lack rows."""
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        of_seeds = {}
        for path in folder.glob("seed*/metrics.json"):
            metrics = json.loads(path.read_text(encoding="utf-8"))
            lines = (path.parent / "answers.jsonl").read_text(encoding="utf-8").splitlines()
            of_seeds[int(metrics["seed"])] = metrics, [json.loads(line) for line in lines]
        scores_SN = np.array([[answer[METRIC] for answer in of_seeds[seed][1]] for seed in sorted(of_seeds)])
    except (OSError, ValueError, KeyError, TypeError):  # being written, or of another version
        return None
    if not scores_SN.size:
        return None
    setting = {name: value for name, value in settings.items() if name not in NOT_OF_THE_SETTING}
    metrics = [of_seeds[seed][0] for seed in sorted(of_seeds)]
    seconds = [of_seed["seconds"] / len(scores_SN[0]) for of_seed in metrics if of_seed.get("seconds")]
    return Evaluation(
        name=folder.parent.name,
        setting=json.dumps(setting, sort_keys=True),
        made=max(str(of_seed.get("made", "")) for of_seed in metrics),
        scores_N=scores_SN.mean(axis=0),
        seed_means={seed: float(scores.mean()) for seed, scores in zip(sorted(of_seeds), scores_SN)},
        answers=of_seeds[min(of_seeds)][1],
        seconds=float(np.mean(seconds)) if seconds else None,
    )
