"""Every guard has a test that fails without it: tests/mutants/ takes guards away, one patch each.

A patch is a unified diff of the package after two lines, the guard in words and the test that must turn red.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
FAILED, CRASHED = 1, {-11, -7, -6}  # of pytest's statuses, and of signals; any other is no verdict


@dataclass(frozen=True)
class Mutant:
    """A guard taken away.

    guard    what no longer holds
    test     that must fail
    changes  (file below the root, its lines before, its lines after), one for each hunk
    """

    guard: str
    test: str
    changes: tuple[tuple[str, str, str], ...]

    @classmethod
    def read(cls, path: Path) -> Mutant:
        head, _, diff = path.read_text().partition("\n\n")
        guard, test = (line.partition(": ")[2] for line in head.splitlines())
        file, changes = "", []
        for line in diff.splitlines(keepends=True):
            if line.startswith("+++ b/"):
                file = line[6:].strip()
            elif line.startswith("@@"):
                changes.append((file, "", ""))
            elif changes:
                name, before, after = changes[-1]
                changes[-1] = (name, before + line[1:] * (line[0] in " -"), after + line[1:] * (line[0] in " +"))
        return cls(guard, test, tuple(changes))

    def apply(self, root: Path) -> None:
        for file, before, after in self.changes:
            text = (root / file).read_text()
            assert text.count(before) == 1, f"{file} is no longer as the patch knows it: write it anew"
            (root / file).write_text(text.replace(before, after))


MUTANTS = {path.stem: Mutant.read(path) for path in sorted((TESTS / "mutants").glob("*.patch"))}
Run = Callable[[list[str]], tuple[int, str]]


def test_every_patch_fits_and_names_a_test(tmp_path: Path) -> None:
    for name, mutant in MUTANTS.items():
        file, _, function = mutant.test.partition("::")
        assert f"\ndef {function.partition('[')[0]}(" in (ROOT / file).read_text(), name
        for each, _, _ in mutant.changes:
            (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / each, tmp_path / each)
        mutant.apply(tmp_path)
        assert mutant.guard
        assert mutant.changes, name


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, with its compiled modules."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "poisonkit", root / "poisonkit")
    return root


@pytest.fixture(scope="module")
def run(copy: Path) -> Iterator[Run]:
    """Runs tests against the copy, and gives pytest's exit status and what it said."""
    said = copy / "said"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    with (
        said.open("wb") as output,
        subprocess.Popen(
            [sys.executable, str(TESTS / "mutants" / "runner.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            cwd=ROOT,
            env=environment,
        ) as runner,
    ):
        assert runner.stdin
        assert runner.stdout
        ask, answers = runner.stdin, runner.stdout

        def run(tests: list[str]) -> tuple[int, str]:
            before = said.stat().st_size
            ask.write(f"{copy} {chr(9).join(tests)}\n")
            ask.flush()
            return int(answers.readline()), said.read_bytes()[before:].decode(errors="replace")

        yield run
        ask.close()


@pytest.mark.slow
def test_with_every_guard_the_tests_pass(run: Run) -> None:
    status, said = run(sorted({mutant.test for mutant in MUTANTS.values()}))
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_without_the_guard_its_test_fails(name: str, run: Run, copy: Path) -> None:
    mutant = MUTANTS[name]
    whole = {file: (copy / file).read_bytes() for file, _, _ in mutant.changes}
    try:
        mutant.apply(copy)
        status, said = run([mutant.test])
        assert status in {FAILED, *CRASHED}, f"{mutant.test} does not miss it: {mutant.guard}\n{said}"
    finally:
        for file, content in whole.items():
            (copy / file).write_bytes(content)
