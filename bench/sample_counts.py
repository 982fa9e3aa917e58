"""Operations and memory of one run. Operations are what torch's dispatcher is asked for, views and bare allocations aside: on a GPU a
launch each. Ours is counted by what its ops call in turn."""

from typing import Any

from memory import starts, timeline
from sample_run import Run
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode


class Count(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sam_kernels":
            from sam_kernels.registry import OPS

            *arguments, backend = args
            with self:
                return OPS[func._opname].implementations[backend].function(*arguments)
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count += not views and not func._opname.startswith(("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias"))
        return func(*args, **(kwargs or {}))


def operations(run: Run) -> int:
    """Of forward, backward and norms."""
    run.clear()
    with Count() as counted:
        run.norms()
    return counted.count


def peak_bytes(run: Run) -> tuple[int, int | None]:
    """Most bytes at once beyond weights and batch, until the norms are there, and until the weighted gradient is."""
    run.clear()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function("norms"):
            run.norms()
        with record_function("finish"):
            if run.finishes:
                run.finish()
    run.clear()
    totals, at = timeline(profiler), starts(profiler, "finish")["finish"]
    return max(n for t, n in totals if t < at), max(n for _, n in totals) if run.finishes else None
