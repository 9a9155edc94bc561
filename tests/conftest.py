"""Tests run on CPUs, on machines with GPUs too; those that need a GPU are asked for alone."""

import gc
import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        # Their groups are gloo, and they have more ranks than a machine has GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    # A million objects of libraries live by now, and each process group that is left collects
    # garbage: .4 s of processor each time, unless what is there already is not looked at again.
    gc.collect()
    gc.freeze()
