"""Time of one optimizer step (both phases, no model) on CPU: ours against the peers, matched first, interleaved in one run.

    python -m pytest bench --benchmark-json=bench/.results/cpu.json && python bench/report.py bench/.results/cpu.json
    python -m pytest bench -k "gpt2 and adamw"          some of the cells; --full: every method on every workload

pytest-benchmark's own time is that of the whole cell; what counts is in ``extra_info``, per provider. A step's GB/s is the bytes it
*has to* move (methods.py) over its time, whoever takes it, and its share is that rate over the rate of a torch copy in the same
round. ``bench_host`` takes steps over tensors of one element, where nothing is left but the overhead.
"""

from cell import measure
from methods import ALL, HOST_MATRIX, MATRIX
from providers import ours

from sam_kernels.profiling.workloads import HOST_WORKLOADS


def pytest_generate_tests(metafunc):
    if metafunc.function is bench_host:
        cells = [(workload, method) for workload in HOST_WORKLOADS for method in HOST_MATRIX]
    else:
        full = metafunc.config.getoption("--full")
        cells = [(workload, method) for workload, methods in MATRIX.items() for method in (ALL if full else methods)]
    metafunc.parametrize(("workload", "method"), cells, ids=[f"{workload}-{method}" for workload, method in cells])


def bench_step(benchmark, workload, method, backend):
    benchmark.extra_info.update(benchmark.pedantic(measure, (workload, method, ours(backend))))


def bench_host(benchmark, workload, method, backend):
    benchmark.extra_info.update(benchmark.pedantic(measure, (workload, method, ours(backend))))
