"""Who runs what: the whole dispatch policy.

``PREFERENCE`` lists, per device, the backends in the order in which they are tried. ``SAM_KERNELS_BACKEND`` (a comma-separated
list, read once) goes in front of it; a name in it that does not exist is an error, one that is unavailable is an error too.
"""

import os

BACKENDS = ("reference", "cpp", "triton", "cuda")
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpp", "reference"),
}


def _requested() -> tuple[str, ...]:
    names = tuple(name.strip() for name in os.environ.get("SAM_KERNELS_BACKEND", "").split(",") if name.strip())
    if unknown := [name for name in names if name not in BACKENDS]:
        raise ValueError(f"SAM_KERNELS_BACKEND names {unknown}; expected a comma-separated list from {BACKENDS}")
    return names


REQUESTED = _requested()


def preference(device: str) -> tuple[str, ...]:
    """Backends to try on ``device``, best first."""
    return tuple(dict.fromkeys(REQUESTED + PREFERENCE.get(device, ("reference",))))
