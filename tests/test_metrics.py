"""Declared names, means kept on the device, and an endpoint that bad clients cannot hurt."""

import re
import socket
import urllib.error
import urllib.request

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from trainer.observe.declared import METRICS
from trainer.observe.http import MAX_CONNECTIONS
from trainer.observe.metrics import RankMetrics
from trainer.observe.step_values import StepValues, means_of


def scrape(address: str, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
        return answer.read().decode()


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f"{{{v}}}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_are_unique_prefixed_and_carry_base_units() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"tandem_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds")
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)\b", metric.name)


def test_a_rank_serves_what_was_observed() -> None:
    with RankMetrics() as metrics:
        address = metrics.serve()
        metrics.observe_step(1, seconds=0.25, data_wait_seconds=0.05, examples=128)
        metrics.observe_step(2, seconds=0.35, data_wait_seconds=0.0, examples=64)
        metrics.set("tandem_loss", 4.5)
        metrics.set("tandem_loss_part", 0.25, "hit_share")
        found = samples(scrape(address))
    assert address.startswith("127.0.0.1:")
    assert found["tandem_steps_total"] == found["tandem_step"] == 2
    assert found["tandem_examples_total"] == 192
    assert found["tandem_step_seconds_sum"] == pytest.approx(0.6)
    assert found["tandem_step_phase_seconds_count{data_wait}"] == 2
    assert found["tandem_loss"] == 4.5
    assert found["tandem_loss_part{hit_share}"] == 0.25
    assert found["process_resident_memory_bytes"] > 0


def test_an_undeclared_name_is_refused() -> None:
    with pytest.raises(KeyError):
        RankMetrics().set("tandem_lossy", 1.0)
    with pytest.raises(ValueError):
        RankMetrics().set("tandem_loss", 1.0, "labelled")


def test_step_values_are_read_by_step_and_averaged() -> None:
    values = StepValues()
    values.add({"loss": torch.tensor(3.0), "hit_share": torch.tensor(0.5)})
    values.add({"loss": torch.tensor(5.0), "hit_share": torch.tensor(1.0, dtype=torch.float64)})
    steps = values.read()
    assert steps == [{"loss": 3.0, "hit_share": 0.5}, {"loss": 5.0, "hit_share": 1.0}]
    assert means_of(steps, [8] * len(steps)) == {
        "loss": 4.0,  # (3 + 5) / 2
        "hit_share": 0.75,  # (0.5 + 1) / 2
    }
    assert values.read() == [] and means_of([], []) == {}
    values.add({"loss": torch.tensor(7.0, dtype=torch.bfloat16)})
    assert values.read() == [{"loss": 7.0}]


def test_broken_and_hanging_clients_leave_the_endpoint_alive() -> None:
    with RankMetrics() as metrics:
        address = metrics.serve()
        host, port = address.split(":")
        hanging = []
        for text in (
            b"\x00\xff\x00\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\n\r\n",
            b"GET " + b"a" * 70_000,
        ):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(text)
        with pytest.raises(urllib.error.HTTPError):
            scrape(address, "/../etc/passwd")
        for _ in range(MAX_CONNECTIONS - 2):
            hanging.append(socket.create_connection((host, int(port)), timeout=5))
        assert "tandem_steps_total" in scrape(address)
        for client in hanging:
            client.close()


def test_closing_frees_the_port() -> None:
    metrics = RankMetrics()
    address = metrics.serve()
    metrics.close()
    with pytest.raises(urllib.error.URLError):
        scrape(address)


def test_a_short_last_batch_is_left_out_of_a_reading() -> None:
    """Its loss is that of fewer negatives: log(512 / 64) lower, were all scores equal."""
    steps = [{"loss": 7.0}, {"loss": 7.2, "hit_share": 0.5}, {"loss": 5.0, "hit_share": 0.9}]
    assert means_of(steps, [512, 512, 64]) == {"loss": pytest.approx(7.1), "hit_share": 0.5}
    assert means_of(steps[2:], [64]) == steps[2]
