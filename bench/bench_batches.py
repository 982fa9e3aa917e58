"""What the batch rules cost and save, and the draws they are made of, on CPU: steps over those of SAM, ours against torch.multinomial.

    python -m pytest bench -k batches --benchmark-json=bench/.results/batches.json    -k "batches and draw": some of the cells

As in bench_step.py, what counts is in ``extra_info``, per provider.
"""

import batch_draws
import batch_steps
import pytest


@pytest.mark.parametrize("model", batch_steps.MODELS)
def bench_batches_step(benchmark, model, backend):
    benchmark.extra_info.update(benchmark.pedantic(batch_steps.measure, (model, backend)))


@pytest.mark.parametrize(("n", "k"), batch_draws.SIZES)
def bench_batches_draw(benchmark, n, k, backend):
    benchmark.extra_info.update(benchmark.pedantic(batch_draws.measure, (n, k, backend)))


@pytest.mark.parametrize("n", batch_draws.WEIGHTS)
def bench_batches_weights(benchmark, n, backend):
    benchmark.extra_info.update(benchmark.pedantic(batch_draws.measure_weights, (n, backend)))
