"""What preflight has to say: facts, warnings with their remedies, errors."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from runtime.ranks import USER_ERRORS

WIDTH = 120
MARGIN = 13


@dataclass
class Report:
    """Filled step by step; an error in one step does not keep the next from running."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def fact(self, name: str, text: str) -> None:
        self.facts.append((name, text))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @contextmanager
    def collect_errors(self) -> Iterator[None]:
        """An error of the user's in the block (ValueError, OSError) goes into the report, each line once."""
        try:
            yield
        except USER_ERRORS as error:
            self.errors += [line for line in str(error).splitlines() if line not in self.errors]

    def stop_on_errors(self) -> None:
        """Raises ValueError with one line per error, if there are any."""
        if self.errors:
            raise ValueError("\n".join(self.errors))

    def __str__(self) -> str:
        lines = ["preflight", *(_wrapped(f"  {name:<{MARGIN - 2}}", text) for name, text in self.facts)]
        for kind, messages in (("warning", self.warnings), ("error", self.errors)):
            lines += [_wrapped(f"  {kind + ':':<{MARGIN - 2}}", message) for message in messages]
        return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * MARGIN,
        break_long_words=False,
        break_on_hyphens=False,
    )


def size(count: float) -> str:
    """Bytes for people: kB, MB, GB, TB (powers of ten)."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:,.0f} {unit}"
    return f"{count / 1e3:.3g} kB"
