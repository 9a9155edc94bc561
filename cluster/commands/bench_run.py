"""`tandem bench PART`: what one part costs, beside a floor."""

from collections.abc import Sequence
from importlib import import_module

from trainer.base.mistake import UsageError
from trainer.base.screen import say
from trainer.base.usage import parse, suggest

PARTS = {
    "loss": "LossBenchArguments",
    "step": "StepBenchArguments",
    "data": "DataBenchArguments",
    "eval": "EvalBenchArguments",
    "sequence": "SequenceBenchArguments",
    "serve": "ServeBenchArguments",
}
"""Modules of trainer.bench, and the dataclass of each one's flags."""


def main(arguments: Sequence[str]) -> int:
    """Measure one of PARTS."""
    if not arguments or arguments[0] in ("--help", "-h"):
        say(f"usage: tandem bench PART ..., one of: {', '.join(PARTS)}")
        return 0 if arguments else 2
    part, *flags = arguments
    if part not in PARTS:
        raise UsageError(suggest("part", part, list(PARTS)))
    module = import_module(f"trainer.bench.{part}")
    module.main(parse(getattr(module, PARTS[part]), f"tandem bench {part}", flags))
    return 0
