"""Tests run on CPUs, on machines with GPUs too; those that need a GPU are asked for alone."""

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        # Their groups are gloo, and they have more ranks than a machine has GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
