"""The build of ``make gpu``: CUDA kernels for this GPU, or, where they do not compile, without them, so that the rest can be tested.

    python bench/gpu_build.py [--env system]

Exit status 3: without CUDA kernels, or something built does not load. Standard library only.
"""

import argparse
import os
import subprocess
import sys

from gpu_stages import ROOT, USABLE

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
    (ROOT / "build" / "done").unlink(missing_ok=True)  # times of files that were copied say little; ninja looks at every source
    command = [os.environ.get("MAKE", "make"), "setup", f"ENV={env}"]
    print(f"SAM_KERNELS_BUILD={what} {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"SAM_KERNELS_BUILD": what}, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="venv")
    env = parser.parse_args().env
    with_cuda = build(env, "cuda" if os.environ.get("SAM_KERNELS_CUDA_ARCHS") else os.environ.get("SAM_KERNELS_BUILD", "auto"))
    if not with_cuda and not build(env, "cpu"):
        print("found: nothing builds, neither with CUDA nor without", flush=True)
        return 1
    code = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, check=False).returncode
    if code not in (0, USABLE):
        print("found: built, but sam_kernels does not import", flush=True)
        return 1
    if not with_cuda:
        print("found: the CUDA kernels do not compile; built without them", flush=True)
    return code if with_cuda else USABLE


if __name__ == "__main__":
    raise SystemExit(main())
