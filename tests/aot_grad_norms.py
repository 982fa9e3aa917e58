"""The kernels of per-sample gradient norms as they are compiled ahead of time, and their budgets. See test_triton_aot.py.

Shapes are multiples of 16, as in most networks; a variant whose name ends in ``_odd`` has none, and gets its elements one by one.
"""

# variant: (most registers, fewest 16-byte loads, fewest tensor-core instructions). 128 threads of at most 128 registers fit a
# multiprocessor four times, 256 of at most 128 twice; the 128 x 128 tiles of the Gram method hold two accumulators and fit once.
BUDGETS = {
    "product": (32, 2, 0),
    "product_fp32": (32, 4, 0),
    "direct_128": (168, 24, 4),
    "direct_16": (48, 8, 4),
    "direct_p_1": (64, 4, 0),
    "direct_fp32": (64, 6, 0),
    "direct_tf32": (168, 0, 4),  # its transposed operand goes to shared memory 4 bytes at a time
    "direct_odd": (152, 0, 2),
    "gram_128": (255, 48, 8),
    "gram_128_one": (216, 24, 8),
    "gram_64": (144, 64, 8),
    "gram_16": (56, 16, 8),
    "gram_packed": (56, 16, 8),
    "gram_fp32": (124, 12, 0),
    "gram_tf32": (255, 48, 8),
    "gram_odd": (255, 0, 4),
    "conv_direct": (168, 24, 4),
    "conv_direct_contiguous": (232, 0, 2),
    "conv_gram": (255, 48, 8),
    "conv_gram_contiguous": (255, 0, 4),
    "conv_depthwise": (96, 0, 0),
    "conv_3d_fp32": (72, 0, 0),
}
TYPES = {}  # given per variant
ALIGNED = set()
EVEN, ODD, ONE = "i32:16", "i32", "1"  # a multiple of 16, any number, 1: what the JIT tells the compiler


def options():
    return {}


def variants():
    """name -> (kernel, compile-time arguments, types of the others, launch options), with the tiles of the launch table."""
    from sam_kernels.backends.triton.sample_launch import TILES
    from sam_kernels.backends.triton.sample_norms import direct_kernel, gram_kernel, product_kernel

    def types(element, sizes, a_strides=(ODD, (EVEN,), (ONE,)), g_strides=(ODD, (EVEN,), (ONE,)), groups=ONE):
        strides = {"a_strides": (EVEN, *a_strides), "g_strides": (EVEN, *g_strides)}
        pointers = {"a": f"*{element}:16", "g": f"*{element}:16", "partials": "*fp32:16"}
        return {**pointers, **strides, "samples": EVEN, "groups": groups, **dict(zip(("T", "d", "p"), sizes, strict=True))}

    def compiled(kernel, tile, blocks, given, precision="ieee", radices=((), (), (), ())):
        names = ("A_ROWS", "A_COLUMNS", "G_ROWS", "G_COLUMNS")
        fixed = {**dict(zip(names, radices, strict=True)), **blocks, "WIDE": False}
        fixed |= {} if kernel is product_kernel else {"PRECISION": precision}
        return kernel, fixed, given, {"num_warps": tile.warps, "num_stages": tile.stages}

    def direct(edge, given, p=None, depth=None, cores=True, size=2, **more):
        tile = TILES[cores, edge]
        blocks = {"BLOCK_T": depth or tile.direct // size, "BLOCK_D": edge, "BLOCK_P": p or edge}
        return compiled(direct_kernel, tile, blocks, given, **more)

    def gram(edge, given, span=None, same=False, depth=None, cores=True, size=2, bias=True, **more):
        tile = TILES[cores, edge]
        blocks = {"BIAS": bias, "EDGE": edge, "SPAN": span or edge, "SAME": same, "BLOCK_K": depth or tile.gram // size}
        return compiled(gram_kernel, tile, blocks, given, **more)

    def product(given):
        return compiled(product_kernel, TILES[True, 16], {"BIAS": True, "BLOCK_K": 1024}, given)

    bf16, fp32 = types("bf16", (ODD, EVEN, EVEN)), types("fp32", (ODD, EVEN, EVEN))
    odd = types("bf16", (ODD,) * 3, *[(ODD, (ODD,), (ONE,))] * 2)
    one = types("bf16", (ODD, EVEN, ONE))
    # 3 x 3 on 14 x 14: rows (h, w); columns (h, (w, channel)) in channels-last, (channel, h, w) in contiguous tensors
    last = types("bf16", (EVEN, EVEN, EVEN), (ODD, (EVEN, EVEN), (EVEN, ONE)), (ODD, (EVEN,), (ONE,)))
    contiguous = types("bf16", (ODD, EVEN, EVEN), (ODD, (ODD, ONE), (ODD, ODD, ONE)), (ODD, (ONE,), (ODD,)))
    depthwise = types("bf16", (ODD, ODD, ONE), (ODD, (ODD, ONE), (ODD, ONE)), (ODD, (ONE,), (ODD,)), EVEN)
    volume = types("fp32", (ODD,) * 3, (ODD, (ODD, ODD, ODD, ONE), (ODD, ODD, ODD, ONE)), (ODD, (ODD, ONE), (ODD,)), ODD)
    in_last, in_contiguous = ((14,), (192,), (), ()), ((14,), (3, 3), (), ())
    full = {"cores": False, "size": 4}
    return {
        "product": product(bf16),
        "product_fp32": product(fp32),
        "direct_128": direct(128, bf16),
        "direct_16": direct(16, bf16),
        "direct_p_1": direct(64, one, p=1),
        "direct_fp32": direct(64, fp32, **full),
        "direct_tf32": direct(128, fp32, size=4, precision="tf32"),
        "direct_odd": direct(128, odd, depth=32),
        "gram_128": gram(128, bf16),
        "gram_128_one": gram(128, bf16, same=True),
        "gram_64": gram(64, bf16),
        "gram_16": gram(16, bf16, same=True),
        "gram_packed": gram(16, bf16, span=4, same=True),
        "gram_fp32": gram(64, fp32, **full),
        "gram_tf32": gram(128, fp32, size=4, precision="tf32"),
        "gram_odd": gram(128, odd, depth=32),
        "conv_direct": direct(128, last, radices=in_last),
        "conv_direct_contiguous": direct(128, contiguous, depth=32, radices=in_contiguous),
        "conv_gram": gram(128, last, radices=in_last),
        "conv_gram_contiguous": gram(128, contiguous, depth=32, radices=in_contiguous),
        "conv_depthwise": direct(64, depthwise, p=1, depth=32, radices=((56,), (7,), (), ())),
        "conv_3d_fp32": direct(64, volume, radices=((4, 7, 3), (3, 2, 2), (84,), ()), **full),
    }
