"""Whether evaluations may be compared: what differs between their settings beside the weights, and which flag decides.

In: settings as `evaluation.settings` makes them, by the name of the run. Out: lines for the user.
"""

import json
from collections.abc import Mapping

# Settings whose flag has another name. None: no flag; the machine or the version of this project decides.
FLAGS = {
    "set": "--data-dir",
    "rows.count": "--data-dir, --eval-num",
    "rows.sha256": "--data-dir, --eval-num",
    "draws": "--do-sample",
    "draws.batches": None,
    "draws.device": None,
    "draws.tokens_per_batch": "--eval-batch-size, --max-length",
    "decoding.max_new_tokens": "--max-new-tokens, --max-length",
}


def without_weights(settings: Mapping) -> dict:
    """What evaluations that may be compared have in common."""
    return {name: value for name, value in settings.items() if name != "weights"}


def differences(settings: Mapping[str, Mapping]) -> list[str]:
    """One line per setting other than the weights in which the runs differ: its values and its flag."""
    flat = {run: _flat(without_weights(of_run)) for run, of_run in settings.items()}
    names = dict.fromkeys(name for of_run in flat.values() for name in of_run)
    lines = []
    for name in names:
        values = {run: of_run.get(name) for run, of_run in flat.items()}
        if len(set(map(json.dumps, values.values()))) > 1:
            of_runs = ", ".join(f"{_short(value)} for {run}" for run, value in values.items())
            flag = FLAGS.get(name, f"--{name.rpartition('.')[2].replace('_', '-')}")
            lines.append(f"{name}: {of_runs}{f' ({flag})' if flag else ''}")
    return lines


def _flat(settings: Mapping, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _short(value: object) -> str:
    """A hash by its first digits."""
    text = str(value)
    return text[:8] if len(text) == 64 else text
