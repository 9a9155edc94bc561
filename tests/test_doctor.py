"""Wrong pairs of torch, fbgemm and torchrec are named with their remedy, from metadata alone."""

import subprocess
import sys

import pytest

from trainer.tools.doctor import (
    Package,
    check_versions,
    find_problems,
    is_cuda_build,
    read_packages,
)


def packages(**versions: str) -> dict[str, Package]:
    """A good CPU set, with packages replaced, added, or (empty version) taken away."""
    good = {"torch": "2.13.0+cpu", "fbgemm_gpu_cpu": "1.8.0", "torchrec": "1.8.0"}
    merged = good | {"torchmetrics": "1.0.3"} | versions
    return {name.replace("_", "-"): Package(v) for name, v in merged.items() if v}


def cuda(**versions: str) -> dict[str, Package]:
    return packages(
        **{"torch": "2.13.0+cu130", "fbgemm_gpu_cpu": "", "fbgemm_gpu": "1.8.0"} | versions
    )


@pytest.mark.parametrize(
    "good",
    [
        packages(),
        packages(torch="2.11.0+cpu", fbgemm_gpu_cpu="1.6.0", torchrec="1.6.1"),
        cuda(),
        cuda(torch="2.11.0+cu130", fbgemm_gpu="1.6.0", torchrec="1.6.1"),
    ],
)
def test_pairs_that_belong_together_pass(good: dict[str, Package]) -> None:
    assert find_problems(good) == []
    check_versions(good)


@pytest.mark.parametrize(
    ("bad", "what", "remedy"),
    [
        (
            packages(fbgemm_gpu_cpu="1.9.0"),
            "torch 2.13.0+cpu belongs with fbgemm-gpu-cpu 1.8.0, not 1.9.0",
            "pip install --no-deps fbgemm-gpu-cpu==1.8.0 torchrec==1.8.0",
        ),
        (
            packages(torchrec="1.6.1"),
            "torch 2.13.0+cpu belongs with torchrec 1.8.0, not 1.6.1",
            "torchrec==1.8.0",
        ),
        (
            cuda(torch="2.11.0+cu130"),
            "torch 2.11.0+cu130 belongs with fbgemm-gpu 1.6.0, not 1.8.0",
            "pip install --no-deps fbgemm-gpu==1.6.0 torchrec==1.6.1",
        ),
        (
            packages(fbgemm_gpu="1.8.0"),
            "fbgemm-gpu-cpu and fbgemm-gpu are both installed",
            "pip uninstall -y fbgemm-gpu-cpu fbgemm-gpu && pip install --no-deps fbgemm-gpu-cpu",
        ),
        (
            packages(fbgemm_gpu_cpu="", fbgemm_gpu="1.8.0"),
            "fbgemm-gpu is a CUDA build, torch 2.13.0+cpu a CPU build",
            "pip uninstall -y fbgemm-gpu && pip install --no-deps fbgemm-gpu-cpu==1.8.0",
        ),
        (packages(torch="2.14.0+cpu"), "torch 2.14.0+cpu is not a release", "make setup"),
        (packages(torchrec=""), "torchrec is not installed", "make setup"),
        (packages(fbgemm_gpu_cpu=""), "fbgemm-gpu-cpu (or fbgemm-gpu) is not", "make setup"),
    ],
)
def test_wrong_sets_are_named_with_a_remedy(
    bad: dict[str, Package], what: str, remedy: str
) -> None:
    with pytest.raises(ValueError, match="do not fit together") as caught:
        check_versions(bad)
    assert what in str(caught.value)
    assert remedy in str(caught.value)


def test_cpu_fbgemm_under_a_cuda_torch_is_fatal_only_beside_a_gpu() -> None:
    mixed = packages(torch="2.13.0+cu130")
    assert [problem.fatal for problem in find_problems(mixed)] == [False]
    assert [problem.fatal for problem in find_problems(mixed, has_gpu=True)] == [True]


def test_an_idle_gpu_is_a_warning() -> None:
    (problem,) = find_problems(packages(), has_gpu=True)
    assert not problem.fatal
    assert "SET=cuda" in problem.remedy


def test_other_pythons_are_refused() -> None:
    assert "3.13" in find_problems(packages(), python=(3, 13))[0].what


def test_a_cuda_build_without_a_local_version_is_told_by_its_requirements() -> None:
    assert is_cuda_build(Package("2.13.0", ("nvidia-nccl-cu13==2.29.7",))) is True
    assert is_cuda_build(Package("2.13.0+cpu", ("sympy",))) is False
    assert is_cuda_build(Package("2.13.0", ("sympy",))) is None


def test_fbgemm_without_metadata_is_not_complained_of() -> None:
    assert find_problems(cuda() | {"fbgemm-gpu": Package("")}) == []


def test_this_environment_is_sound_and_checking_imports_no_torch() -> None:
    assert not [problem for problem in find_problems(read_packages()) if problem.fatal]
    code = "import sys, trainer.tools.doctor as d; d.check_versions()"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
