"""What a metric is, and the registry that finds one by its name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arguments import GenerationArguments

MAIN_METRIC = "rougeL"  # of tables and summaries; decides which checkpoints are the best

_REGISTRY: dict[str, type["Metric"]] = {}


@dataclass(frozen=True)
class Answer:
    """What a model answered to a prompt.

    references: the answers that count as right; at least one, which may be empty.
    tokens: length of the answer in tokens, EOS included. ended: with EOS, not at the limit.
    """

    prompt: str
    text: str
    references: tuple[str, ...]
    tokens: int
    ended: bool


class Metric:
    """Base of all metrics. A subclass defines `scores`."""

    def __init__(self, args: GenerationArguments):
        self.args = args

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """One number per answer."""
        raise NotImplementedError

    def aggregate(self, answers: Sequence[Answer], scores: Sequence[float]) -> float:
        """One number for all answers: the mean of their scores, unless the metric says otherwise."""
        return sum(scores) / len(scores)

    def warning(self, what: str, texts: Sequence[str]) -> str | None:
        """The warning if the metric cannot judge the texts. what: their kind, such as "answers"."""
        return None


def register(name: str) -> Callable[[type[Metric]], type[Metric]]:
    """Class decorator: makes a metric known as `name`, its key in answers.jsonl and metrics.json."""

    def add(metric: type[Metric]) -> type[Metric]:
        if name in _REGISTRY:
            raise ValueError(f"metric {name!r} is already registered by {_REGISTRY[name].__name__}")
        _REGISTRY[name] = metric
        return metric

    return add


def build_metrics(args: GenerationArguments, *names: str) -> dict[str, Metric]:
    """The metrics `names`, by name; without names, all registered ones."""
    return {name: _REGISTRY[name](args) for name in names or _REGISTRY}
