"""The Triton kernels over single layers as they are compiled ahead of time, and their budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads). A program of 128 threads: 12 fit a multiprocessor at 40 registers, 10 at 48, 8 at 64,
# 7 at 72; the one of 512 threads that holds rows of 8192 may take 128. A tile is two 16-byte loads per operand, one in bf16; maps read
# theirs in two sweeps, runs eight at a time.
BUDGETS = {
    "rows_1024": (72, 6),
    "rows_1024_half": (64, 3),
    "rows_64_half": (64, 3),
    "rows_8192_half": (128, 6),
    "rows_rms_half": (64, 3),
    "rows_groups": (56, 4),
    "maps_1024": (40, 8),
    "maps_1024_half": (40, 4),
    "maps_64_half": (48, 4),
    "maps_instance_half": (40, 4),
    "maps_tall_half": (48, 6),
    "runs_1024": (72, 16),
    "runs_1024_half": (64, 8),
    "runs_1": (64, 0),
}
TYPES = dict.fromkeys(("own", "run", "runs", "groups", "channels", "positions", "length", "features", "padding"), "i32")
TYPES |= dict.fromkeys(("ids", "order", "ends"), "*i64")  # all others are *fp32
ALIGNED = {"grad", "x", "mean", "rstd", "weight", "dx", "partial", "g", "ids", "order", "ends", "channels", "positions", "features"}
HALF = dict.fromkeys(("grad", "x", "weight", "dx", "g"), "*bf16")


def options():
    return {"num_warps": 4}


def variants():
    """name -> (kernel, its compile-time arguments, types, options); None is an absent tensor, 1 a size that the JIT knows."""
    from sam_kernels.backends.triton.embedding import CHUNK, ROWS, runs_kernel
    from sam_kernels.backends.triton.normalization import TILE, maps_kernel, rows_kernel

    def row(width, **fixed):
        return {"groups": 1, "COUPLED": True, "ROWS": max(1, TILE // width), "WIDTH": width, **fixed}

    def tile(tall, wide, **fixed):
        return {"COUPLED": True, "CHANNELS": tall, "POSITIONS": wide, **fixed}

    runs = {"CHUNK": CHUNK, "ROWS": ROWS, "WIDTH": 1024}
    return {
        "rows_1024": (rows_kernel, row(1024)),
        "rows_1024_half": (rows_kernel, row(1024), HALF),
        "rows_64_half": (rows_kernel, row(64), HALF),
        "rows_8192_half": (rows_kernel, row(8192), HALF, {"num_warps": 16}),
        "rows_rms_half": (rows_kernel, row(1024, mean=None), HALF),
        "rows_groups": (rows_kernel, {"weight": None, "COUPLED": False, "ROWS": 128, "WIDTH": 8}),
        "maps_1024": (maps_kernel, tile(1, TILE)),
        "maps_1024_half": (maps_kernel, tile(1, TILE), HALF),
        "maps_64_half": (maps_kernel, tile(TILE // 64, 64), HALF),
        "maps_instance_half": (maps_kernel, tile(1, TILE, channels=1, mean=None), HALF),
        "maps_tall_half": (maps_kernel, tile(TILE, 1, positions=1, groups=1), HALF),
        "runs_1024": (runs_kernel, runs),
        "runs_1024_half": (runs_kernel, runs, HALF),
        "runs_1": (runs_kernel, {**runs, "features": 1, "WIDTH": 1}, {}, {"num_warps": 1}),
    }
