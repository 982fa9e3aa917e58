"""What the benchmark JSON says about the machine, beside what pytest-benchmark records itself."""

import os

import torch
import triton


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["triton"] = triton.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cores"] = os.cpu_count()
