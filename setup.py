"""Builds the compiled part: poisonkit._core with a C++ compiler, poisonkit._cuda with nvcc, neither with torch.

POISONKIT_NO_EXT=1       pure Python
POISONKIT_CUDA_ARCHS     compute capabilities of the GPU code (default "75;80;86;90;100;120")
CXX, CXXFLAGS, LDFLAGS   as usual
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
DEFAULT_ARCHS = "75;80;86;90;100;120"
SHARED = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


def say(line: str) -> None:
    sys.stderr.write(f"poisonkit: {line}\n")


def find_compiler() -> list[str] | None:
    """The command of a C++17 compiler with 128-bit integers (GCC or Clang), or None."""
    configured = sysconfig.get_config_var("CXX") or ""
    for command in (os.environ.get("CXX", ""), configured, "c++", "g++", "clang++"):
        words = shlex.split(command)
        if words and compiles(words, "#include <vector>\n__int128 wide;", "-std=c++17"):
            return words
    return None


def compiles(command: list[str], source: str, *flags: str, suffix: str = ".cpp") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe" + suffix)
        path.write_text(source + "\nint main() { return 0; }\n")
        line = [*command, *flags, str(path), "-o", str(Path(folder, "probe"))]
        try:
            return subprocess.run(line, capture_output=True).returncode == 0  # noqa: S603
        except OSError:
            return False


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    paths = [shutil.which("nvcc"), *(shutil.which("nvcc", path=str(Path(home, "bin"))) for home in homes if home)]
    return next((path for path in paths if path), None)


def cuda_arch_flags(nvcc: str) -> list[str]:
    """SASS of every architecture this nvcc knows, and PTX of 90, or of the newest below it, for those yet to come."""
    wanted = [int(arch) for arch in os.environ.get("POISONKIT_CUDA_ARCHS", DEFAULT_ARCHS).replace(",", ";").split(";")]
    listing = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()  # noqa: S603
    known = [arch for arch in wanted if f"compute_{arch}" in listing]
    if not known:
        sys.exit(f"poisonkit: POISONKIT_CUDA_ARCHS must name architectures of {nvcc}, got {wanted}")
    ptx = max((arch for arch in known if arch <= 90), default=min(known))
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in known]
    return [*flags, f"-gencode=arch=compute_{ptx},code=compute_{ptx}", "-Xfatbin=-compress-all"]


class NinjaBuild(build_ext):
    """Compiles all sources in parallel, and again only what changed."""

    def run(self) -> None:
        import pybind11

        # Fixed, so that editable and isolated builds do not start over. Headers of Python and pybind11 come by the
        # environment, since an isolated build has them at a new path every time.
        folder = ROOT / "build" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}-{pybind11.__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        headers = [pybind11.get_include(), sysconfig.get_path("include"), os.environ.get("CPLUS_INCLUDE_PATH", "")]
        environment = {**os.environ, "CPLUS_INCLUDE_PATH": os.pathsep.join(filter(None, headers))}

        openmp = ["-fopenmp"] if compiles(CXX, "#include <omp.h>", "-fopenmp") else []
        if not openmp:
            say("no OpenMP here: kernels run on one thread")
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-I{CSRC}"]
        flags.append("-ffp-contract=off")  # an addition and a multiplication are fused where the source says so alone
        flags += openmp or ["-Wno-unknown-pragmas"]
        arch = shlex.split(os.environ.get("ARCHFLAGS", ""))
        variables = {
            "cxx": shlex.join(CXX),
            "cxxflags": shlex.join([*flags, *arch, *shlex.split(os.environ.get("CXXFLAGS", ""))]),
            "ldflags": shlex.join([*SHARED, *openmp, *arch, *shlex.split(os.environ.get("LDFLAGS", ""))]),
        }
        rules = [
            ("cxx", "$cxx $cxxflags $define -MMD -MF $out.d -c $in -o $out", True),
            ("link", "$cxx $in $ldflags -o $out", False),
        ]
        if NVCC and not compiles([NVCC], "", suffix=".cu"):
            say(f"{NVCC} does not compile an empty program: building without CUDA")
            self.extensions = [extension for extension in self.extensions if extension.name != "poisonkit._cuda"]
        elif NVCC:
            variables["nvcc"] = shlex.quote(NVCC)
            variables["nvccflags"] = shlex.join(
                [
                    "-std=c++17",
                    "-O3",
                    "-fmad=false",
                    f"-I{CSRC}",
                    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
                    *cuda_arch_flags(NVCC),
                ]
            )
            rules += [
                ("nvcc", "$nvcc $nvccflags -MMD -MF $out.d -c $in -o $out", True),
                ("nvlink", "$nvcc -shared -cudart=static $in -o $out", False),
            ]
        lines = [f"{name} = {value}" for name, value in variables.items()]
        for name, command, has_headers in rules:
            lines += [f"rule {name}", f"  command = {command}"]
            lines += ["  depfile = $out.d", "  deps = gcc"] if has_headers else []
        for extension in self.extensions:
            lines += self.edges(extension, folder)
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        ninja = shutil.which("ninja") or packaged_ninja()
        subprocess.run([ninja, "-C", str(folder)], env=environment, check=True)  # noqa: S603

    def edges(self, extension: Extension, folder: Path) -> list[str]:
        short = extension.name.rpartition(".")[2]
        output = Path(self.get_ext_fullpath(extension.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        lines, objects = [], []
        for source in extension.sources:
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            objects.append(escape(f"{short}/{Path(source).name}.o"))
            lines.append(f"build {objects[-1]}: {rule} {escape(str(ROOT / source))}")
            lines.append(f"  define = -DPOISONKIT_MODULE={short}")
        linker = "nvlink" if short == "_cuda" else "link"
        return [*lines, f"build {escape(str(output))}: {linker} {' '.join(objects)}"]


def packaged_ninja() -> str:
    import ninja

    return str(Path(ninja.BIN_DIR, "ninja"))


def escape(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in CSRC.glob(pattern))


CXX: list[str] = []
NVCC: str | None = None
extensions = []
if os.environ.get("POISONKIT_NO_EXT", "0") not in ("", "0"):
    say("POISONKIT_NO_EXT is set: pure Python")
elif not (found := find_compiler()):
    say(f"no C++17 compiler with 128-bit integers on this {platform.system()}: pure Python, slower hashing")
else:
    CXX = found
    extensions.append(Extension("poisonkit._core", sources("*.cpp")))
    NVCC = find_nvcc()
    if NVCC:
        extensions.append(Extension("poisonkit._cuda", ["csrc/module.cpp", *sources("cuda/*.cpp"), *sources("*.cu")]))

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
