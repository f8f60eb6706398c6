"""The rules of the house: who imports whom, a method fits a page and cites its paper, and the public names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import poisonkit
from poisonkit.attacks import ATTACKS
from poisonkit.defenses import DEFENSES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "poisonkit"

# A module may import from rooms strictly below its own, and from its own room.
LAYERS = [
    {"errors", "random", "config", "mapped", "font"},
    {"ops"},
    {"types"},
    {"data", "models"},
    {"metrics", "certificates", "triggers", "perturb"},
    {"train"},
    {"attacks", "defenses"},
    {"engine", "hooks"},
    {"report"},
    {"experiments"},
    {"commands"},
    {"__main__", "__init__"},
]
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms of this package, and outside packages as "name:", that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "poisonkit":
                names = [f"poisonkit.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "poisonkit" and len(parts) > 1 else f"{parts[0]}:")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers(path: Path) -> None:
    mine = room(path)
    assert mine in HEIGHT, f"{mine} has no layer"
    for other in imported(path):
        if other in HEIGHT and other != mine:
            # rooms of one layer keep apart, but for the helpers of the lowest
            allowed = HEIGHT[other] < HEIGHT[mine] or (HEIGHT[other] == HEIGHT[mine] == 0)
            assert allowed, f"{path.name} ({mine}) imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_clock_or_environment_below_the_engine(path: Path) -> None:
    if HEIGHT[room(path)] >= HEIGHT["engine"]:
        return
    assert not imported(path) & {"time:", "datetime:", "argparse:"}, path
    text = path.read_text()
    assert "os.environ" not in text
    assert "sys.argv" not in text


def test_core_is_free_of_python_and_torch() -> None:
    for path in (ROOT / "csrc" / "core").glob("*.hpp"):
        includes = re.findall(r'#include\s+[<"](.+?)[>"]', path.read_text())
        assert includes, path
        assert not [name for name in includes if re.match(r"(Python|pybind11|torch|ATen|c10)", name)], path


@pytest.mark.parametrize(("name", "kind"), [*ATTACKS.items(), *DEFENSES.items()], ids=lambda value: str(value)[:20])
def test_a_method_is_a_page_and_cites_its_paper(name: str, kind: type) -> None:
    path = PACKAGE.parent / (kind.__module__.replace(".", "/") + ".py")
    assert len(path.read_text().splitlines()) <= 150
    assert re.search(r"(arXiv|doi|http|19\d\d|20\d\d)", kind.source)  # type: ignore[attr-defined]
    assert re.search(r"(arXiv|doi|http)", ast.get_docstring(ast.parse(path.read_text())) or "")
    kind()  # every field has a default


def test_public_names() -> None:
    assert sorted(poisonkit.__all__) == [
        "Backdoor",
        "Budget",
        "Certificate",
        "ImageDataset",
        "Key",
        "Poison",
        "PoisonkitError",
        "Victims",
        "attacks",
        "certificates",
        "data",
        "defenses",
        "engine",
        "key",
        "metrics",
        "models",
        "ops",
        "train",
        "triggers",
    ]
    assert all(hasattr(poisonkit, name) for name in poisonkit.__all__)
