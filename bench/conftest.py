"""What the benchmark JSON says about the machine, beside what pytest-benchmark records itself."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch

LOAD = os.getloadavg()[0]  # of others: taken before anything is timed


def package_version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, triton=package_version("triton"), threads=torch.get_num_threads(), load=LOAD)
