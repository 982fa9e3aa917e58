"""The Triton kernels over single layers as they are compiled ahead of time, and their budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads). A row kernel holds 16 elements per thread of two sums and of what it reads: 16 warps
# of 8192 channels may take 128 registers, 4 warps of 1024 at 96 leave room for 5 programs on a multiprocessor.
BUDGETS = {
    "rows_1024": (128, 8),
    "rows_1024_half": (128, 4),
    "rows_64_half": (128, 4),
    "rows_8192_half": (128, 4),
    "rows_rms_half": (128, 4),
    "maps_1024": (128, 16),
    "maps_1024_half": (128, 8),
    "maps_64_half": (128, 8),
    "runs_1024": (128, 16),
    "runs_1024_half": (128, 8),
}
TYPES = dict.fromkeys(("own", "run", "runs", "groups", "channels", "positions", "length", "features", "padding"), "i32")
TYPES |= dict.fromkeys(("ids", "order", "ends"), "*i64")  # all others are *fp32
ALIGNED = {"grad", "x", "mean", "rstd", "weight", "dx", "partial", "g", "ids", "order", "ends", "channels", "positions", "features"}
HALF = dict.fromkeys(("grad", "x", "weight", "dx", "g"), "*bf16")


def options():
    return {"num_warps": 4}


def variants():
    """name -> (kernel, its compile-time arguments, types, options); None is an absent tensor."""
    from sam_kernels.backends.triton.embedding import CHUNK, ROWS, runs_kernel
    from sam_kernels.backends.triton.normalization import TILE, maps_kernel, rows_kernel

    def row(width, **fixed):
        return {"COUPLED": True, "ROWS": max(1, TILE // width), "WIDTH": width, **fixed}

    def tile(positions):
        return {"COUPLED": True, "CHANNELS": TILE // positions, "POSITIONS": positions}

    runs = {"CHUNK": CHUNK, "ROWS": ROWS, "WIDTH": 1024}
    return {
        "rows_1024": (rows_kernel, row(1024)),
        "rows_1024_half": (rows_kernel, row(1024), HALF),
        "rows_64_half": (rows_kernel, row(64), HALF),
        "rows_8192_half": (rows_kernel, row(8192), HALF, {"num_warps": 16}),
        "rows_rms_half": (rows_kernel, row(1024, mean=None), HALF),
        "maps_1024": (maps_kernel, tile(1024)),
        "maps_1024_half": (maps_kernel, tile(1024), HALF),
        "maps_64_half": (maps_kernel, tile(64), HALF),
        "runs_1024": (runs_kernel, runs),
        "runs_1024_half": (runs_kernel, runs, HALF),
    }
