"""The table of losses: what every loss has, and that nothing else knows them by name."""

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import losses.formulas
from losses import Loss, LossName, build_loss, front
from losses.choices import LOSSES
from losses.formulas.formula import Correction, Element, Parameter, parameters_of

ROOT = Path(__file__).parents[2]
SECTIONS = ("Take it: ", "Data: ", "Relations: ")


def test_every_file_has_one_loss_and_every_loss_is_in_the_table() -> None:
    found = {}
    for module in pkgutil.iter_modules(losses.formulas.__path__):
        if module.name != "formula":
            members = vars(import_module(f"losses.formulas.{module.name}")).values()
            (found[module.name],) = (
                member
                for member in members
                if inspect.isclass(member) and member.__module__.endswith(f".{module.name}")
            )
    assert found == LOSSES
    assert get_args(LossName) == tuple(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_says_of_itself(name: str) -> None:
    """When to take it, on what data, how it relates to the others, and its formula."""
    loss = LOSSES[name]
    text = inspect.getdoc(loss)
    assert text is not None
    assert [section for section in SECTIONS if section not in text] == []
    assert re.search(r"^    \S.* = |^    positive row:", text, re.MULTILINE)
    others = set(re.findall(r"`(\w+)`", text.partition("Relations: ")[2])) & set(LOSSES)
    assert others - {name} or name == "ccl"
    assert loss.when and not loss.when.endswith(".")
    assert loss.element in get_args(Element)
    assert loss.correction in loss.corrections
    assert set(loss.corrections) <= set(get_args(Correction))


@pytest.mark.parametrize("name", LOSSES)
def test_the_settings_of_a_comparison_are_taken(name: str) -> None:
    settings = LOSSES[name].settings
    assert len(settings) == 6
    assert len({repr(setting) for setting in settings}) == 6
    for parameters, _ in settings:
        build_loss(name, **parameters)  # type: ignore[arg-type]


def test_losses_that_share_a_parameter_agree_on_its_kind_and_limits() -> None:
    first: dict[str, Parameter] = {}
    for loss in LOSSES.values():
        for name, parameter in parameters_of(loss).items():
            same = first.setdefault(name, parameter)
            assert (same.kind, same.limits) == (parameter.kind, parameter.limits), name


def test_names_of_losses_decide_nothing_outside_their_own_files() -> None:
    names = "|".join(LOSSES)
    decides = re.compile(rf'(==|!=|\bcase|\bin [({{])\s*"({names})"|"({names})" [=!]=')
    walks = re.compile(r"\bfor [\w, ]+ in \(")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for room in ("losses", "trainer", "cluster", "embeddings")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if decides.search(line) and not walks.search(line)
    ]
    assert found == []


def test_the_table_is_read_without_torch() -> None:
    """The command line reads it for its flags."""
    script = (
        "import losses, losses.choices, trainer.config.sections, sys; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_all_names_of_the_package_are_there() -> None:
    for name in front.__all__:
        assert getattr(losses, name) is getattr(front, name)
    with pytest.raises(AttributeError, match="module 'losses' has no attribute 'bild_loss'"):
        _ = losses.bild_loss
    with pytest.raises(ImportError, match="bild_loss"):
        from losses import bild_loss  # noqa: F401


def test_a_loss_without_a_formula_is_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Loss()  # type: ignore[abstract]
