"""What gpu.py measures of one provider on a CUDA device: host, wall and device time of both phases, launches, peak memory."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from match import gradients, parameters
from providers import Provider
from torch import Tensor

from sam_kernels.profiling import device
from sam_kernels.profiling.methods import Method
from sam_kernels.profiling.steps import Step
from sam_kernels.profiling.timing import Rounds, Times

CALIBRATION = 5
DEVICE = "cuda"
HOST, WALL, DEVICE_TIME = slice(0, 2), slice(2, 4), slice(4, 6)  # what an entry returns: both phases of each


def entry(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> tuple[Step, Callable[[], Times]]:
    step = provider.build(parameters(workload, method, DEVICE), method, variant)
    g, h = gradients(workload, method, 0, DEVICE)
    return step, device.cuda_entry(phases_of(step, g, h))


def phases_of(step: Step, g: list[Tensor], h: list[Tensor]) -> device.Phases:
    return [(lambda: step.load(g), step.first), (lambda: step.load(h), step.second)]


def copy_entry(nbytes: int) -> Callable[[], Times]:
    phases = device.copy_phases(nbytes, DEVICE)
    return lambda: (0.0, 0.0, 0.0, 0.0, *device.event_times(phases, 0.0), 0.0)


def column(rounds: Rounds, name: str, part: slice) -> list[float]:
    return [sum(times[part]) for times in rounds.times[name]]


def fastest(provider: Provider, workload: str, method: Method) -> dict[str, Any]:
    """The variant with the least wall time."""
    variants = provider.usable(method, DEVICE)
    if len(variants) == 1:
        return variants[0]
    rounds = Rounds({str(k): entry(provider, workload, method, v)[1] for k, v in enumerate(variants)})
    rounds.run(CALIBRATION, discard=3)
    return variants[min(range(len(variants)), key=lambda k: min(column(rounds, str(k), WALL)))]


def launches(step: Step, timed: Callable[[], Times]) -> int | None:
    """Kernels, copies and fills on the device in one step; ``timed`` has set gradients."""
    timed()
    return device.launches([(device.nothing, step.first), (device.nothing, step.second)])


def peak_bytes(provider: Provider, workload: str, method: Method, variant: dict[str, Any]) -> int:
    """Peak of allocated memory in a step beyond weights and the two gradients: stash, momentum, temporaries."""
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    step, timed = entry(provider, workload, method, variant)
    timed()
    torch.cuda.reset_peak_memory_stats()
    timed()
    return torch.cuda.max_memory_allocated() - before - 3 * sum(p.nbytes for p in step.params)
