"""Runs tests against copies of the package: reads "FOLDER TEST" a line, answers with the exit status of pytest.

Each test runs in a fork of this process, which has imported what takes seconds, and nothing of the package.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import redirect_stdout
from importlib import import_module

SECONDS = 180  # of the processor, after which tests are taken for stuck
BROKEN = 99  # the status of a pytest that did not come to an end, which is no test that failed
for name in ("numpy", "torch._dynamo", "safetensors.torch", "PIL.Image", "pyarrow.parquet", "hypothesis", "pytest"):
    import_module(name)


def answer(folder: str, tests: str) -> int:
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        os.dup2(2, 1)  # standard output is for answers
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder
        options = ["-q", "-x", "--tb=short", "--no-header", "-p", "no:cacheprovider"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what was imported here
        status = BROKEN
        try:
            status = int(import_module("pytest").main([*options, *tests.split("\t")]))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    with redirect_stdout(sys.stderr):
        import_module("pytest").main(["--version"])  # which imports its plugins
    for line in sys.stdin:
        where, _, which = line.rstrip("\n").partition(" ")
        sys.stdout.write(f"{answer(where, which)}\n")
        sys.stdout.flush()
