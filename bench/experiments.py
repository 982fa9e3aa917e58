"""The experiments of ``tune.py``: what is changed, what is timed, and what is expected of it.

A change is a text of a source file, which must occur there once, and what takes its place; or another cell, where two things that are
there are compared. The predicted number is the time of the changed one over that of the other.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cell:
    """As ``python -m sam_kernels bench`` is asked for it: ``on`` is a workload, or sizes."""

    op: str
    on: str
    backend: str
    dtype: str = "fp32"


@dataclass(frozen=True)
class Experiment:
    name: str
    prediction: str
    cell: Cell
    file: str = ""
    old: str = ""
    new: str = ""
    other: Cell | None = None

    @property
    def change(self) -> str:
        if self.other is None:
            return f"`{self.old.strip()}` → `{self.new.strip()}` in {self.file}"
        names = ("op", "on", "backend", "dtype")
        pairs = [(getattr(self.other, name), getattr(self.cell, name)) for name in names]
        return ", ".join(f"{mine} for {its}" for mine, its in pairs if mine != its)


TABLE, LAUNCH = "sam_kernels/backends/triton/table.py", "sam_kernels/backends/triton/sample_launch.py"
ASCEND, STEP = Cell("ascend_", "resnet50", "cuda"), Cell("descend_:sgd", "gpt2", "cuda")
TRITON = replace(ASCEND, backend="triton")
BACKWARDS = "for (int c = block + (device_args(launch).table.chunks() - 1 - block) / blocks * blocks; c >= 0; c -= blocks) {"
FORWARDS = "for (int c = block; c < device_args(launch).table.chunks(); c += blocks) {"
IN_FLIGHT = "constexpr int kInFlight = kNoise || sizeof(T) < sizeof(A) ? 16 : {}, kFirst"
GRAM = Cell("linear_grad_norms:gram", "16x197x768x3072", "triton", "bf16")
PIXELS = {"14x14": "32x256x14x14x256x3", "16x16": "32x320x16x16x320x3"}

EXPERIMENTS = [
    Experiment(
        "forward traversal, cuda", "1.08: of 102 MB of gradients some 40 MB are still in an L2 of 60 MB, of 511 MB that move",
        ASCEND, "csrc/cuda/ascend.cuh", BACKWARDS, FORWARDS,
    ),
    Experiment(
        "forward traversal, triton", "1.08, for the same reason; the programs start in order of their numbers, all but exactly",
        TRITON, "sam_kernels/backends/triton/ascend.py", "chunk = tl.num_programs(0) - 1 - tl.program_id(0)", "chunk = tl.program_id(0)",
    ),
    Experiment(
        "chunks of 4096, cuda", "1.02: twice as many searches in the table, 30 clocks each beside 600 of a chunk's memory",
        ASCEND, "csrc/cuda/entry_points.h", "kCudaChunk = 8192", "kCudaChunk = 4096",
    ),
    Experiment(
        "chunks of 16384, cuda", "1.02: 1560 chunks on 396 blocks leave the last round half empty, one of eight rounds of 8192",
        ASCEND, "csrc/cuda/entry_points.h", "kCudaChunk = 8192", "kCudaChunk = 16384",
    ),
    Experiment(
        "128 threads a block, cuda", "1.00: registers hold as many threads in smaller blocks",
        STEP, "csrc/cuda/payload.cuh", "constexpr int kThreads = 256;", "constexpr int kThreads = 128;",
    ),
    Experiment(
        "one vector in flight, cuda", "1.05: 25 KB in flight on a multiprocessor, what 4.3 TB/s at 750 ns need, with nothing to spare",
        ASCEND, "csrc/cuda/ascend.cuh", IN_FLIGHT.format(24), IN_FLIGHT.format(8),
    ),
    Experiment(
        "six vectors in flight, cuda", "1.00: three vectors are 74 KB in flight, three times what is needed; 1.1 where it spills",
        ASCEND, "csrc/cuda/ascend.cuh", IN_FLIGHT.format(24), IN_FLIGHT.format(48),
    ),
    Experiment(
        "chunks of 2048, triton", "1.03: twice as many programs, each with a dozen scalar loads before its first vector",
        TRITON, TABLE, "CHUNK = 4096", "CHUNK = 2048",
    ),
    Experiment(
        "chunks of 8192, triton", "0.99: half as many programs; 3281 of them fill 132 multiprocessors twice",
        TRITON, TABLE, "CHUNK = 4096", "CHUNK = 8192",
    ),
    Experiment(
        "tiles of 2048, triton", "1.00: twice the vectors in flight, half the programs on a multiprocessor",
        TRITON, TABLE, "TILE = 1024", "TILE = 2048",
    ),
    Experiment(
        "8 warps, triton", "1.03: one vector per thread and operand instead of two", TRITON, TABLE, '"num_warps": 4', '"num_warps": 8'
    ),
    *(
        Experiment(f"triton for cuda, {cell.op}, {cell.on}", prediction, cell, other=replace(cell, backend="triton"))
        for cell, prediction in (
            (ASCEND, "1.03: a second launch, 4 us between norm and update beside 125"),
            (replace(ASCEND, on="gpt2"), "1.01: the same 4 us beside 610"),
            (replace(ASCEND, on="tiny10000"), "0.6: cuda first writes its table by a dozen kernels of 2 us, beside 30"),
            (replace(STEP, on="resnet50"), "1.02: the same bytes, and a kernel of torch that counts steps, 2 us beside 125"),
            (STEP, "1.00: the same bytes, and the same 2 us beside 610"),
            (Cell("inner_products", "resnet50", "cuda"), "1.10: a kernel of torch adds up the partial sums, 3 us beside 26"),
            (Cell("gibbs_weights", "256", "cuda"), "1.0: one block, one launch, all of it latency"),
            (Cell("gibbs_weights", "1000000", "cuda"), "1.0: one block in both, for 16 MB: wrong for a million"),
            (Cell("cross_entropy_sample", "256x1000", "cuda"), "1.0: a launch"),
            (Cell("cross_entropy_sample", "1024x50257", "cuda"), "1.0: 206 MB, read once in both"),
            (Cell("cross_entropy_sample_backward", "1024x50257", "cuda"), "1.0: 412 MB in both"),
        )
    ),
    Experiment(
        "Gram tiles of 64 at T = 197", "0.95: 10 pairs of 64 x 64 are 0.83 of the products of 3 of 128 x 128, on smaller tiles",
        GRAM, LAUNCH, "return 64 if 128 < T <= 192 else", "return 64 if 128 < T <= 256 else",
    ),
    Experiment(
        "direct for Gram at T = 197", "4: 2 T d p against T (T + 1) (d + p) operations are 6.2, with better tiles", GRAM,
        other=replace(GRAM, op="linear_grad_norms:direct"),
    ),
    *(
        Experiment(
            f"direct for Gram of patches, {size}", prediction, Cell("conv_grad_norms:gram", on, "triton", "bf16"),
            other=Cell("conv_grad_norms:direct", on, "triton", "bf16"),
        )
        for (size, on), prediction in zip(PIXELS.items(), ("2.0: 2.3 times the operations", "2.0: 2.2 times the operations"), strict=True)
    ),
]  # fmt: skip
OPEN = (
    "norms inside the weight-gradient GEMM against cuBLAS + Gram: no such GEMM is written; prediction: at d = p = 1024 it wins from T = 512"
    " on, where the Gram matrices cost more than a second reading of the product",
    "the Gram matrix of pixels at 14x14 and 16x16: not written for GPUs, because R of 256 pixels fills the registers of a multiprocessor; "
    "prediction: no gain over the Gram matrix of patches on tensor cores",
)
