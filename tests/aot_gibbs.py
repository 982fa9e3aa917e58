"""The Triton kernel of gibbs_weights as it is compiled ahead of time, and its budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads: the loads are masked, because a batch has any size). One program of 256 threads.
BUDGETS = {
    "gibbs_weights": (64, 0),
    "gibbs_weights_relative": (64, 0),
}
TYPES = {"flag": "*i32", "count": "i32", "lam": "fp32"}
ALIGNED = {"norms", "lam_device", "weights", "ess", "log_partition", "flag"}


def options():
    from sam_kernels.backends.triton.gibbs_weights import OPTIONS

    return OPTIONS


def variants():
    """name -> (kernel, its compile-time arguments, types that differ); None is an absent tensor."""
    from sam_kernels.backends.triton.gibbs_weights import BLOCK, gibbs_kernel

    return {
        "gibbs_weights": (gibbs_kernel, {"lam_device": None, "RELATIVE": False, "BLOCK": BLOCK}),
        "gibbs_weights_relative": (gibbs_kernel, {"RELATIVE": True, "BLOCK": BLOCK}, {"norms": "*bf16"}),
    }
