"""One line per prompt that tells it from the others: without the lines of the template that they share."""

from collections import Counter
from collections.abc import Sequence

SHARED = 0.1  # of the prompts; a line that more of them have belongs to the template


def titles(prompts: Sequence[str]) -> list[str]:
    lines_of = [[line.strip() for line in prompt.splitlines() if line.strip()] for prompt in prompts]
    counts = Counter(line for lines in lines_of for line in set(lines))
    most = max(1, SHARED * len(prompts))
    own = [[line for line in lines if counts[line] <= most] for lines in lines_of]
    return [" ".join(of_prompt or lines) for of_prompt, lines in zip(own, lines_of)]
