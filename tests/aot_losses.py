"""The Triton kernels of cross_entropy_sample as they are compiled ahead of time, and their budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads). A tile of 2048 is four 16-byte vectors per thread, two of halves; weighted, two of the
# logits and two of the weights. 128 threads: 12 programs fit a multiprocessor at 40 registers, 8 at 64, 4 at 112.
BUDGETS = {
    "cross_entropy": (64, 4),
    "cross_entropy_half": (68, 2),
    "cross_entropy_smoothed": (112, 4),
    "cross_entropy_weighted": (112, 4),
    "cross_entropy_narrow": (40, 1),
    "cross_entropy_single": (40, 0),
    "cross_entropy_backward_single": (40, 0),
    "cross_entropy_backward": (40, 4),
    "cross_entropy_backward_half": (32, 2),
    "cross_entropy_backward_weighted": (32, 4),
}
TYPES = {
    "target": "*i64", "rows": "i32", "classes": "i32", "stride": "i32", "ignore_index": "i32",
    "smoothing": "fp32",
}  # fmt: skip
ALIGNED = {
    "logits", "target", "weight", "loss", "norm", "statistics", "grad", "out", "classes", "stride",
}  # fmt: skip


def options():
    from sam_kernels.backends.triton.table import LAUNCH

    return LAUNCH


def variants():
    """name -> (kernel, its compile-time arguments, types that differ); None is an absent tensor; C = 32000, 10, 1."""
    from sam_kernels.backends.triton.cross_entropy import gradient_kernel, loss_kernel

    plain = {"weight": None, "ROWS": 1, "BLOCK": 2048, "MODE": 0}
    smoothed, weighted = {**plain, "BLOCK": 2048, "MODE": 1}, {"ROWS": 1, "BLOCK": 1024, "MODE": 2}
    half = {"logits": "*bf16", "out": "*bf16"}
    single = {"classes": 1, "stride": 1, "ROWS": 32, "BLOCK": 16, "MODE": 2}  # a 1 is a compile-time constant
    return {
        "cross_entropy_single": (loss_kernel, single),
        "cross_entropy_backward_single": (gradient_kernel, single),
        "cross_entropy": (loss_kernel, plain),
        "cross_entropy_half": (loss_kernel, plain, half),
        "cross_entropy_smoothed": (loss_kernel, smoothed),
        "cross_entropy_weighted": (loss_kernel, weighted),
        "cross_entropy_narrow": (loss_kernel, {**plain, "ROWS": 32, "BLOCK": 16}),
        "cross_entropy_backward": (gradient_kernel, plain),
        "cross_entropy_backward_half": (gradient_kernel, plain, half),
        "cross_entropy_backward_weighted": (gradient_kernel, weighted),
    }
