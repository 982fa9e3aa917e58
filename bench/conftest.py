"""What the benchmark JSON says about the machine, beside what pytest-benchmark records itself."""

from importlib.metadata import PackageNotFoundError, version

import torch


def package_version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, triton=package_version("triton"), threads=torch.get_num_threads())
