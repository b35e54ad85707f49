"""The head of the report (verdict, warnings, commands) and the table of costs, as plain data."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev

from reporting.evaluations import METRIC, Evaluation, Pair, Scored, comparable, scored, settings_differ
from reporting.run import Group, Run, is_number, parameters

METRICS = {"rougel": "dev ROUGE-L", "loss": "dev NLL"}  # of dev_metrics.jsonl; the first that all runs have
COSTS = (  # field of metrics.jsonl, title, unit, how a run's value is made of them
    ("step_time", "Step time", "s", median),
    ("tokens_per_s", "Tokens per second", "", median),
    ("padding", "Padding", "%", fmean),
    ("peak_memory_mb", "Peak memory", "GB", max),
    ("generation_s", "Generation per step", "s", fmean),
)
# Flags that decide the dev rows and what is scored of them: dev scores are compared where all of them agree.
DEV_SET = "data_dir data_split data_revision dev_num max_length max_prompt_length prompt_template train_on".split()
SIGNIFICANT = 0.05
SCALES = {"%": 100, "GB": 1 / 1024}


def models_of(groups: Sequence[Group]) -> tuple[dict[str, dict[str, Evaluation]], dict[str, Evaluation]]:
    """The comparable evaluations of each group's first run, and the teacher's; empty without."""
    found = {group.label: group.first.evaluations for group in groups if group.first.evaluations}
    teacher = next((run.teacher_evaluations for group in groups for run in group.runs if run.teacher_evaluations), [])
    together = comparable(found | {"\0teacher": teacher}) if teacher else {}
    if any(together.values()):
        of_teacher = together.pop("\0teacher")
        return together, of_teacher
    return comparable(found), {}


def cards(
    groups: Sequence[Group], models: Mapping[str, Mapping[str, Evaluation]], teacher: Scored | None
) -> list[dict]:
    """One per group: the score that all groups have, its interval, and what else there is to say in a line each."""
    evaluated = all(models.get(group.label) for group in groups)
    metric = next((name for name in METRICS if all(group.first.best_dev(name) is not None for group in groups)), "loss")
    baseline = next((group for group in groups if group.is_baseline), None)
    found = []
    for group in groups:
        score = _evaluation(models[group.label]) if evaluated else _dev(group, metric)
        score["metric"] = METRIC if evaluated else metric
        found.append(
            {
                "label": group.label,
                "color": group.color,
                "folders": [str(run.folder) for run in group.runs],
                "score": score,
                "gap": _gap(group, baseline, score, models, teacher),
                "facts": _facts(group.first),
            }
        )
    if evaluated or not _differing(groups, DEV_SET):
        _mark_best(found)
    return found


def headline(found: Sequence[dict], all_pairs: Sequence[Pair]) -> str:
    """The verdict in a sentence; empty where the runs cannot be ranked."""
    best = next((card for card in found if card.get("best")), None)
    if best is None:
        return ""
    score = best["score"]
    interval = f" [{score['low']}, {score['high']}]" if score["low"] else ""
    if len(found) == 1:
        return f"{best['label']}: {score['name']} {score['text']}{interval}."
    others = {
        ({pair.first, pair.second} - {best["label"]}).pop(): pair
        for pair in all_pairs
        if best["label"] in (pair.first, pair.second)
    }
    sure = ", ".join(label for label, pair in others.items() if pair.p < SIGNIFICANT)
    unsure = ", ".join(label for label, pair in others.items() if pair.p >= SIGNIFICANT)
    words = [f"significantly better than {sure}"] * bool(sure) + [f"not significantly better than {unsure}"] * bool(
        unsure
    )
    return ", ".join([f"{best['label']} is best: {score['name']} {score['text']}{interval}", *words]) + "."


def pair_line(pair: Pair) -> str:
    """Such as: todi − sft +5.15 [2.07, 8.20], p = 0.001, gap closed 20 %."""
    result = pair.result
    p = "p < 0.001" if pair.p < 0.001 else f"p = {pair.p:.3f}"
    closed = "" if pair.gap_closed is None else f", gap closed {_percent(pair.gap_closed)}"
    numbers = f"{result.difference:+.2f} [{result.low:.2f}, {result.high:.2f}]".replace("-", "−")
    counts = f"{result.wins} better, {result.ties} equal, {result.losses} worse"
    return f"{pair.second} − {pair.first} {numbers}, {p}{closed}; {counts}"


def warnings(groups: Sequence[Group]) -> list[str]:
    found = [
        f"{group.label}: {warning}"
        for group in groups
        for warning in dict.fromkeys(warning for run in group.runs for warning in run.warnings)
    ]
    found += [
        f"{name}: the runs were evaluated under different settings and are not compared"
        for name in settings_differ({group.label: group.first.evaluations for group in groups})
    ]
    for name, labels_by_value in _differing(groups, (*DEV_SET, "train_num", "model_path")).items():
        values = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in labels_by_value.items())
        result = ", so their dev scores are not compared" if name in DEV_SET else ""
        found.append(f"the runs differ in --{name.replace('_', '-')}{result}: {values}")
    return found


def costs(groups: Sequence[Group]) -> list[dict]:
    """Columns of the table: title, unit, one value per group (None if unknown), and the largest of them."""
    columns = [_column("Training time", "h:mm:ss", [_training_seconds(group.first) for group in groups])]
    for field, title, unit, of_steps in COSTS:
        values = [[record[field] for record in group.first.steps if is_number(record.get(field))] for group in groups]
        columns.append(
            _column(title, unit, [of_steps(found) * SCALES.get(unit, 1) if found else None for found in values])
        )
    seconds = [[of_set.seconds for of_set in group.first.evaluations if of_set.seconds] for group in groups]
    columns.append(_column("Generation per answer", "s", [fmean(found) if found else None for found in seconds]))
    return [column for column in columns if any(value is not None for value in column["values"])]


def duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _differing(groups: Sequence[Group], names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Of each of these flags that has several values: the labels of the groups by value."""
    found = {}
    for name in names:
        labels: dict[str, list[str]] = {}
        for group in groups:
            if name in group.first.flags:
                labels.setdefault(str(group.first.flags[name]), []).append(group.label)
        if len(labels) > 1:
            found[name] = labels
    return found


def _column(title: str, unit: str, values: Sequence[float | None]) -> dict:
    texts = ["–" if value is None else duration(value) if unit == "h:mm:ss" else f"{value:,.3g}" for value in values]
    if all(value is None or value >= 1000 for value in values):
        texts = [
            "–" if value is None else f"{value:,.0f}" if unit != "h:mm:ss" else duration(value) for value in values
        ]
    top = max((value for value in values if value is not None), default=0)
    shares = [100 * value / top if value and top else 0 for value in values]
    return {
        "title": title,
        "unit": "" if unit == "h:mm:ss" else unit,
        "values": values,
        "texts": texts,
        "shares": shares,
    }


def _evaluation(evaluations: Mapping[str, Evaluation]) -> dict:
    found = scored(evaluations)
    name = f"ROUGE-L on {', '.join(evaluations)}"
    return _score(name, found.mean, found.low, found.high, f"95 % interval over examples, {found.seeds} seeds", 2)


def _dev(group: Group, metric: str) -> dict:
    values = [value for run in group.runs if (value := run.best_dev(metric)) is not None]
    if not values:
        return _score(METRICS[metric], None, None, None, "not evaluated", 0)
    mean, digits = fmean(values), 3 if metric == "loss" else 2
    if len(values) == 1:
        return _score(f"best {METRICS[metric]}", mean, None, None, "", digits)
    margin = stdev(values)
    return _score(
        f"best {METRICS[metric]}", mean, mean - margin, mean + margin, "mean ± deviation of the seeds", digits
    )


def _score(name: str, value: float | None, low: float | None, high: float | None, meaning: str, digits: int) -> dict:
    texts = [None if number is None else f"{number:.{digits}f}" for number in (value, low, high)]
    return {
        "name": name,
        "value": value,
        "text": texts[0] or "–",
        "low": texts[1],
        "high": texts[2],
        "meaning": meaning,
    }


def _gap(group: Group, baseline: Group | None, score: dict, models: Mapping, teacher: Scored | None) -> str | None:
    """Share of the distance from the fine-tuned run to the teacher; of the dev NLL where the teacher has no ROUGE-L.

    Without a fine-tuned run, the dev NLL starts at that of the untrained student.
    """
    if group is baseline:
        return None
    if baseline and teacher and score["metric"] == METRIC:
        start = scored(models[baseline.label]).mean
        return _closed("ROUGE-L gap", score["value"] - start, teacher.mean - start, baseline.label)
    if baseline and _differing([baseline, group], DEV_SET):
        return None
    run, first = group.first, group.first.dev[0] if group.first.dev else {}
    start = baseline.first.best_dev("loss") if baseline else None if first.get("step") else first.get("loss")
    value, goal = run.best_dev("loss"), run.teacher_loss
    if start is None or value is None or goal is None:
        return None
    if abs(start - value) > start - goal:  # more than the gap was won or lost: no share of it
        return None
    return _closed("dev NLL gap", start - value, start - goal, baseline.label if baseline else "the start")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %".replace("-", "−")


def _closed(gap: str, gain: float, whole: float, start: str) -> str | None:
    """None unless the teacher is better than the start."""
    return f"{_percent(gain / whole)} of the {gap} between {start} and the teacher closed" if whole > 0 else None


def _facts(run: Run) -> list[tuple[str, str]]:
    sizes = [_count(parameters(run.checkpoint)), _count(parameters(run.teacher))]
    trained = "trained parameters" if run.flags.get("peft") in ("lora",) else "parameters"
    loss = run.best_dev("loss")
    last = run.steps[-1] if run.steps else {}
    facts = [
        ("objective", run.objective),
        (trained, sizes[0] and (sizes[0] + (f", teacher {sizes[1]}" if sizes[1] else ""))),
        ("dev NLL", loss and f"{loss:.3f}" + (f", teacher {run.teacher_loss:.3f}" if run.teacher_loss else "")),
        (
            "trained",
            last and f"{last['step']} steps, {last.get('epoch', '?')} epochs, {duration(_training_seconds(run))}",
        ),
        ("seed", str(run.flags.get("seed", ""))),
    ]
    return [(name, value) for name, value in facts if value]


def _count(number: int | None) -> str:
    if not number:
        return ""
    size = next((size for size in (10**9, 10**6, 10**3) if number >= size), 1)
    return f"{number / size:.3g} {dict(zip((10**9, 10**6, 10**3, 1), ('B', 'M', 'k', '')))[size]}".strip()


def _training_seconds(run: Run) -> float | None:
    """Steps without evaluation and saving: a record has the mean time of the steps since the one before."""
    if not run.steps:
        return None
    seconds, before = 0.0, 0
    for record in run.steps:
        seconds += (record.get("step_time") or 0) * (record["step"] - before)
        before = record["step"]
    return seconds


def _mark_best(found: Sequence[dict]) -> None:
    known = [card for card in found if card["score"]["value"] is not None]
    if known:
        sign = -1 if known[0]["score"]["name"].endswith("NLL") else 1
        max(known, key=lambda card: sign * card["score"]["value"])["best"] = True
