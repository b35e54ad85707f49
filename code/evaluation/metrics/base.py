"""What a metric is, and the registry that finds one by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arguments import GenerationArguments

MAIN_METRIC = "rougeL"  # of tables and summaries; decides which checkpoints are the best
# Other fields of answers.jsonl and metrics.json, beside one per metric.
ANSWER_FIELDS = ("prompt", "answer", "references", "tokens", "ended", "cut")
SEED_FIELDS = ("rows", "seed", "seconds", "made")

_REGISTRY: dict[str, type["Metric"]] = {}


@dataclass(frozen=True)
class Answer:
    """What a model answered to a prompt.

    references: the answers that count as right; at least one, which may be empty.
    tokens: length of the answer in tokens, EOS included. ended: with EOS, not at the limit.
    cut: the prompt was too long and lost its middle.
    """

    prompt: str
    text: str
    references: tuple[str, ...]
    tokens: int
    ended: bool
    cut: bool = False


class Metric:
    """Base of all metrics. A subclass defines `scores`.

    optional: computed only if --metrics names it, as it is slow, or needs a package that requirements.txt has not. Its
    constructor then raises ValueError where the package is missing.
    """

    optional = False

    def __init__(self, args: GenerationArguments):
        self.args = args

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """One number per answer."""
        raise NotImplementedError

    def aggregate(self, answers: Sequence[Answer], scores: Sequence[float]) -> float:
        """One number for all answers: the mean of their scores, unless the metric says otherwise."""
        return sum(scores) / len(scores)

    def warning(self, what: str, texts: Sequence[str]) -> str | None:
        """What to tell the user if the metric cannot judge such texts. what: what they are, such as "answers"."""
        return None


def register(name: str) -> Callable[[type[Metric]], type[Metric]]:
    """Class decorator: makes a metric known as `name`, its key in answers.jsonl and metrics.json."""

    def add(metric: type[Metric]) -> type[Metric]:
        if name in _REGISTRY:
            raise ValueError(f"metric {name!r} is already registered by {_REGISTRY[name].__name__}")
        if name in ANSWER_FIELDS + SEED_FIELDS:
            raise ValueError(f"metric {name!r}: the results have another field of this name; choose another")
        _REGISTRY[name] = metric
        return metric

    return add


def build_metrics(args: GenerationArguments, *names: str) -> dict[str, Metric]:
    """The metrics `names`, by name; without names all but the optional ones."""
    return {name: _REGISTRY[name](args) for name in names or metric_names()}


def metric_names(optional: Sequence[str] = ()) -> list[str]:
    """All metrics that are always computed, and these optional ones. Raises ValueError if there is no such metric."""
    for name in optional:
        if name not in _REGISTRY:
            raise ValueError(f"--metrics {name}: no such metric; there are {', '.join(_REGISTRY)}")
    return [name for name, metric in _REGISTRY.items() if not metric.optional or name in optional]
