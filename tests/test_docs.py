"""Every command and every piece of Python in the README and the docs runs, and the site shows every public name."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import poisonkit
from poisonkit.__main__ import main

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *TUTORIALS]
METHODS = ("attacks", "condensation", "dpa", "epic", "ieu", "mmac", "repair", "rivals", "targeted")


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[tuple[str, str, str]]:
    """Page, language and text of each block, in the order of the pages."""
    kinds = "|".join(languages)
    return [
        (page.name, *found)
        for page in pages
        for found in re.findall(rf"^```({kinds})\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]


def commands(text: str) -> list[str]:
    lines = (line.split("  #")[0].strip() for line in re.sub(r"\\\n\s*", "", text).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


COMMANDS = sorted({(page, line) for page, _, text in blocks("sh") for line in commands(text)})


def runnable(command: str) -> list[str]:
    """The command as a test runs it: a run as a dry run, a make target as what it would do, an install not at all."""
    words = shlex.split(command)
    if ">" in words:
        words = words[: words.index(">")]
    if words[:2] in (["poisonkit", "run"], ["poisonkit", "matrix"]) and not {"--options", "--print-job"} & set(words):
        words.append("--dry-run")
    if (
        words[:2] in (["poisonkit", "dpa"], ["poisonkit", "reproduce"], ["poisonkit", "condense"])
        and "--list" not in words
    ):
        words.append("--help" if "update" in words else "--dry-run")  # an update needs the run that it is of
    if words[:2] in (["poisonkit", "repair"], ["poisonkit", "pretrain"]):
        words.append("--dry-run")
    if words[:2] == ["poisonkit", "convert"]:  # tests/data runs it on batches in the official layout
        words = ["poisonkit", "convert", "--help"]
    if words[:2] == ["poisonkit", "backdoors"]:
        words.append("--dry-run")
    if words[:2] == ["poisonkit", "compare"]:  # tests/experiments runs it
        words = ["poisonkit", "compare", "--help"]
    if words[:2] in (["poisonkit", "craft"], ["poisonkit", "gallery"]):  # tests/attacks runs them at a small size
        words = [*words[:2], "--help"]
    if words[0] == "poisonkit":
        return words
    if words[0] == "make":
        return ["make", "--dry-run", *words[1:]]
    if words[:3] == ["python", "-m", "bench"]:
        return [sys.executable, *words[1:], *([] if len(words) > 3 else ["--list"])]
    if words[0] == "python" and words[1].startswith("examples/"):
        return [sys.executable, str(ROOT / words[1]), *words[2:]]
    if words[0].endswith(".sh"):
        return ["bash", "-n", words[0]]
    if words[0] in ("sbatch", "kubectl"):  # of a cluster, which is not here
        return ["bash", "-n", "-c", command]
    if words[:2] == ["pip", "install"]:  # tests/test_build.py builds and installs
        return [sys.executable, "-m", "pip", "--version"]
    raise AssertionError(f"no rule to try {command!r}; add one")


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value)
def test_commands(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = runnable(command)
    if words[0] == "poisonkit":  # in this process, since to import torch takes longer than most of them
        monkeypatch.chdir(ROOT)
        try:
            status = main(words[1:])
        except SystemExit as end:  # of --help
            status = end.code
        assert status == 0, f"{page}: {command}\n{capsys.readouterr().err}"
        return
    example = command.startswith("python examples/")  # takes minutes and real images: as far as it gets without them
    ran = subprocess.run(words, cwd=tmp_path if example else ROOT, capture_output=True, text=True)
    if example:
        assert "root must be a folder that exists, got data" in ran.stderr, f"{page}: {command}\n{ran.stderr}"
        return
    # a goal that is unmet is a finding of the check, not a failure of the command
    allowed = (0, 1) if command == "python -m bench --check" else (0,)
    assert ran.returncode in allowed, f"{page}: {command}\n{ran.stdout}{ran.stderr}"


ALONE = [(page, text) for page, _, text in blocks("python", pages=[page for page in PAGES if page not in TUTORIALS])]


@pytest.mark.parametrize(("page", "text"), ALONE, ids=lambda value: value[:40])
def test_python(page: str, text: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", text], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, f"{page}\n{ran.stderr}"


@pytest.mark.parametrize(("kind", "language"), [("slurm", "bash"), ("kubernetes", "yaml")])
def test_the_array_shown_is_the_one_printed(kind: str, language: str) -> None:
    [command] = [command for _, command in COMMANDS if f"--print-job {kind}" in command]
    words = [sys.executable, "-m", *runnable(command)]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [text for page, _, text in blocks(language) if page == "clusters.md"] == [printed]


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # a file to hash
    for _, language, text in blocks("sh", "python", pages=[page]):
        if language == "python":
            ran = [["-W", "error", "-c", text]]
        else:  # tests/test_build.py installs
            ran = [["-m", *shlex.split(line)] for line in commands(text) if not line.startswith("pip install")]
        for arguments in ran:
            done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"


def rooms() -> dict[str, list[str]]:
    """The public names of every module that says which they are."""
    walked = pkgutil.walk_packages(poisonkit.__path__, "poisonkit.")
    names = [found.name for found in walked if found.ispkg and not found.name.startswith("poisonkit.commands")]
    found = {name: getattr(importlib.import_module(name), "__all__", []) for name in ["poisonkit", *names]}
    return {name: public for name, public in found.items() if public}


@pytest.mark.parametrize(("room", "names"), rooms().items(), ids=lambda value: str(value)[:30])
def test_public_names_say_what_they_are(room: str, names: list[str]) -> None:
    sources = [path.read_text() for path in (ROOT / room.replace(".", "/")).rglob("*.py")]
    for name in names:
        value = getattr(sys.modules[room], name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            said = bool(value.__doc__) and not value.__doc__.startswith(f"{name}(")  # what a dataclass says by itself
        else:
            said = any(re.search(rf"^#: .*\n(#: .*\n)*{name}\b", source, re.MULTILINE) for source in sources)
        assert said, f"{room}.{name} has no docstring, or a constant no #: comment"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_five_parts(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert "\n## The idea\n" in text
    assert re.search(r"^\|.*\| formula .*\| code \|$", text, re.MULTILINE), "a table of equations and where they are"
    assert re.search(r"^```(python|sh)$", text, re.MULTILINE)
    measured = text.partition("\n## What was measured")[2]
    assert re.search(r"^\|( ?-+:? ?\|)+", measured, re.MULTILINE), "a table of what was measured"
    assert re.search(r"^## Limits", text, re.MULTILINE)


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """What `make docs` builds: without a warning, with every public name, and no link that leads nowhere."""
    for module in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("api"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, tmp_path)
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "docs", "site"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr

    site = {path.resolve(): path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in site.items()}
    shown = {name.removeprefix("module-") for names in ids.values() for name in names}
    for room, names in rooms().items():
        for name in names:
            home = getattr(getattr(sys.modules[room], name), "__module__", room)
            assert any(f"{part}.{name}" in shown for part in (room, *up(home))), f"no page shows {room}.{name}"
    for path, text in site.items():
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            place, _, anchor = link.partition("#")
            if "://" in link or link.startswith(("mailto:", "data:")):
                continue
            target = (path.parent / unquote(place.partition("?")[0])).resolve() if place else path
            assert target.exists(), f"{path.name} links to {link}"
            assert not anchor or target not in ids or unquote(anchor) in ids[target], f"{path.name} links to {link}"


def up(module: str) -> list[str]:
    """A module and the packages that it is in."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def test_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:docs|tests|bench|csrc|poisonkit)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists() or "results" in name, f"{page.name} names {name}"


@pytest.mark.slow
def test_the_demo_of_the_readme(tmp_path: Path) -> None:
    """What `make demo` runs. The digits after the point differ between processors, what they show does not."""
    command = [sys.executable, "-m", "poisonkit", "demo"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    rates = {}
    for line in ran.stdout.splitlines():
        if match := re.match(r"(undefended|dpa) +([\d.]+) % +([\d.]+) %", line):
            rates[match[1]] = float(match[2]), float(match[3])
    assert rates["undefended"][0] > 95
    assert rates["undefended"][1] > 80, "the attack must succeed undefended"
    assert rates["dpa"][0] > 90
    assert rates["dpa"][1] < 5, "the defense must stop it"
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
