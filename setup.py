"""Decides what can be built, says so in one line per library, and builds it strictly, with ninja.

SAM_KERNELS_BUILD = auto (default: whatever the tools at hand allow) | none | cpu | cuda (those two: or fail)
SAM_KERNELS_CUDA_ARCHS = semicolon-separated compute capabilities, default 80;90;100, plus PTX of the last

Never looks for a GPU. nvcc is called directly, so CUDA code compiles beside CPU-only torch; the objects need no torch.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILD = "build/ninja"  # relative to ROOT, and the same for every kind of install: only what changed is compiled again
TORCH_TARGET = "0x020b000000000000"  # torch 2.11: the oldest torch that a build runs on
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -Icsrc"
NVCC_FLAGS = "-std=c++17 -O3 -fmad=false --threads 2 -Xcompiler -fPIC,-fvisibility=hidden,-Wall -lineinfo -Icsrc"
LIBRARIES = {
    "cpp": ("_cpu.so", ["csrc/cpu/*.cpp", "csrc/torch/bind*_cpu.cpp"]),
    "cuda": ("_cuda.so", ["csrc/cuda/*.cu", "csrc/torch/bind*_cuda.cpp"]),
    "rows": ("_rows" + sysconfig.get_config_var("EXT_SUFFIX"), ["csrc/rows.cpp"]),
    "info": ("_info" + sysconfig.get_config_var("EXT_SUFFIX"), ["csrc/info.cpp"]),
}
WANTED = {"auto": tuple(LIBRARIES), "none": (), "cpu": ("cpp", "rows", "info"), "cuda": tuple(LIBRARIES)}


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{home}/bin") for home in homes if home)]
    return next(filter(None, candidates), None)


def package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_version(torch: Path | None) -> tuple[int, ...]:
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (torch / "version.py").read_text()) if torch else None
    return tuple(map(int, found.groups())) if found else (0, 0)


def decide(mode: str, tools: dict[str, object]) -> dict[str, str]:
    """Library -> "build" or "skipped, <reason>". A library that was asked for by name and cannot be built is an error."""
    if mode not in WANTED:
        raise SystemExit(f"SAM_KERNELS_BUILD={mode!r}; expected one of {', '.join(WANTED)}")
    lacks = {
        "cpp": ("cxx", "ninja", "torch"),
        "cuda": ("cxx", "ninja", "torch", "nvcc"),
        "rows": ("cxx", "ninja", "torch", "pybind11"),
        "info": ("cxx", "ninja", "pybind11"),
    }
    why = {
        "cxx": "no C++ compiler found (set CXX)",
        "ninja": "ninja is not installed",
        "nvcc": "nvcc not found (set CUDA_HOME)",
        "pybind11": "pybind11 is not installed",
        "torch": "torch >= 2.11 is not importable in the build environment (use --no-build-isolation)",
    }
    plan = {}
    for name in LIBRARIES:
        missing = [why[tool] for tool in lacks[name] if not tools.get(tool)]
        if name not in WANTED[mode]:
            plan[name] = f"skipped, SAM_KERNELS_BUILD={mode}"
        elif not missing:
            plan[name] = "build"
        elif mode == "auto":
            plan[name] = f"skipped, {missing[0]}"
        else:
            raise SystemExit(f"SAM_KERNELS_BUILD={mode}: {name} cannot be built: {'; '.join(missing)}")
    return plan


def find_tools() -> dict[str, object]:
    cxx = os.environ.get("CXX", "g++")
    torch = package_dir("torch")
    return {
        "cxx": shutil.which(cxx),
        "nvcc": find_nvcc(),
        "ninja": shutil.which("ninja", path=os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])),
        "torch": torch if torch_version(torch) >= (2, 11) else None,
        "pybind11": package_dir("pybind11"),
    }


def cuda_archs() -> list[str]:
    archs = [arch.strip().replace(".", "") for arch in os.environ.get("SAM_KERNELS_CUDA_ARCHS", "80;90;100").split(";") if arch.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}[af]?", arch) for arch in archs):
        raise SystemExit(f"SAM_KERNELS_CUDA_ARCHS={os.environ.get('SAM_KERNELS_CUDA_ARCHS')!r}; expected for example '80;90;100'")
    return archs


def ninja_file(plan: dict[str, str], tools: dict[str, object]) -> str:
    torch, nvcc, archs = tools["torch"], tools["nvcc"], cuda_archs()
    codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in archs] + [f"-gencode arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    against_torch = f"-isystem '{torch}/include' -DTORCH_TARGET_VERSION={TORCH_TARGET}"
    python = f"-isystem '{tools['pybind11']}/include' -isystem '{sysconfig.get_paths()['include']}'"
    flags = {
        "cpp": against_torch,
        "cuda": against_torch + " -DUSE_CUDA",
        "rows": f"-isystem '{torch}/include' {python}",
        "info": python,
    }
    lines = [
        f"builddir = {BUILD}",
        f"rule cxx\n  command = {tools['cxx']} {CXX_FLAGS} $flags -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule nvcc\n  command = {nvcc} {NVCC_FLAGS} {' '.join(codes)} -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {tools['cxx']} -shared -Wl,--as-needed $in $libs -o $out",
        f"rule nvlink\n  command = {nvcc} -shared -cudart static $in $libs -o $out",  # knows where its own runtime is
    ]
    for name in (n for n, what in plan.items() if what == "build"):
        target, patterns = LIBRARIES[name]
        objects = []
        for source in sorted(path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern)):
            objects.append(f"{BUILD}/{name}/{source.stem}.o")
            lines.append(f"build {objects[-1]}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {source}\n  flags = {flags[name]}")
        link, libs = "nvlink" if name == "cuda" else "link", "" if name in ("rows", "info") else f"-L'{torch}/lib' -ltorch_cpu"
        lines.append(f"build {BUILD}/{target}: {link} {' '.join(objects)}\n  libs = {libs}")
    return "\n".join(lines) + "\n"


class NinjaBuild(build_ext):
    def run(self) -> None:
        tools = find_tools()
        plan = decide(os.environ.get("SAM_KERNELS_BUILD", "auto"), tools)
        if "build" in plan.values():
            (ROOT / BUILD).mkdir(parents=True, exist_ok=True)
            (ROOT / BUILD / "build.ninja").write_text(ninja_file(plan, tools))
            subprocess.run([str(tools["ninja"]), "-f", f"{BUILD}/build.ninja"], cwd=ROOT, check=True)
        package = ROOT / "sam_kernels" if self.inplace else Path(self.build_lib) / "sam_kernels"
        package.mkdir(parents=True, exist_ok=True)
        report = {name: "built" if what == "build" else f"not built: {what}" for name, what in plan.items()}
        if plan["cuda"] == "build":
            report["cuda"] += f" for sm_{', sm_'.join(cuda_archs())}"
        for name, (target, _) in LIBRARIES.items():
            (package / target).unlink(missing_ok=True)
            if plan[name] == "build":
                shutil.copy2(ROOT / BUILD / target, package / target)
            print(f"sam_kernels: {name}: {report[name]}")
        (package / "_build_info.py").write_text(f'"""Written by setup.py."""\n\nLIBRARIES = {report!r}\n')

    def get_outputs(self) -> list[str]:
        return []


setup(ext_modules=[Extension("sam_kernels._native", [])], cmdclass={"build_ext": NinjaBuild})
