"""What is run with what: the matrix of ``make bench``."""

from itertools import product

from sam_kernels.profiling.methods import VARIANTS, Method

ALL = [Method(*names) for names in product(VARIANTS, ("sgd", "adamw"), ("fp32", "bf16"))]
SGD, ADAMW = Method(), Method(base="adamw")
MATRIX = {
    "resnet18": ALL,
    "resnet50": [SGD, ADAMW],
    "vit_b16": [SGD, ADAMW],
    "gpt2": [ADAMW, Method(base="adamw", dtype_name="bf16")],
    "tiny300": [SGD, ADAMW],
    "tiny10000": [SGD, ADAMW],
}
"""What ``make bench`` runs; with FULL=1 every workload is run with ALL."""
HOST_MATRIX = [SGD, ADAMW]
