"""Requirements, constraints and the commands of an editable installation agree with the code and with each other."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSOLE = ROOT / "scripts/console"


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


PINNED = {canonicalize_name(pin.name): pin for pin in requirements("constraints.txt")}


def version(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return Version(specifier.version)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_tested_version_is_in_every_range(name):
    found = requirements(name)
    assert found
    for wanted in found:
        assert wanted.specifier.contains(version(PINNED[canonicalize_name(wanted.name)])), wanted


def test_lower_ends_are_versions_that_the_other_packages_take():
    """Among them what Transformers asks for chat templates, which --prompt-template chat renders."""
    ours = {canonicalize_name(wanted.name): wanted for wanted in requirements("requirements.txt")}
    lowest = {
        name: min(Version(part.version) for part in wanted.specifier if part.operator in (">=", "=="))
        for name, wanted in ours.items()
    }
    for other in ours:
        for need in map(Requirement, importlib.metadata.requires(other) or []):
            name, extras = canonicalize_name(need.name), ("", "chat-template")
            if name in lowest and (need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)):
                assert need.specifier.contains(lowest[name]), (other, str(need))


def test_whatever_is_needed_is_pinned():
    pending, seen = [*requirements("requirements.txt"), *requirements("requirements-dev.txt")], set()
    while pending:
        name = canonicalize_name(pending.pop().name)
        if name in seen or re.match("nvidia-|cuda-|triton$", name):  # of torch's GPU build, which pins them itself
            continue
        seen.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # a tool that is not installed here
        assert name in PINNED or name == "setuptools", name
        wanted = [Requirement(need) for need in needs]
        pending += [need for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert len(seen) > 40


# ---- commands --------------------------------------------------------------------------------------------------------


def entries() -> set[str]:
    """Modules in code/ that run as a program."""
    files = (ROOT / "code").glob("*.py")
    return {path.stem for path in files if "\nif __name__ ==" in path.read_text(encoding="utf-8")}


def test_every_entry_has_a_command():
    commands = PROJECT["project"]["scripts"]
    assert {target.removeprefix("distil_console:") for target in commands.values()} == entries()
    for command, target in commands.items():
        entry = target.removeprefix("distil_console:")
        assert command == ("distil" if entry == "distillation" else f"distil-{entry.replace('_', '-')}")


def run_command(entry: str, *words: str, path: Path = CONSOLE) -> subprocess.CompletedProcess:
    """As the script that pip writes does it, from a folder that is not the checkout."""
    code = (
        f"import code, sys; from distil_console import {entry}; print(code.__name__, flush=True); sys.exit({entry}())"
    )
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=300)


def test_a_command_is_its_entry():
    found = run_command("distillation", "--help")
    direct = subprocess.run(
        [sys.executable, str(ROOT / "code/distillation.py"), "--help"], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0 and found.stdout == f"code\n{direct.stdout}"
    found = run_command("evaluate", "--model-path", "x", "--seedz", "3")
    assert found.returncode == 2 and "did you mean --seed?" in found.stderr


def test_a_command_without_its_checkout(tmp_path):
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    (folder / "distil_console.py").write_text((CONSOLE / "distil_console.py").read_text())
    found = run_command("distillation", path=folder)
    assert found.returncode == 1 and "install from a checkout, with pip install -e ." in found.stderr


def test_only_the_console_is_installed():
    settings = PROJECT["tool"]["setuptools"]
    assert settings["py-modules"] == ["distil_console"] and settings["package-dir"] == {"": "scripts/console"}
    assert [path.name for path in CONSOLE.glob("*.py")] == ["distil_console.py"]


# ---- image and notebook ----------------------------------------------------------------------------------------------


def test_the_image_copies_what_exists_and_runs_as_a_user():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"(?m)^COPY (.+)$", text) for word in line.split()[:-1]]
    assert all((ROOT / word).exists() for word in copied if not word.startswith("--"))
    lines = text.splitlines()
    assert lines.index("USER distil") < lines.index("COPY --chown=distil . .")
    assert "-c constraints.txt" in text and "never built" in text
    assert {".git", ".venv", "model_hub/*", "outputs/*", "data/*"} <= set(
        (ROOT / ".dockerignore").read_text().split("\n")
    )


def test_the_notebook_is_code_without_outputs():
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and cells
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        compile("".join(cell["source"]), "cell", "exec")
