"""Shared fixtures, and the rule that in CI no test is skipped for a reason nobody wrote down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

LISTED = {
    line for line in (Path(__file__).parent / "skips.txt").read_text().splitlines() if line and not line.startswith("#")
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread, whatever the test before asked for: results depend on how many, and small tensors gain nothing."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real images."""
    root = os.environ.get("POISONKIT_DATA", "")
    if not root or not (Path(root) / "cifar10").is_dir():
        pytest.skip("POISONKIT_DATA names no folder with real images")
    return Path(root)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") != "true":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of pytest-xdist, whose results the session that started it reports
        return
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", [])}
    unlisted = sorted(reasons - LISTED)
    if unlisted:
        reporter.write_line(f"skip reasons not in tests/skips.txt: {unlisted}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
