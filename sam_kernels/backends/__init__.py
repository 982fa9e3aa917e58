"""Who runs what: the whole dispatch policy.

``PREFERENCE`` lists, per device, the backends in the order in which they are tried. ``SAM_KERNELS_BACKEND`` (a comma-separated
list, read once; the first call refuses unknown names) overrides it: the first name in it that runs on the device at all is the one, and
where that backend is missing or lacks the dtype the call raises, as if it had been asked for with ``backend=``.
"""

import os
from functools import cache

BACKENDS = ("reference", "cpp", "triton", "cuda")
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpp", "reference"),
}
DEVICES = {"cpp": ("cpu",), "triton": ("cuda", "cpu"), "cuda": ("cuda",)}  # reference: every device


REQUESTED = tuple(name.strip() for name in os.environ.get("SAM_KERNELS_BACKEND", "").split(",") if name.strip())


@cache
def requested(device: str) -> str | None:
    """The backend that the environment asks for on ``device``."""
    if unknown := [name for name in REQUESTED if name not in BACKENDS]:
        raise ValueError(f"SAM_KERNELS_BACKEND names {unknown}; expected a comma-separated list from {BACKENDS}")
    return next((name for name in REQUESTED if device in DEVICES.get(name, (device,))), None)
