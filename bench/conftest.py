"""Options of the benchmark, and what its JSON says about the machine, beside what pytest-benchmark records itself."""

import os
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

LOAD = os.getloadavg()[0]  # of others: taken before anything is timed


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="every method on every workload; takes about half an hour")
    parser.addoption("--backend", default="cpp", help="the backend that is timed as ours")


@pytest.fixture
def backend(request):
    return request.config.getoption("--backend")


def package_version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.update(torch=torch.__version__, triton=package_version("triton"), threads=torch.get_num_threads(), load=LOAD)
