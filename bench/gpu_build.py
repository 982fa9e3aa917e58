"""The build of ``make gpu``: CUDA kernels for this GPU, or, where they do not compile, without them, so that the rest can be tested.

    python bench/gpu_build.py [--env system]

Exit status 3: without CUDA kernels, or something built does not load. Standard library only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_plan import ROOT, USABLE

CHECK = """import torch, sam_kernels
from sam_kernels.backends.native import build_info
from sam_kernels.registry import OPS
for name, told in build_info().items():
    print(f"{name}: {told}")
here = "cuda" if torch.cuda.is_available() else "cpu"
wanted = ("cuda", "triton") if here == "cuda" else ("cpp",)
lacking = {b: w for b in wanted if (w := OPS["ascend_"].missing.get(b))}
print(f"found: {', '.join(f'{b}: {w}' for b, w in lacking.items()) or ', '.join(wanted) + ' are there'}")
raise SystemExit(3 if lacking else 0)
"""


def build(env: str, what: str) -> bool:
    """By the Makefile; where that fails before it compiles anything, with the packages that are there, once more without pyproject.toml,
    which an older setuptools than it asks for cannot read."""
    plan = ROOT / "build" / "ninja" / "build.ninja"
    for path in (ROOT / "build" / "done", plan):  # times of files that were copied say little; ninja looks at every source
        path.unlink(missing_ok=True)
    if run(["make", "setup", f"ENV={env}"], ROOT, what):
        return True
    if env != "system" or plan.exists():
        return False
    with tempfile.TemporaryDirectory() as elsewhere:
        return run([sys.executable, str(ROOT / "setup.py"), "-q", "build_ext", "--inplace"], Path(elsewhere), what)


def run(command: list[str], folder: Path, what: str) -> bool:
    print(f"SAM_KERNELS_BUILD={what} {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=folder, env=os.environ | {"SAM_KERNELS_BUILD": what}, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="venv")
    env = parser.parse_args().env
    wanted = "cuda" if os.environ.get("SAM_KERNELS_CUDA_ARCHS") else os.environ.get("SAM_KERNELS_BUILD", "auto")
    built = next((what for what in dict.fromkeys((wanted, "cpu", "none")) if build(env, what)), None)
    if built is None:
        print("found: nothing builds, not even SAM_KERNELS_BUILD=none", flush=True)
        return 1
    code = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, check=False).returncode
    if code not in (0, USABLE):
        print("found: built, but sam_kernels does not import", flush=True)
        return 1
    subprocess.run([sys.executable, "-m", "sam_kernels", "info"], cwd=ROOT, check=False)
    if built != wanted:
        print(f"found: SAM_KERNELS_BUILD={wanted} does not build; {built} does", flush=True)
    return code if built == wanted else USABLE


if __name__ == "__main__":
    raise SystemExit(main())
