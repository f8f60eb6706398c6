"""The C++ core without Python: every path on this machine, and with emulated intrinsics every path there is."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from poisonkit import ops
from poisonkit.ops.native import core

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
EMULATED = '-DPOISONKIT_INTRINSICS="emulated_intrinsics.hpp"'
FUZZED = ["facility_location", "calibrated_mean", "weighted_sum_hash", "elections", "clipped_relu"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(source, folder, *flags):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    program = folder / "program"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    command = [compiler, "-std=c++17", "-O2", *warnings, *flags, f"-I{CSRC}", f"-I{HERE}", str(HERE / source)]
    subprocess.run([*command, "-o", str(program)], check=True)
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return re.findall(r"^(\w+): (\d+) of \2$", ran.stdout, re.MULTILINE)


def test_hash_with_the_instructions_of_this_machine(tmp_path):
    passed = run("test_weighted_sum_hash.cpp", tmp_path)
    assert [name for name, _ in passed] == list(core.isas() if core else ["scalar"])


def test_hash_with_emulated_instructions(tmp_path):
    passed = run("test_weighted_sum_hash.cpp", tmp_path, EMULATED)
    assert [name for name, _ in passed] == ["scalar", "avx2", "avx512_vnni", "amx"]


def test_clipped_relu_with_the_instructions_of_this_machine(tmp_path):
    passed = run("test_clipped_relu.cpp", tmp_path)
    assert [name for name, _ in passed] == [isa for isa in (core.isas() if core else ["scalar"]) if isa != "amx"]


def test_clipped_relu_with_every_path_in_plain_code(tmp_path):
    passed = run("test_clipped_relu.cpp", tmp_path, EMULATED)
    assert [name for name, _ in passed] == ["scalar", "avx2", "avx512_vnni"]


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [[], [EMULATED]], ids=["real", "emulated"])
def test_clipped_relu_under_sanitizers(emulated, tmp_path):
    assert run("test_clipped_relu.cpp", tmp_path, *SANITIZED, *emulated)


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [[], [EMULATED]], ids=["real", "emulated"])
def test_hash_under_sanitizers(emulated, tmp_path):
    assert run("test_weighted_sum_hash.cpp", tmp_path, *SANITIZED, *emulated)


def test_calibrated_mean_with_the_instructions_of_this_machine(tmp_path):
    passed = run("test_calibrated_mean.cpp", tmp_path)
    assert [name for name, _ in passed] == list(core.isas()[:2] if core else ["scalar"])


def test_calibrated_mean_with_emulated_instructions(tmp_path):
    passed = run("test_calibrated_mean.cpp", tmp_path, EMULATED)
    assert [name for name, _ in passed] == ["scalar", "avx2"]


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [[], [EMULATED]], ids=["real", "emulated"])
def test_calibrated_mean_under_sanitizers(emulated, tmp_path):
    assert run("test_calibrated_mean.cpp", tmp_path, *SANITIZED, *emulated)


def test_elections(tmp_path):
    assert [name for name, _ in run("test_election.cpp", tmp_path)] == ["vote_radius", "run_off_radius"]


@pytest.mark.slow
def test_elections_under_sanitizers(tmp_path):
    assert run("test_election.cpp", tmp_path, *SANITIZED)


@pytest.mark.slow
def test_the_core_on_drawn_shapes_and_hostile_numbers_under_sanitizers(tmp_path):
    passed = run("fuzz_core.cpp", tmp_path, "-ffp-contract=off", *SANITIZED, "-fsanitize=float-cast-overflow")
    assert [name for name, _ in passed] == FUZZED


FACILITY = ("test_facility_location.cpp", "-ffp-contract=off")


def test_facility_location_with_the_instructions_of_this_machine(tmp_path):
    passed = run(FACILITY[0], tmp_path, FACILITY[1])
    cpu = [isa for isa in (core.isas() if core else ["scalar"]) if isa in ("scalar", "avx2")]
    assert [name for name, _ in passed] == [*cpu, "device", "device_teams"]


def test_facility_location_with_emulated_instructions(tmp_path):
    passed = run(FACILITY[0], tmp_path, FACILITY[1], EMULATED)
    assert [name for name, _ in passed] == ["scalar", "avx2", "device", "device_teams"]


@pytest.mark.slow
@pytest.mark.parametrize("emulated", [[], [EMULATED]], ids=["real", "emulated"])
def test_facility_location_under_sanitizers(emulated, tmp_path):
    assert run(FACILITY[0], tmp_path, FACILITY[1], *SANITIZED, *emulated)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this is not an x86-64 processor")
@pytest.mark.parametrize(
    ("isa", "instruction"),
    [
        ("avx2", r"vpmaddwd.*ymm"),
        ("avx2", r"vpminsw.*ymm"),
        ("avx2", r"vfmadd.*ymm"),
        ("avx512_vnni", r"vpdpbusd.*zmm"),
        ("avx512_vnni", r"vpminsw.*zmm"),
        ("amx", r"tdpbuud.*tmm"),
    ],
)
def test_the_built_core_holds_the_real_instructions(isa, instruction):
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    if core is None:
        pytest.skip("poisonkit was built without its C++ core")
    if isa not in ops.build_info()["core"]["isas_compiled"]:
        pytest.skip(f"this compiler has no {isa}")
    listing = subprocess.run([objdump, "-d", core.__file__], capture_output=True, text=True, check=True).stdout
    assert re.search(instruction, listing)
