"""What the judge found: printed, and written to judgement.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluation.comparison import AVERAGE, LEVEL, RESAMPLES, compare_runs, pair_lines
from evaluation.judging.endpoint import Endpoint
from evaluation.judging.outcome import Judged, Outcome, outcome, position_bias
from evaluation.judging.replies import Replies
from evaluation.results import format_table
from runtime.atomic import write_text


def report(judged: Sequence[Judged], endpoint: Endpoint, replies: Replies, folder: Path, runs: Sequence[str]) -> None:
    """Prints, and writes judgement.json. Raises WriteError."""
    found, bias = outcome(judged, runs), position_bias(judged)
    pairs = compare_runs(found.scores) if found else []
    if found:
        print(f"\n{_shares(found, runs)}\n\n{pair_lines(pairs)}\n")
        print(f"{found.comparisons} comparisons of two verdicts; {found.unreadable} left out, without a verdict")
    if bias:
        print(
            f"position bias: {bias['flips']:.1f} % of the comparisons flip with the order; verdicts for the first "
            f"answer {bias['first']:.1f} %, for the second {bias['second']:.1f} %, ties {bias['tie']:.1f} %"
        )
    print(f"cost: {replies.calls} replies, {'unknown' if replies.tokens is None else f'{replies.tokens:,}'} tokens")
    record = {
        "judge": {"url": endpoint.url, "model": endpoint.model, "options": endpoint.options},
        "runs": list(runs),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "shares": {name: of_set._asdict() for name, of_set in found.shares.items()} if found else {},
        "pairs": [asdict(pair) for pair in pairs],
        "comparisons": found.comparisons if found else 0,
        "unreadable": found.unreadable if found else 0,
        "position_bias": bias,
        "calls": replies.calls,
        "tokens": replies.tokens,
    }
    write_text(folder / "judgement.json", json.dumps(record, indent=2) + "\n")
    print(f"\n{folder}/judgement.json, replies.jsonl")


def _shares(found: Outcome, runs: Sequence[str]) -> str:
    """A table: wins, ties and losses of the first run, in per cent."""
    sets = found.shares if len(found.shares) > 2 else {AVERAGE: found.shares[AVERAGE]}
    rows = [[name, *(f"{share:.1f}" for share in of_set)] for name, of_set in sets.items()]
    return format_table(["per cent", f"{runs[0]} wins", "ties", f"{runs[1]} wins"], rows)
