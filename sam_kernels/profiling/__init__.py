"""Measuring sam_kernels: ``python -m sam_kernels info | bench | profile``. Every command is a module with ``add_arguments`` and ``run``."""


class Refused(ValueError):
    """A request that cannot be measured; the message says what was given and what is expected."""
