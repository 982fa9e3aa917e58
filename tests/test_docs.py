"""The Python in the documents runs as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("document", ["README.md", "docs/recipes.md"])
def test_blocks_run_in_order(document: str) -> None:
    text = (ROOT / document).read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], document, "exec"), namespace)


def test_every_ask_names_what_is_there() -> None:
    """The table of what users ask for points to tests and headings that exist."""
    text = (ROOT / "docs/asks.md").read_text()
    headings = {line[3:] for line in (ROOT / "docs/recipes.md").read_text().splitlines() if line.startswith("## ")}
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"`(test_\w+)`", text)
    assert len(names) > 20
    assert not [name for name in names if f"def {name}(" not in tests and not (ROOT / "tests" / f"{name}.py").exists()]
    assert not set(re.findall(r"\[([^\]]+)\]\(recipes.md", text)) - headings
