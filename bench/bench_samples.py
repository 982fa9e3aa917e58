"""Per-sample gradient norms over plain forward and backward, and Reweighted SAM over SAM, on CPU: ours against Opacus and BackPACK.

    python -m pytest bench -k samples --benchmark-json=bench/.results/samples.json    -k "samples and cnn": some of the cells

As in bench_step.py, what counts is in ``extra_info``, per provider.
"""

import pytest
import sample_cell
import sample_steps
from sample_cases import CASES


@pytest.mark.parametrize("case", CASES)
def bench_samples(benchmark, case, backend):
    benchmark.extra_info.update(benchmark.pedantic(sample_cell.measure, (case, backend)))


@pytest.mark.parametrize("model", sample_steps.MODELS)
def bench_samples_step(benchmark, model, backend):
    benchmark.extra_info.update(benchmark.pedantic(sample_steps.measure, (model, backend)))
