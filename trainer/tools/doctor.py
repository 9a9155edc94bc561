"""Versions and devices, and what is wrong with them, each with its remedy.

torch, fbgemm and torchrec are compiled against one another: a wrong pair fails with an undefined
symbol, a missing operator, or wrong numbers. `check_versions` therefore reads package metadata
alone and is called *before* the first import of torchrec or fbgemm.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.base.machine import usable_cpus, usable_memory_bytes
from trainer.base.mistake import Mistake
from trainer.base.screen import say
from trainer.observe.waiting import waits_on_terminal

Packages = Mapping[str, "Package"]

# torch -> (fbgemm, torchrec): the releases built for each other. The first is the one we pin.
SUPPORTED = {"2.13": ("1.8.0", "1.8.0"), "2.11": ("1.6.0", "1.6.1")}
FBGEMM_MODULE = "fbgemm_gpu"
FBGEMM_CPU = ("fbgemm-gpu-cpu", "fbgemm-gpu-nightly-cpu")
FBGEMM_CUDA = ("fbgemm-gpu", "fbgemm-gpu-nightly", "fbgemm-gpu-genai")
OTHERS = ("torchmetrics", "tensordict", "ray", "pyarrow", "duckdb", "prometheus-client", "tyro")
TORCHMETRICS = "1.0.3"
MIN_SHARED_MEMORY_BYTES = 256 * 2**20
CHECKOUT = Path(__file__).parents[2]
"""Of an installed Tandem, the folder of packages."""


@dataclass(frozen=True)
class Package:
    """An installed distribution. `version` is empty where a module lies there without metadata."""

    version: str
    requires: tuple[str, ...] = ()

    @property
    def minor(self) -> str:
        """The first two numbers of the version: "2.13" of "2.13.0+cpu"."""
        found = re.match(r"\d+\.\d+", self.version)
        return found.group() if found else ""


@dataclass(frozen=True)
class Problem:
    """What is wrong, and the command that mends it. `fatal`: training would break or be wrong."""

    what: str
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.what} (remedy: {self.remedy})"


def read_packages() -> dict[str, Package]:
    """What is installed here, of the packages that matter, by distribution name."""
    packages = {}
    for name in ("torch", "torchrec", *FBGEMM_CPU, *FBGEMM_CUDA, *OTHERS):
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        packages[name] = Package(found.version, tuple(found.requires or ()))
    if not _fbgemm_names(packages) and importlib.util.find_spec(FBGEMM_MODULE):
        packages["fbgemm-gpu"] = Package("")  # built from source or unpacked by hand
    return packages


def find_problems(
    packages: Packages, python: tuple[int, int] = (3, 11), has_gpu: bool = False
) -> list[Problem]:
    """Everything wrong with `packages` on a machine with or without a GPU, the gravest first."""
    problems = _python_problems(python) + _missing_problems(packages)
    if not problems:
        problems += _fbgemm_twice(packages) + _version_problems(packages)
        problems += _device_problems(packages, has_gpu)
    return sorted(problems, key=lambda problem: not problem.fatal)


def check_versions(packages: Packages | None = None) -> None:
    """Raise a Mistake that names every fatal problem. Imports neither torch nor torchrec."""
    found = read_packages() if packages is None else packages
    fatal = [p for p in find_problems(found, sys.version_info[:2]) if p.fatal]
    if fatal:
        raise Mistake(
            "the installed packages do not fit together: "
            + "; ".join(str(problem) for problem in fatal)
        )


def is_cuda_build(torch: Package) -> bool | None:
    """Whether a torch is built for CUDA; None where its metadata do not tell."""
    local = torch.version.partition("+")[2]
    if local.startswith("cpu"):
        return False
    if local.startswith("cu") or any(
        re.match(r"(nvidia|cuda)-", requirement) for requirement in torch.requires
    ):
        return True
    return None


def install_command(torch_minor: str, cuda: bool) -> str:
    """The pip command that puts the fbgemm and torchrec which belong to this torch in place."""
    fbgemm, torchrec = SUPPORTED[torch_minor]
    name = FBGEMM_CUDA[0] if cuda else FBGEMM_CPU[0]
    return f"pip install --no-deps {name}=={fbgemm} torchrec=={torchrec}"


def set_up(cuda: bool = False) -> str:
    """The command that installs torch and what belongs to it: in a checkout, or beside a wheel."""
    if (CHECKOUT / "Makefile").is_file() and (CHECKOUT / "requirements").is_dir():
        return "make setup SET=cuda" if cuda else "make setup"
    pinned = next(iter(SUPPORTED))
    where = "" if cuda else " --extra-index-url https://download.pytorch.org/whl/cpu"
    return f"pip install 'tandem-retrieval[torch]'{where} && {install_command(pinned, cuda)}"


def _fbgemm_names(packages: Packages) -> list[str]:
    return [name for name in (*FBGEMM_CPU, *FBGEMM_CUDA[:2]) if name in packages]


def _python_problems(python: tuple[int, int]) -> list[Problem]:
    if (3, 11) <= python <= (3, 12):
        return []
    version = ".".join(str(part) for part in python)
    remedy = f"make it with python3.11 (or: PYTHON=python3.11): {set_up()}"
    return [Problem(f"Python {version} is not 3.11 or 3.12", remedy)]


def _missing_problems(packages: Packages) -> list[Problem]:
    names = [name for name in ("torch", "torchrec") if name not in packages]
    if not _fbgemm_names(packages):
        names.append("fbgemm-gpu-cpu (or fbgemm-gpu)")
    remedy = set_up(bool(gpu_names())) if names else ""
    return [Problem(f"{name} is not installed", remedy) for name in names]


def _fbgemm_twice(packages: Packages) -> list[Problem]:
    names = _fbgemm_names(packages)
    if len(names) < 2:
        return []
    cuda = is_cuda_build(packages["torch"]) is True
    minor = packages["torch"].minor
    again = install_command(minor if minor in SUPPORTED else next(iter(SUPPORTED)), cuda)
    return [
        Problem(
            f"{' and '.join(names)} are both installed; they share one folder and break each other",
            f"pip uninstall -y {' '.join(names)} && {again}",
        )
    ]


def _version_problems(packages: Packages) -> list[Problem]:
    """Whether torch, fbgemm and torchrec, and torchmetrics, belong together."""
    torch, torchrec = packages["torch"], packages["torchrec"]
    names = _fbgemm_names(packages)
    tested = " and ".join(SUPPORTED)
    if torch.minor not in SUPPORTED:
        return [
            Problem(
                f"torch {torch.version} is not a release Tandem is tested with ({tested}), and "
                f"fbgemm {packages[names[0]].version} and torchrec {torchrec.version} must be the "
                "ones built for it",
                set_up(),
            )
        ]
    fbgemm_wanted, torchrec_wanted = SUPPORTED[torch.minor]
    cuda = any(name in FBGEMM_CUDA for name in names)
    remedy = install_command(torch.minor, cuda)
    problems = []
    for name, wanted in [(names[0], fbgemm_wanted), ("torchrec", torchrec_wanted)]:
        package = packages[name]
        if package.version and package.minor != Package(wanted).minor:
            what = f"torch {torch.version} belongs with {name} {wanted}, not {package.version}"
            problems.append(Problem(what, remedy))
    metrics = packages.get("torchmetrics")
    if metrics is None or metrics.version != TORCHMETRICS:
        found = f"torchmetrics {metrics.version}" if metrics else "no torchmetrics"
        what = f"torchrec {torchrec.version} asks for torchmetrics {TORCHMETRICS}; found {found}"
        problems.append(Problem(what, f"pip install torchmetrics=={TORCHMETRICS}", fatal=False))
    return problems


def _device_problems(packages: Packages, has_gpu: bool) -> list[Problem]:
    """CPU and CUDA builds mixed, or a GPU that the installed set leaves idle."""
    torch, names = packages["torch"], _fbgemm_names(packages)
    if len(names) != 1 or torch.minor not in SUPPORTED:
        return []
    torch_cuda, fbgemm_cuda = is_cuda_build(torch), names[0] in FBGEMM_CUDA
    uninstall = f"pip uninstall -y {names[0]} && "
    if torch_cuda is False and fbgemm_cuda and packages[names[0]].version:
        what = f"{names[0]} is a CUDA build, torch {torch.version} a CPU build"
        return [Problem(what, uninstall + install_command(torch.minor, cuda=False))]
    if torch_cuda is True and not fbgemm_cuda:
        what = f"{names[0]} is a CPU build, torch {torch.version} a CUDA build"
        remedy = uninstall + install_command(torch.minor, cuda=True)
        return [Problem(what, remedy, fatal=has_gpu)]
    if torch_cuda is False and has_gpu:
        what = f"this machine has a GPU, and torch {torch.version} is a CPU build"
        return [Problem(what, set_up(cuda=True), fatal=False)]
    return []


def gpu_names() -> list[str]:
    """What `nvidia-smi` lists; empty where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def machine_problems() -> list[Problem]:
    """What on this machine, apart from packages, gets in a run's way."""
    problems = []
    if shutil.which(os.environ.get("CC", "gcc")) is None and not gpu_names():
        what = "no gcc: the loss runs in plain torch, about half as fast as its compiled kernel"
        problems.append(Problem(what, "apt-get install gcc libc6-dev", fatal=False))
    return problems + shared_memory_problems(Path("/dev/shm"))


def shared_memory_problems(shared: Path) -> list[Problem]:
    """Too little of it, or too little left."""
    if not shared.is_dir():
        return []
    usage = shutil.disk_usage(shared)
    if usage.total < MIN_SHARED_MEMORY_BYTES:
        what = f"{shared} holds {usage.total >> 20} MiB; Ray's object store wants 256 MiB or more"
        return [Problem(what, "start the container with --shm-size=2g", fatal=False)]
    if usage.free < MIN_SHARED_MEMORY_BYTES // 4:
        what = f"{shared} has {usage.free >> 20} MiB left of {usage.total >> 20}"
        remedy = f"remove what nobody needs there: ls -lS {shared}"
        return [Problem(what, remedy, fatal=False)]
    return []


def import_problems() -> list[Problem]:
    """Import torch, fbgemm and torchrec in a process of its own, and say which fails and why."""
    code = f"import torch, {FBGEMM_MODULE}, torchrec"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return [
        Problem(
            f"`{code}` fails: {reason}",
            f"install anew, into an empty environment: {set_up(bool(gpu_names()))}",
        )
    ]


def report() -> int:
    """Print versions, devices and problems. Returns the exit code: 1 if a problem is fatal."""
    packages, gpus = read_packages(), gpu_names()
    say(f"{'python':20}{sys.version.split()[0]}  {sys.executable}")
    for name, package in packages.items():
        say(f"{name:20}{package.version or 'unknown version'}")
    say(f"{'cpus':20}{usable_cpus()}")
    say(f"{'memory':20}{usable_memory_bytes() / 2**30:.1f} GiB")
    say(f"{'gpus':20}{'; '.join(gpus) or 'none'}")
    problems = find_problems(packages, sys.version_info[:2], has_gpu=bool(gpus))
    problems += machine_problems()
    if not any(problem.fatal for problem in problems):
        with waits_on_terminal("loading torch and torchrec"):
            problems += import_problems()
    for problem in problems:
        say(f"{'error' if problem.fatal else 'warning'}: {problem.what}")
        say(f"    remedy: {problem.remedy}")
    fatal = any(problem.fatal for problem in problems)
    if not problems:
        say("All is well: these versions belong together and load.")
    return int(fatal)


if __name__ == "__main__":
    sys.exit(report())
