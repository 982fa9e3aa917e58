"""What a fused step may cost beside its kernels: two native calls, no other op, no allocation, no wait for the host."""

import gc
from typing import Any
from weakref import ref

import pytest
import torch
from problems import closure_of, model
from torch.utils._python_dispatch import TorchDispatchMode

from sam_kernels.optim import ASAM, SAM, StableSAM


class Recorder(TorchDispatchMode):
    """Names of all ops that are dispatched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


FREE = ("aten::view", "profiler::_record_function_enter_new", "profiler::_record_function_exit._RecordFunction")  # no memory, no kernel


def work(recorder: Recorder) -> list[str]:
    return [name for name in recorder.names if name not in FREE]


SETTINGS: dict[str, dict[str, Any]] = {
    "sam": {"lr": 0.1, "momentum": 0.9},
    "asam": {"lr": 0.1, "kind": ASAM},
    "stable": {"lr": 0.1, "momentum": 0.9, "kind": StableSAM},
    "clipped": {"lr": 0.1, "max_norm": 0.1},
    "adamw": {"base": "adamw", "lr": 0.1},
    "amsgrad": {"base": "amsgrad", "lr": 0.1},
    "lion": {"base": "lion", "lr": 0.1},
    "capturable": {"lr": torch.tensor(0.1), "rho": torch.tensor(0.05), "capturable": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_two_native_calls_and_nothing_else(setting: str) -> None:
    options = dict(SETTINGS[setting])
    net = model(dtype=torch.float32)
    opt = options.pop("kind", SAM)(net.parameters(), options.pop("base", "sgd"), backend="cpp", **options)
    for step in range(3):
        net.zero_grad()
        closure_of(net, step)()
        with Recorder() as first:
            opt.first_step()
        net.zero_grad()
        closure_of(net, step)()
        with Recorder() as second:
            opt.second_step()
    assert work(first) == ["sam_kernels_native::ascend_"] and work(second) == ["sam_kernels_native::descend_"]


def test_frozen_parameters_cost_no_search_and_no_wait() -> None:
    net = model(dtype=torch.float32)
    next(net.parameters()).requires_grad_(False)
    opt = SAM(net.parameters(), "sgd", lr=0.1, momentum=0.9, backend="cpp")
    for step in range(3):
        for phase in (opt.first_step, opt.second_step):
            net.zero_grad()
            closure_of(net, step)()
            with Recorder() as recorder:
                phase()
    assert not {"aten::_local_scalar_dense", "aten::item"} & set(recorder.names)
    assert [name for name in recorder.names if name.startswith("sam_kernels")] == ["sam_kernels_native::descend_"]


def test_the_stash_is_the_only_list_kept_beside_the_state() -> None:
    params = [torch.zeros(1000, requires_grad=True) for _ in range(10)]
    opt = SAM(params, "adamw", lr=0.1, backend="cpp")
    for phase in (opt.first_step, opt.second_step):
        for p in params:
            p.grad = torch.ones(1000)
        phase()
    (bucket,) = opt._get_buckets()
    owned = [bucket.stash, *bucket.state.buffers.values()]
    assert set(bucket.state.buffers) == {"m", "v"}
    total = sum(row[0].untyped_storage().nbytes() for row in owned)
    assert total <= 3 * 4 * 10_000 * 1.01 and all(g is None for g in bucket.grads)


@pytest.mark.parametrize("kind", [SAM, StableSAM])
def test_gradients_are_let_go_between_the_passes_and_memory_goes_with_the_optimizer(kind: type[SAM], place: tuple[str, str]) -> None:
    """Without the garbage collector: a reference cycle would keep lists of the size of the model until it happens to run."""
    backend, device = place
    net = model(dtype=torch.float32, device=device)
    opt = kind(net.parameters(), "adamw", lr=0.1, backend=backend)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            for phase in (opt.first_step, opt.second_step):
                closure_of(net, 0)()
                grads = [ref(p.grad) for p in net.parameters()]
                phase(zero_grad=True)
                assert not [x for x in grads if x() is not None]
        (bucket,) = opt._get_buckets()
        owned = [ref(bucket), ref(bucket.stash), ref(bucket.state.buffers["v"])]
        del bucket, opt, phase
        assert not [x for x in owned if x() is not None]
    finally:
        gc.enable()
