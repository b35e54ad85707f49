"""How the code is built: dependencies point one way, names do not collide, files say what they are, lint is clean."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from criterions import objective_names

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "code"
MODULES = sorted(CODE.rglob("*.py"))
FILES = sorted(path for folder in ("code", "scripts", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
TOP_LEVEL = {path.stem for path in CODE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
LONGEST_FUNCTION = 60
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_python(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=120)


# --- dependencies ----------------------------------------------------------------------------------------------------


def lint_imports(folder: Path, **additions: str) -> subprocess.CompletedProcess:
    """Checks the contracts of pyproject.toml on a copy of code/, with lines added to modules.

    import-linter takes packages only, so each top-level module `x.py` becomes `x/__init__.py` in the copy.
    """
    for path in MODULES:
        target = folder / path.relative_to(CODE)
        if path.parent == CODE:
            target = folder / path.stem / "__init__.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8") + additions.get(path.stem, ""))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return run_python("-c", LINT, cwd=folder, PYTHONPATH=str(folder))


@pytest.fixture(scope="module")
def importlinter():
    pytest.importorskip("importlinter", reason="import-linter is not installed")


def test_dependencies_point_one_way(importlinter, tmp_path):
    run = lint_imports(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " 0 broken" in run.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("encoding", "import evaluation.metrics.rouge"),
        ("rouge", "from training import loop"),
        ("fkl", "import models.heads"),
        ("fused", "from data_utils.batches import Batch"),
        ("arguments", "import data_utils.prompts"),
        ("distiller", "import distillation"),
        ("states", "import distiller"),
    ],
)
def test_a_dependency_the_other_way_is_seen(importlinter, tmp_path, module, line):
    run = lint_imports(tmp_path, **{module: f"\n{line}\n"})
    assert run.returncode == 1 and "BROKEN" in run.stdout, run.stdout + run.stderr


def test_the_contracts_cover_every_module():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert set(settings["root_packages"]) == TOP_LEVEL
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    assert {name.strip() for layer in layers for name in re.split(r"[|:]", layer)} == TOP_LEVEL


def test_no_module_imports_itself_through_others():
    modules = {".".join(p.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES}
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom):
                parts = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
                imports[name] |= parts or {node.module} & modules.keys()
    list(TopologicalSorter(imports).static_order())  # raises CycleError


def test_only_the_criterions_know_the_names_of_objectives():
    names = set(objective_names())
    found = {
        f"{short(path)}:{node.lineno}: {node.value}"
        for path in MODULES
        if path.parent.name not in ("criterions", "reporting") and path.name != "arguments.py"  # a report names them
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    }
    assert not found


# --- names -----------------------------------------------------------------------------------------------------------


def runtime_packages() -> set[str]:
    """Names of the distributions in requirements.txt and of all that they need, where installed."""
    pending = re.findall(r"^([A-Za-z][\w.-]*)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    found: set[str] = set()
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        pending += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


def test_no_module_shadows_another():
    """`sys.path[0]` is code/ when a script runs."""
    assert not TOP_LEVEL & set(sys.stdlib_module_names)
    packages = runtime_packages()
    assert {"torch", "transformers", "datasets", "peft", "numpy"} <= packages
    installed = {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in packages for owner in owners)
    }
    assert {"torch", "datasets"} <= installed
    assert not TOP_LEVEL & installed


def test_the_code_folder_is_no_package():
    assert not (CODE / "__init__.py").exists()
    assert Path(importlib.util.find_spec("code").origin).parent != CODE


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in MODULES} - {CODE}
    assert folders and all((folder / "__init__.py").is_file() for folder in folders)


# --- style -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=short)
def test_a_file_opens_with_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [path for path in FILES if "tests" not in path.parts], ids=short)
def test_functions_fit_on_a_page(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, functions) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(words):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    run = run_python("-m", "ruff", *words, str(ROOT))
    assert run.returncode == 0, run.stdout + run.stderr
