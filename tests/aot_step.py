"""The step's Triton kernels as they are compiled ahead of time, and their budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads). A program of 128 threads: 12 fit a multiprocessor at 40 registers, 10 at 48,
# 9 at 56, 8 at 64, 7 at 72, 5 at 96, 4 at 128, 3 at 168; four programs of Adam keep 80 KB in flight, more than the memory needs.
# A tile is two 16-byte loads per operand that is read, one per operand in bf16; what the compiler unrolls comes on top.
BUDGETS = {
    "inner_products_1": (40, 2),
    "inner_products_3": (112, 6),
    "inner_products_weighted": (48, 4),
    "ascend_norm": (40, 2),
    "ascend_norm_all": (72, 6),
    "ascend": (48, 4),
    "ascend_given": (48, 4),
    "ascend_all": (64, 6),
    "noise_norm": (40, 0),
    "noise_norm_all": (72, 4),
    "noise": (56, 2),
    "noise_half": (64, 1),
    "noise_all": (56, 4),
    "descend_sgd": (48, 6),
    "descend_stable": (56, 6),
    "descend_all": (112, 12),
    "inner_products_half": (40, 1),
    "ascend_norm_half": (40, 1),
    "ascend_half": (48, 2),
    "descend_sgd_half": (56, 4),
    "descend_stable_half": (72, 4),
    "descend_adam": (96, 8),
    "descend_adam_half": (128, 6),
    "descend_amsgrad": (128, 10),
    "descend_adam_all": (168, 16),
    "descend_lion": (64, 6),
    "restore": (40, 2),
}
TYPES = {"records": "*i64", "tensor_of": "*i32", "chunks": "i32", "noise": "*i64", "stream": "i32"}  # all others are *fp32
ALIGNED = {"records", "tensor_of", "partials", "etas", "went", "squares"}  # of our own allocation: the JIT sees and uses it


def options():
    from sam_kernels.backends.triton.table import LAUNCH

    return LAUNCH


def variants():
    """name -> (kernel, its compile-time arguments); None is an absent tensor."""
    import triton.language as tl

    from sam_kernels.backends.triton.ascend import ascend_kernel
    from sam_kernels.backends.triton.ascend_norm import norm_kernel
    from sam_kernels.backends.triton.descend import descend_kernel
    from sam_kernels.backends.triton.inner_products import inner_products_kernel

    single, half = {"T": tl.float32}, {"T": tl.bfloat16}
    products = {**single, "HAS_G": True, "HAS_H": False, "HAS_Q": False, "WEIGHTED": False}
    norm = {**single, "rho": None, "direction": None, "noise": None, "HAS_G": True, "HAS_Q": False, "WEIGHTED": False, "PLAIN": False}
    absent = dict.fromkeys(("rho", "direction", "gram", "q_steps", "noise"))
    up = {**single, **absent, "HAS_G": True, "HAS_Q": False, "EMA": False}
    lists = {"HAS_STASH": True, "HAS_H": True, "HAS_G": False, "HAS_Q": False, "WRITE_Q": False, "AT_PERTURBED": False}
    no_scalars = {"sq_norm": None, "found_inf": None, "loss_scale": None, "lr": None, "squares": None}
    no_gram = {"partials": None, "gram": None, "NEEDED": 0, "REDUCED": 0}
    step = {**single, **lists, **no_scalars, **no_gram, "BASE": "sgd", "STATE": 1}
    stable = {**single, **lists, **no_scalars, "BASE": "sgd", "STATE": 1, "NEEDED": 0b101, "REDUCED": 0b100}
    every = {**single, **dict.fromkeys(lists, True), "NEEDED": 0b111111, "REDUCED": 0b111111}

    def noise(fixed):
        return {key: value for key, value in fixed.items() if key != "noise"}

    return {
        "inner_products_1": (inner_products_kernel, products),
        "inner_products_3": (inner_products_kernel, {**products, "HAS_H": True, "HAS_Q": True}),
        "inner_products_weighted": (inner_products_kernel, {**products, "WEIGHTED": True}),
        "inner_products_half": (inner_products_kernel, {**products, **half}),
        "ascend_norm": (norm_kernel, norm),
        "ascend_norm_half": (norm_kernel, {**norm, **half}),
        "ascend_norm_all": (norm_kernel, {**single, "noise": None, "HAS_G": True, "HAS_Q": True, "WEIGHTED": True, "PLAIN": True}),
        "noise_norm": (norm_kernel, noise(norm)),
        "noise_norm_all": (norm_kernel, noise({**norm, "HAS_Q": True, "WEIGHTED": True})),
        "ascend": (ascend_kernel, up),
        "ascend_half": (ascend_kernel, {**up, **half}),
        "ascend_given": (ascend_kernel, {**up, "partials": None}),
        "ascend_all": (ascend_kernel, {**single, "noise": None, "HAS_G": True, "HAS_Q": True, "EMA": True}),
        "noise": (ascend_kernel, noise(up)),
        "noise_half": (ascend_kernel, noise({**up, **half})),
        "noise_all": (ascend_kernel, noise({**up, "HAS_Q": True})),
        "descend_sgd": (descend_kernel, step),
        "descend_sgd_half": (descend_kernel, {**step, **half}),
        "descend_stable": (descend_kernel, stable),
        "descend_stable_half": (descend_kernel, {**stable, **half}),
        "descend_all": (descend_kernel, {**every, "BASE": "sgd", "STATE": 1}),
        "descend_adam": (descend_kernel, {**step, "BASE": "adam", "STATE": 2}),
        "descend_adam_half": (descend_kernel, {**step, **half, "BASE": "adam", "STATE": 2}),
        "descend_amsgrad": (descend_kernel, {**step, "BASE": "adam", "STATE": 3}),
        "descend_adam_all": (descend_kernel, {**every, "BASE": "adam", "STATE": 3}),
        "descend_lion": (descend_kernel, {**step, "BASE": "lion"}),
        "restore": (descend_kernel, {**step, "steps": None, "HAS_H": False, "BASE": "none", "STATE": 0}),
    }
