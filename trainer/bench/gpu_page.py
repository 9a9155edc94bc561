"""`python -m trainer.bench.gpu_page OUT PAGE`: what `make gpu-check` measured, as a page of docs/.

The tables stand between two comments of the page; what is written around them stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TARGET = {"rows": 65536, "columns": 65536, "dim": 128, "precision": "bf16"}
TARGET_SECONDS, TARGET_BYTES = 8.5e-3, 0.36e9
GIB = 1 << 30


def main() -> None:
    """Put tables of whatever parts OUT holds into PAGE."""
    folder, page = Path(sys.argv[1]), Path(sys.argv[2])
    parts = {name: _read(folder / f"{name}.json") for name in ("loss", "step")}
    about = next(filter(None, parts.values()), None)
    text = [] if about is None else [_about(about)]
    text += _parity(folder / "parity.xml")
    if (loss := parts["loss"]) is not None:
        text += _loss(loss["sizes"])
    if (step := parts["step"]) is not None:
        text += [*_steps(step["steps"]), *_sequences(step["sequences"]), *_runs(step["runs"])]
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(before + "\n".join([BEGIN, "", *text, END]) + after)


def _read(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def _about(about: dict[str, Any]) -> str:
    device = about["device"]
    return (
        f"{device['name']}, {device['memory_bytes'] / GIB:.0f} GiB, torch {device['torch']}, CUDA "
        f"{device['cuda']}; {about['date']}. An 8192^3 product runs at "
        f"{device['bf16_flops'] / 1e12:.0f} TFLOP/s in bf16 and "
        f"{device['fp32_flops'] / 1e12:.0f} in fp32, a copy at "
        f"{device['copy_bytes_per_second'] / 1e12:.2f} TB/s.\n"
    )


def _parity(file: Path) -> list[str]:
    """Cases of the tests that need a GPU, and what those of whole runs measured."""
    if not file.is_file():
        return []
    cases = list(ElementTree.parse(file).iter("testcase"))
    failed = [c.attrib["name"] for c in cases if c.find("failure") is not None or _error(c)]
    lines = [
        "### Parity and whole runs\n",
        f"{len(cases) - len(failed)} of {len(cases)} tests pass"
        + (f"; not: {', '.join(failed)}.\n" if failed else ".\n"),
    ]
    rows = []
    for case in cases:
        told = {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}
        if "difference" in told:
            test, _, given = case.attrib["name"].partition("[")
            name = given.rstrip("]") or test.removeprefix("test_").replace("_", " ")
            recall = told.get("recall@20")
            shown = "" if recall is None else f"{float(recall):.3f}"
            rows.append((name, f"{float(told['difference']):.1e}", shown))
    return lines + _table(("run", "stopped and resumed: loss differs by", "Recall@20"), rows)


def _error(case: ElementTree.Element) -> bool:
    return case.find("error") is not None


def _loss(sizes: Sequence[dict[str, Any]]) -> list[str]:
    ways = ("tandem", "compiled", "chunked", "naive")
    rows = [
        (
            f"{s['rows']} x {s['columns']} x {s['dim']}, {s['precision']}",
            *(_timed(s[f"{way}_seconds"], s[f"{way}_peak_bytes"]) for way in ways),
            f"{s['floor_seconds'] * 1e3:.2f}",
            f"{s['flops'] / 1e12:.0f}",
        )
        for s in sizes
    ]
    head = ("rows x columns x dim", "Tandem", "torch.compile", "chunked", "materialised", "floor")
    lines = ["### The loss, forward and backward: milliseconds (GiB beside)\n"]
    lines += _table((*head, "TFLOP/s of three products"), rows)
    for size in sizes:
        if TARGET.items() <= size.items():
            lines.append(
                f"Target at 65536 x 65536 x 128 in bf16: {TARGET_SECONDS * 1e3} ms, "
                f"{TARGET_BYTES / 1e9} GB; measured **{size['tandem_seconds'] * 1e3:.1f} ms**, "
                f"**{size['tandem_peak_bytes'] / 1e9:.2f} GB**.\n"
            )
    return lines


def _timed(seconds: float | None, size: int | None) -> str:
    if seconds is None or size is None:
        return "out of memory"
    return f"{seconds * 1e3:.2f} ({size / GIB:.2f})"


def _steps(steps: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            f"{s['batch']:,}, {s['precision']}",
            *(_rate(s["examples_per_second"][side]) for side in ("tandem", "plain")),
            "" if s["ratio"] is None else f"{s['ratio']:.2f}",
            f"{sum(s['floor_seconds'].values()) * 1e3:.2f}",
            f"{s['floor_share']:.0%}",
            *(f"{s['peak_bytes'][side] / GIB:.2f}" for side in ("tandem", "plain")),
        )
        for s in steps
    ]
    head = ("batch", "Tandem, examples/s", "plain loop", "ratio", "floor, ms", "of the step")
    lines = ["### A training step beside a plain PyTorch loop\n"]
    lines += _table((*head, "Tandem, GiB", "plain, GiB"), rows)
    names = list(steps[0]["part_seconds"])
    parts = [
        (f"{s['batch']:,}, {s['precision']}", *(f"{s['part_seconds'][n] * 1e3:.2f}" for n in names))
        for s in steps
    ]
    lines.append("Where a step goes, in milliseconds, the device waited for after each part:\n")
    return lines + _table(("batch", *names), parts)


def _sequences(sequences: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        (
            f"{s['block']}, {s['batch']:,}",
            *(_rate(s[name]) for name in ("tokens_per_second", "plain_tokens_per_second")),
            f"{s['ratio']:.2f}",
        )
        for s in sequences
    ]
    if not rows:
        return []
    lines = ["### The sequence tower's step beside a plain SASRec\n"]
    return lines + _table(("layers, positions", "Tandem, tokens/s", "plain", "ratio"), rows)


def _runs(runs: Sequence[dict[str, Any]]) -> list[str]:
    if not runs:
        return []
    phases = ("forward", "backward", "optimizer", "communication")
    rows = [
        (
            f"{r['batch']:,}, {r['precision']}",
            _rate(r["examples_per_second"]),
            f"{r['step_seconds'] * 1e3:.1f}",
            *(f"{r[f'phase_seconds/{phase}'] * 1e3:.1f}" for phase in phases),
            f"{r['data_wait_share']:.1%}",
            f"{r['gpu_utilization']:.0%}",
        )
        for r in runs
    ]
    head = ("batch", "examples/s", "step, ms", *phases, "waits for data", "GPU busy")
    lines = ["### Whole runs with their loader\n"]
    return lines + _table(head, rows)


def _rate(value: float | None) -> str:
    return "out of memory" if value is None else f"{value:,.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


if __name__ == "__main__":
    main()
