"""The error rule of the project, where the tests look for it; it is that of ``python -m sam_kernels bench`` as well."""

from sam_kernels.profiling.match import FACTOR, ULPS, assert_elementwise, assert_loop, assert_reduction

__all__ = ["FACTOR", "ULPS", "assert_elementwise", "assert_loop", "assert_reduction"]
