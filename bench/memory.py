"""Memory of a step on CPU beyond weights and gradients, counted at torch's allocator: the peak, and what is held between phases."""

from itertools import accumulate

import torch
from match import gradients, parameters
from providers import Provider, Step
from torch.nn import Parameter
from torch.profiler import ProfilerActivity, profile

from sam_kernels.profiling.methods import STATE, Method
from sam_kernels.profiling.workloads import WORKLOADS, elements

LINE = 64  # bytes; buffers are cut at cache lines
LONGEST = 1000  # tensors: of longer lists these are counted, and the result is scaled, since the profiler keeps every call


def extra_bytes(provider: Provider, workload: str, method: Method, variant: dict) -> tuple[int, int]:
    """(peak, held) of the second step, which no longer builds anything."""
    weights = parameters(workload, method, "cpu")[:LONGEST]
    grads = [values[:LONGEST] for values in gradients(workload, method, 0, "cpu")]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        copies = [Parameter(p.detach().clone()) for p in weights]  # made here, since a provider may let go of them
        step: Step = provider.build(copies, method, variant)
        del copies
        for k in range(2):
            for name, load, phase in zip(("first", "second"), grads, (step.first, step.second), strict=True):
                step.load(load)
                with torch.profiler.record_function(f"{name} {k}"):
                    phase()
    totals = timeline(profiler)
    spans = starts(profiler, "first 1", "second 1")
    held = [n for t, n in totals if t < spans["second 1"]][-1]
    peak = max(n for t, n in totals if t >= spans["first 1"] or n == held)
    own = sum(p.nbytes for p in step.params)
    scale = elements(WORKLOADS[workload]) / sum(p.numel() for p in step.params)
    return int(scale * (peak - own)), int(scale * (held - own))


def timeline(profiler: profile) -> list[tuple[int, int]]:
    """(time, bytes allocated since the start) at every change."""
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return list(zip((t for t, _ in changes), accumulate(n for _, n in changes), strict=True))


def starts(profiler: profile, *names: str) -> dict[str, int]:
    """When the labelled spans began."""
    return {e.name(): e.start_ns() for e in profiler.profiler.kineto_results.events() if e.name() in names}


def most_allowed(workload: str, method: Method) -> int:
    """Stash and base state in fp32, every list cut at cache lines, and 1 % for tables and scalars."""
    shapes, states = WORKLOADS[workload], len(STATE[method.base])
    lists = elements(shapes) * (method.dtype.itemsize + 4 * states)
    return int(1.01 * lists) + LINE * len(shapes) * (1 + states)
