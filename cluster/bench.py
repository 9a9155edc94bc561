"""`tandem bench PART`: what one part costs, beside a floor."""

from collections.abc import Sequence

from cluster.usage import UsageError, parse, suggest

PARTS = ("loss",)


def main(arguments: Sequence[str]) -> int:
    """Measure one of PARTS."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(f"usage: tandem bench PART ..., one of: {', '.join(PARTS)}")
        return 0 if arguments else 2
    part, *flags = arguments
    match part:
        case "loss":
            from trainer.bench import loss

            loss.main(parse(loss.LossBenchArguments, "tandem bench loss", flags))
        case _:
            raise UsageError(suggest("part", part, PARTS))
    return 0
