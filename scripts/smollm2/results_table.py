"""The tables of a campaign, from the records of campaign.py alone.

In: records: how each run trained, and how its answers scored. Out: markdown: a row per method, mean and standard
deviation over training seeds; and the paired differences from SFT.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from evaluation.comparison import Comparison, compare, holm
from evaluation.tables import markdown

METRICS = {
    "exact_match": "exact match",
    "distinct_2": "distinct-2",
    "tokens_per_answer": "tokens",
    "ended_share": "ended",
}
Record = dict


def tables(records: Sequence[Record]) -> str:
    """What the records have, complete or not."""
    training = {record["name"]: record for record in records if record["kind"] == "train"}
    parts = []
    for decoding in ("greedy", "sampled"):
        scores: dict[str, list[Record]] = {}
        for record in records:
            if record["kind"] == decoding:
                scores.setdefault(record["method"], []).append(record)
        if scores:
            parts += [f"{decoding.capitalize()} answers", scores_table(scores, training), differences_table(scores)]
    return "\n".join(parts)


def scores_table(scores: dict[str, list[Record]], training: dict[str, Record]) -> str:
    """By ROUGE-L. The time per step is relative to SFT's."""
    trained = {
        method: [training[name] for record in of_method if (name := record["name"].rpartition("/")[0]) in training]
        for method, of_method in scores.items()
    }
    sft_step = mean(trained.get("sft", []), "step_seconds")
    rows = []
    for method in sorted(scores, key=lambda method: -fmean(map(rouge, scores[method]))):
        runs, of_method = trained[method], scores[method]
        rows.append(
            [
                method,
                runs[0]["variables"].get("KD_RATE", "") if runs else "",
                str(len(of_method)),
                spread(list(map(rouge, of_method))),
                spread([best_nll(run) for run in runs], 3),
                spread([run["forward_kl"] for run in runs], 3),
                *(f"{fmean(seed[name] for record in of_method for seed in record['metrics']):.1f}" for name in METRICS),
                f"{mean(runs, 'step_seconds') / sft_step:.2f}" if runs and sft_step else "",
                f"{max(run['peak_memory_mb'] for run in runs):.0f}" if runs else "",
            ]
        )
    header = ["method", "kd_rate", "seeds", "ROUGE-L", "dev NLL", "KL(p, q)", *METRICS.values(), "step", "MB"]
    return markdown(header, rows)


def differences_table(scores: dict[str, list[Record]]) -> str:
    """Each method less SFT with as many layers: a paired bootstrap over the rows, each with its mean over the seeds."""
    found: dict[str, Comparison] = {}
    for method in scores:
        name, comma, layers = method.partition(",")
        baseline = f"sft{comma}{layers}"
        if name not in ("sft", "teacher") and baseline in scores:
            found[method] = compare({"dolly": by_row(scores[baseline])}, {"dolly": by_row(scores[method])})
    corrected = holm([of_method.p for of_method in found.values()])
    found = {method: replace(of_method, p_holm=p) for (method, of_method), p in zip(found.items(), corrected)}
    lead = fmean(by_row(scores["teacher"])) - fmean(by_row(scores["sft"])) if {"teacher", "sft"} <= set(scores) else 0
    rows = [
        [
            f"{method} - sft",
            f"{of_method.difference:+.2f}",
            f"[{of_method.low:.2f}, {of_method.high:.2f}]",
            f"{of_method.p_holm:.3f}",
            f"{of_method.wins} / {of_method.ties} / {of_method.losses}",
            f"{100 * of_method.difference / lead:.0f} %" if lead > 0 and "," not in method else "",
        ]
        for method, of_method in sorted(found.items(), key=lambda item: -item[1].difference)
    ]
    return markdown(["pair", "ROUGE-L", "95 % interval", "p (Holm)", "win / tie / loss", "gap closed"], rows)


def by_row(of_method: Sequence[Record]) -> list[float]:
    """ROUGE-L of each row, the mean over the training seeds."""
    return [fmean(of_row) for of_row in zip(*(record["rougeL"] for record in of_method))]


def rouge(record: Record) -> float:
    return fmean(record["rougeL"])


def best_nll(run: Record) -> float:
    return min(dev["loss"] for dev in run["dev"] if dev["epoch"])


def best_rouge(run: Record) -> float:
    return max(dev["rougel"] for dev in run["dev"] if dev["epoch"])


def mean(records: Sequence[Record], name: str) -> float | None:
    return fmean(record[name] for record in records) if records else None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return ""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"
