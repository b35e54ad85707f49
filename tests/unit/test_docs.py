"""What the pages quote exists: relative links, files of the repository, and the messages of the FAQ."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path for path in ROOT.rglob("*.md") if path.name != "CHANGELOG.md" and ".venv" not in path.relative_to(ROOT).parts
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page):
    text = re.sub(r"https?://[^\s)]+", "", page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#]+)", text)
    paths = re.findall(r"(?<![\w./<>*-])((?:code|configs|docs|scripts|tests|benchmarks)/[\w./-]*\w)", text)
    modules = re.findall(r"`([\w/]+/\w+\.py)`", text)  # also relative to code/
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists() and "pythia" not in path]
    missing += [path for path in modules if not any((folder / path).exists() for folder in (ROOT, ROOT / "code"))]
    assert not missing


def test_the_faq_quotes_messages_of_the_code():
    """`...` stands for a value."""
    faq = (ROOT / "docs/usage.md").read_text(encoding="utf-8").partition("## FAQ")[2]
    symptoms = [line.split(" | ")[0] for line in faq.splitlines() if line.startswith("| ")]
    quotes = [quote for symptom in symptoms for quote in re.findall("`(.+?)`", symptom)]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "code").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str)]
    unknown = [part for quote in quotes for part in quote.split("...") if not any(part in text for text in texts)]
    assert len(quotes) > 5 and not unknown
