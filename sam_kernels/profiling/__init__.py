"""Measuring sam_kernels: ``python -m sam_kernels info | bench | profile``. Every command is a module with ``add_arguments`` and ``run``."""

from importlib.util import find_spec

COMMANDS = tuple(name for name in ("info", "bench", "profile") if find_spec(f"{__name__}.{name}"))
REFUSED, INTERRUPTED, CLOSED = 2, 130, 141  # exit status; the latter two as of a shell: Ctrl-C, and a pipe that nobody reads


class Refused(ValueError):
    """A request that cannot be measured; the message says what was given and what is expected."""
