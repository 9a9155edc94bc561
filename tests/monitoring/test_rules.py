"""promtool's verdict on configuration, rules and alerts, and the alerts' timing."""

import subprocess
from pathlib import Path

import pytest

from tests.monitoring.conftest import ROOT, needs
from trainer.live.prometheus import make_config

pytestmark = needs("promtool")
PROMETHEUS = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.compose.yml"])
def test_configuration_is_sound(name: str) -> None:
    promtool("check", "config", str(PROMETHEUS / name))


def test_the_dashboard_commands_configuration_is_sound(tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(make_config(["http://127.0.0.1:9480/targets"], "/tmp/ray/none.json"))
    promtool("check", "config", str(file))


def test_rules_are_sound() -> None:
    promtool("check", "rules", str(PROMETHEUS / "rules.yml"), str(PROMETHEUS / "alerts.yml"))


def test_alerts_fire_when_they_should_and_are_silent_otherwise() -> None:
    promtool("test", "rules", str(PROMETHEUS / "tests.yml"))
