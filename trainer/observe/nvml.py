"""GPU utilisation, from the driver's own library (NVML): no package is needed for it."""

from __future__ import annotations

import ctypes

import torch


class _Rates(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class GpuUtilization:
    """Share of the last sampling period (up to a second) in which a device ran kernels.

    `read` costs some microseconds and waits for no kernel. It returns 0 on a CPU, and where the
    driver has no NVML or does not tell (a slice of a shared GPU).
    """

    def __init__(self, device: torch.device) -> None:
        self._handle: ctypes.c_void_p | None = None
        if device.type != "cuda":
            return
        try:
            self._library = ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = ctypes.c_void_p()
        find = self._library.nvmlDeviceGetHandleByUUID
        if self._library.nvmlInit_v2() == 0 and find(uuid.encode(), ctypes.byref(handle)) == 0:
            self._handle = handle

    def read(self) -> float:
        """Between 0 and 1."""
        if self._handle is None:
            return 0.0
        rates = _Rates()
        status = self._library.nvmlDeviceGetUtilizationRates(self._handle, ctypes.byref(rates))
        return rates.gpu / 100 if status == 0 else 0.0
