"""What is shipped is whole, and where nothing can be compiled the package is pure Python."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# An editable install would lend its extensions to the package under test.
ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
from poisonkit import ops
"""

IMPORT = f"""{ALONE}
import torch
assert ops.isas() == ("reference",), ops.isas()
assert ops.build_info()["core"]["reason"] and ops.build_info()["cuda"]["reason"]
x = torch.full((3, 12288), 255, dtype=torch.uint8)
assert ops.weighted_sum_hash(x, ops.hash_weights(12288))[2].tolist() == [187717817426925, 238800835935740]
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build reads, so that a build leaves nothing behind."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("this is not a source tree")
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.so", "__pycache__", "*.egg-info", "runs")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


def python(*arguments, cwd, **environment):
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def build(kind, tree, **environment):
    python("-c", f"from setuptools.build_meta import build_{kind} as build; build('out')", cwd=tree, **environment)
    return next((tree / "out").iterdir())


def test_the_source_distribution_is_whole(tree):
    with tarfile.open(build("sdist", tree)) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "LICENSE", "README.md"}
    for folder, pattern in [("csrc", r"\.(cpp|hpp|cu|cuh)$"), ("poisonkit", r"\.(py|pyi|typed|npz|txt)$")]:
        paths = (path.relative_to(tree).as_posix() for path in (tree / folder).rglob("*"))
        wanted |= {path for path in paths if re.search(pattern, path)}
    assert not wanted - shipped


def test_without_extensions_the_wheel_is_pure_and_works(tree, tmp_path):
    wheel = build("wheel", tree, POISONKIT_NO_EXT="1")
    assert wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]
        assert {"poisonkit/py.typed", "poisonkit/_core.pyi"} <= set(archive.namelist())
        archive.extractall(tmp_path / "site")
    python("-W", "error", "-c", IMPORT, cwd=tmp_path / "site")


def test_without_a_compiler_setup_says_so(tree):
    said = python("setup.py", "--name", cwd=tree, PATH="", CXX="", CUDA_HOME="")
    assert re.search("^poisonkit: no C.*pure Python", said, re.MULTILINE)


@pytest.mark.slow
def test_the_source_distribution_compiles_without_warnings(tree, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    with tarfile.open(build("sdist", tree)) as archive:
        # the filter came to Python 3.10 and 3.11 in a later release
        archive.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    python("setup.py", "build_ext", "--inplace", cwd=unpacked, CXXFLAGS="-Werror", POISONKIT_CUDA_ARCHS="90")
    python("-c", f"{ALONE}assert ops.build_info()['core']['built']", cwd=unpacked)
