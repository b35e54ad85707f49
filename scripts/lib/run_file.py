"""Turns a run file, or the args.json of a run, into the flags of code/distillation.py.

In: a flat YAML file, flags by their names and launcher variables (GPUS, ...) in capitals, or an args.json; then flags
that override it. Out, for scripts/run.sh: bash that sets the variables which are not set, and the array `flags`.
The parser of code/arguments.py has read the flags by then; what it refuses ends with exit code 1.
Run: python scripts/lib/run_file.py FILE [--flag value ...]
"""

import difflib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from arguments import parse_train_arguments

LAUNCHER = "GPUS DEVICE NNODES HOSTFILE NODE_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES".split()
NOT_FLAGS = {"run", "deepspeed"}  # what args.json notes beside the flags
OF_ONE_RUN = {"save_dir", "resume"}


def read_run(file: Path, overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Launcher variables and flags of a run file or an args.json; overrides: flags, appended.

    Raises ValueError, naming the file, for what cannot be read or is refused.
    """
    try:
        if file.suffix == ".json":
            variables, flags = {}, flags_of_run(json.loads(file.read_text(encoding="utf-8")), overrides)
        else:
            variables, flags = flags_of_yaml(file.read_text(encoding="utf-8"))
        parse_train_arguments([*flags, *overrides])
    except OSError as error:
        raise ValueError(
            f"{file}: {error.strerror}; pass a run file (configs/runs) or the args.json of a run"
        ) from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {error}") from None
    return variables, [*flags, *overrides]


def flags_of_yaml(text: str) -> tuple[dict[str, str], list[str]]:
    """Launcher variables and flags. Every scalar stays the text that stands there: 1e-3, 010, no."""
    root = yaml.compose(text, Loader=yaml.BaseLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("not a list of `flag: value` lines; see configs/README.md")
    variables: dict[str, str] = {}
    flags: list[str] = []
    seen: set[str] = set()
    for key, value in root.value:
        name, place = key.value, f"line {key.start_mark.line + 1}: {key.value}"
        if (spelling := name.replace("_", "-")) in seen:
            raise ValueError(f"{place}: stands there twice")
        seen.add(spelling)
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            raise ValueError(f"{place}: the file is flat; write a value, or a list of values")
        words = [part.value for part in parts if part.value]
        if name.isupper():
            check_variable(name, place)
            variables[name] = " ".join(words)
        elif words:  # an empty value leaves the flag its default
            flags += [f"--{spelling}", *words]
    return variables, flags


def check_variable(name: str, place: str) -> None:
    """Raises ValueError unless `name` is a variable of the launcher."""
    if name in LAUNCHER:
        return
    rows = (Path(__file__).parent / "flags.txt").read_text(encoding="utf-8").splitlines()
    flag_of = dict(row.split()[:2] for row in rows if row and not row.startswith("#"))
    if name in flag_of:
        raise ValueError(f"{place}: a variable of the scripts; here it is {flag_of[name].split('=')[0][2:]}")
    close = difflib.get_close_matches(name, LAUNCHER, n=1)
    hint = f"did you mean {close[0]}?" if close else f"capitals are for {', '.join(LAUNCHER)}"
    raise ValueError(f"{place}: not a variable of the launcher; {hint}")


def flags_of_run(recorded: dict, overrides: Sequence[str]) -> list[str]:
    """The flags of the run that wrote `recorded`, without its folder."""
    if "run" not in recorded or "model_path" not in recorded:
        raise ValueError("not the args.json of a run")
    if not any(word.split("=")[0] in ("--save-dir", "--save_dir", "--save") for word in overrides):
        raise ValueError(f"pass --save-dir FOLDER; {recorded['save_dir']} is the run's own")
    left_out = NOT_FLAGS | OF_ONE_RUN
    if recorded.get("global_batch_size") is not None:
        left_out |= {"gradient_accumulation_steps"}  # derived, for as many ranks as there were
    flags = []
    for name, value in recorded.items():
        if value is None or name in left_out:
            continue
        values = value if isinstance(value, list) else [value]
        flags += [
            f"--{name.replace('_', '-')}",
            *(str(one).lower() if isinstance(one, bool) else str(one) for one in values),
        ]
    return flags


if __name__ == "__main__":
    try:
        variables, flags = read_run(Path(sys.argv[1]), sys.argv[2:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name, value in variables.items():
        print(f"export {name}=${{{name}:-{shlex.quote(value)}}}")
    print(f"flags=({shlex.join(flags)})")
