"""C sources compiled for this machine at first use and kept in the user's cache.

They need gcc and nothing else. Without it, or where anything about it fails, there is no kernel and
what it does runs in plain torch or numpy: `library_of` says why.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).with_name("stripe_kernel.c")
# No math-errno: floor and the like become instructions. torch has loaded the OpenMP runtime whose
# threads its own operations use; linking none of our own, the kernel shares those threads.
_COMPILE = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-Wno-psabi", "-fPIC", "-c")
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class StripeKernel:
    """The loaded library and the paddings it wants."""

    library: ctypes.CDLL
    rows_multiple: int
    panel_columns: int
    """Columns and width are padded to a multiple of this."""
    block_columns: int
    has_bf16: bool
    """Whether this machine has instructions for products of bf16."""


@lru_cache(maxsize=1)
def load_kernel() -> tuple[StripeKernel | None, str]:
    """(the kernel, ""), or (None, why there is none). Compiles in about a second the first time."""
    library, missing = library_of(SOURCE)
    if library is None:
        return None, missing
    return StripeKernel(
        library,
        rows_multiple=library.rows_multiple(),
        panel_columns=library.panel_columns(),
        block_columns=library.block_columns(),
        has_bf16=hasattr(library, "reduce_bf16"),
    ), ""


def library_of(source: Path) -> tuple[ctypes.CDLL | None, str]:
    """(the library of a C file, ""), or (None, why there is none)."""
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        return None, "no gcc was found (install it, or set CC)"
    try:
        return ctypes.CDLL(str(_compiled(compiler, source))), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{compiler} could not build {source.name}: {_detail(error)}"


def _compiled(compiler: str, source: Path) -> Path:
    """The library's file; processes that compile at once each rename their own into place.

    Its name holds a digest of its contents: a file that a full disk or a crash has cut short would
    end the process at its first page that is not there.
    """
    folder, key = _cache_folder(), f"{source.stem.replace('_', '-')}-{_key(compiler, source)}"
    for made in sorted(folder.glob(f"{key}-*.so")):
        if made.name == _name(key, made.read_bytes()):
            return made
        made.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        unlinked, linked = Path(scratch, "kernel.o"), Path(scratch, "kernel.so")
        for command in (
            [compiler, *_COMPILE, str(source), "-o", str(unlinked)],
            [compiler, "-shared", str(unlinked), "-o", str(linked)],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_SECONDS)
        target = folder / _name(key, linked.read_bytes())
        linked.replace(target)
    return target


def _name(key: str, contents: bytes) -> str:
    return f"{key}-{hashlib.sha256(contents).hexdigest()[:16]}.so"


def _key(compiler: str, source: Path) -> str:
    """Of source, flags, compiler and processor: a home directory may be shared between machines."""
    version = subprocess.run(
        [compiler, "--version"], check=True, capture_output=True, timeout=_TIMEOUT_SECONDS
    ).stdout
    processor = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.exists():
        wanted = ("flags", "Features", "model name", "CPU part")
        lines = described.read_text().splitlines()
        processor = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    parts = (source.read_bytes(), " ".join(_COMPILE).encode(), version, processor.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _cache_folder() -> Path:
    """The user's own: a library from a folder that others write to would run their code."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base, "tandem")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="tandem-"))  # no home: compiled for this process
    return folder


def _detail(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return error.stderr.decode(errors="replace").strip()[:500]
    return str(error)
