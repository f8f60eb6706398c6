"""What is shipped is whole, and where nothing can be compiled the package is pure Python."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
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


# Hashes of two rows by the native module alone, which knows no torch.
NATIVE = """
import ctypes, importlib.util, pathlib, sysconfig
(path,) = pathlib.Path(sysconfig.get_path("platlib"), "poisonkit").glob("_core*.so")
spec = importlib.util.spec_from_file_location("poisonkit._core", path)
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
rows, weights = [[1, 2, 3], [255, 0, 7]], [2**48 + 20, 5, 2**40]
x, w, hashes = (ctypes.c_uint8 * 6)(*rows[0], *rows[1]), (ctypes.c_int64 * 3)(*weights), (ctypes.c_int64 * 2)()
at = ctypes.addressof
for isa in core.isas():
    core.weighted_sum_hash(at(x), 2, 3, 3, at(w), 1, at(hashes), isa, 1)
    assert list(hashes) == [sum(a * b for a, b in zip(row, weights)) % (2**48 + 21) for row in rows], isa
"""

WHOLE = """
import pathlib, sysconfig
import torch
import poisonkit
from poisonkit import ops
assert pathlib.Path(sysconfig.get_path("platlib")) in pathlib.Path(poisonkit.__file__).parents
assert ops.build_info()["core"]["built"], ops.build_info()
x = torch.full((3, 12288), 255, dtype=torch.uint8)
assert ops.weighted_sum_hash(x, ops.hash_weights(12288))[2].tolist() == [187717817426925, 238800835935740]
"""


def python(*arguments, cwd, interpreter=sys.executable, **environment):
    command, variables = [str(interpreter), *arguments], {**os.environ, **environment}
    ran = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def build(kind, tree, **options):
    python("-c", f"from setuptools.build_meta import build_{kind} as build; build('out')", cwd=tree, **options)
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


def found(version):
    """The interpreter of that version, on the path or among those that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places = [sys.executable, shutil.which(f"python{version}"), *pyenv.glob(f"{version}.*/bin/python")]
    for place in filter(None, places):
        asked = [str(place), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
            return place
    pytest.skip(f"Python {version} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_wheel_works_in_an_empty_environment(version, tree, tmp_path):
    """Installed alone. The package runs where it can be lent this Python's torch, elsewhere its native module does."""
    python("-m", "venv", "env", cwd=tmp_path, interpreter=found(version))
    inside = tmp_path / "env" / "bin" / "python"
    ours = sysconfig.get_path("purelib")  # has what a build needs, all of it for any Python
    lent = {"PYTHONPATH": ours, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])}  # ninja
    fast = {"CXXFLAGS": "-O0", "POISONKIT_CUDA_ARCHS": "90"}  # what is tested is the packaging
    wheel = build("wheel", tree, interpreter=inside, **lent, **fast)
    assert f"cp{version.replace('.', '')}" in wheel.name
    alone = {"cwd": tmp_path, "interpreter": inside, "PYTHONPATH": ""}
    python("-m", "pip", "install", "--no-deps", "--no-index", str(wheel), **alone)
    (package,) = (tmp_path / "env").glob("lib/*/site-packages/poisonkit")
    python("-m", "compileall", "-q", str(package), **alone)
    python("-c", NATIVE, **alone)
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        (package.parent / "lent.pth").write_text(f"{ours}\n")
        python("-W", "error", "-c", WHOLE, **alone)
        assert "core built" in python("-m", "poisonkit", "info", **alone)
