"""The Triton kernels of draw as they are compiled ahead of time, and their budgets. See test_triton_aot.py."""

# variant: (most registers, fewest 16-byte loads: none is asked for, the loads are masked, because a batch has any size).
# Programs of 256 threads, four weights each; arithmetic is in 64 bits.
BUDGETS = {
    "draw_systematic": (112, 0),
    "draw_multinomial": (64, 0),
    "draw_top_k": (96, 0),
    "draw_bernoulli": (68, 0),
    "draw_half": (112, 0),
    "draw_part_peak": (32, 0),
    "draw_part_mass": (32, 0),
    "draw_part_systematic": (116, 0),
    "draw_part_bernoulli": (70, 0),
    "draw_part_cumulate": (64, 0),
    "draw_part_throw": (40, 0),
    "draw_part_divide": (64, 0),
    "draw_part_race": (76, 0),
    "draw_part_rank": (36, 0),
    "draw_part_settle": (96, 0),
}
TYPES = {
    "state": "*i64", "tops": "*i32", "sums": "*i64", "ranks": "*i64", "last": "*fp64", "cdf": "*i64", "counts": "*i32", "flag": "*i32",
    **dict.fromkeys(("count", "k", "length", "span", "parts"), "i32"),
}  # fmt: skip
ALIGNED = {"weights", "state", "tops", "sums", "ranks", "work", "cdf", "counts", "inclusion", "flag"}
WORK = {"multinomial": "*i64", "cumulate": "*i64", "top_k": "*fp64", "race": "*fp64", "rank": "*fp64", "settle": "*fp64"}


def options():
    from sam_kernels.backends.triton.draw_parts import OPTIONS

    return OPTIONS


def variants():
    """name -> (kernel, its compile-time arguments, types that differ); None is an absent tensor."""
    from sam_kernels.backends.triton import draw_parts
    from sam_kernels.backends.triton.draw import whole_kernel

    tile, parts = {"TILE": draw_parts.TILE}, {"TILE": draw_parts.TILE, "PARTS": draw_parts.PARTS}

    def working(name):
        return ({}, {"work": WORK[name]}) if name in WORK else ({"work": None}, {})

    def whole(scheme, **types):
        absent, needed = working(scheme)
        return whole_kernel, {"SCHEME": scheme, **tile, **absent}, needed | types

    def part(phase):
        absent, needed = working(phase)
        return draw_parts.part_kernel, {"PHASE": phase, **parts, **absent}, needed

    return {
        **{f"draw_{scheme}": whole(scheme) for scheme in ("systematic", "multinomial", "top_k", "bernoulli")},
        "draw_half": whole("systematic", weights="*bf16"),
        "draw_part_peak": (draw_parts.peak_kernel, tile),
        "draw_part_mass": (draw_parts.mass_kernel, parts),
        "draw_part_throw": (draw_parts.throw_kernel, parts),
        **{f"draw_part_{phase}": part(phase) for phase in ("systematic", "bernoulli", "cumulate", "divide", "race", "rank", "settle")},
    }
