"""Tests run on CPUs, on machines with GPUs too; those that need a GPU are asked for alone."""

import gc
import os

import pytest

# Threads of OpenMP that wait for one another give up the processor, here and in all processes
# started from here. They would spin: beside a second test process a run of ten steps cost 3.3 s of
# processor in place of .9. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        # Their groups are gloo, and they have more ranks than a machine has GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    # A million objects of libraries live by now, and each process group that is left collects
    # garbage: .4 s of processor each time, unless what is there already is not looked at again.
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries tell at the end what they have lost
