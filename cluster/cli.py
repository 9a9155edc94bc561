"""`tandem`: one table of subcommands. Each imports what it needs when it is called."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name

import tandem
from trainer.base.ending import guarded
from trainer.base.mistake import UsageError
from trainer.base.screen import say
from trainer.base.terminal.first_word import never_silent
from trainer.base.usage import VERBOSE, suggest

Arguments = list[str]
ARGUMENTS, ANSWERS = "trainer.retrieval.arguments", "trainer.retrieval.recommend"
JOIN = f"{ARGUMENTS}:JoinArguments", "trainer.retrieval.joining.join_runs:join_runs"


@dataclass(frozen=True)
class Command:
    """A subcommand: one line of help, and what runs it: (arguments after its name, verbose)."""

    summary: str
    run: Callable[[Arguments, bool], int]


def doctor(arguments: Arguments, verbose: bool) -> int:
    from trainer.base.usage import expect_no_arguments
    from trainer.tools.doctor import report

    expect_no_arguments("doctor", arguments)
    return report()


def prepare(arguments: Arguments, verbose: bool) -> int:
    from cluster.commands.prepare_run import main

    return main(arguments, verbose)


def synth(arguments: Arguments, verbose: bool) -> int:
    from trainer.base.usage import parse
    from trainer.synth.synth import SynthArguments, synth

    synth(parse(SynthArguments, "tandem synth", arguments))
    return 0


def tune(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from cluster.tune.search import main
    from trainer.base.usage import expect_preset
    from trainer.config.presets import PRESETS

    expect_preset("tandem tune", arguments, list(PRESETS))
    return main(arguments, verbose)


def plan(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from trainer.base.usage import expect_preset
    from trainer.command_line import PlanArguments, parse_preset
    from trainer.config.presets import PRESETS

    expect_preset("tandem plan", arguments, list(PRESETS))
    _, parsed = parse_preset(arguments, "tandem plan", PlanArguments)
    from trainer.observe.waiting import waits_on_terminal

    with waits_on_terminal("loading torch"):
        from cluster.commands.plan_run import main

    return main(parsed, verbose)


def train(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from cluster.commands.train_run import main

    return main(arguments, verbose)


def without_torch(name: str, flags: str, work: str) -> Callable[[Arguments, bool], int]:
    """A command whose flags and work are named as MODULE:NAME, and that waits for no torch."""

    def run(arguments: Arguments, verbose: bool) -> int:
        from trainer.base.usage import parse
        from trainer.observe.progress import quiet_libraries

        parsed = parse(resolve_name(flags), f"tandem {name}", arguments)
        quiet_libraries(verbose)
        resolve_name(work)(parsed)
        return 0

    return run


def by_ranks(
    name: str, flags: str, work: str, launcher: str = "launcher_for"
) -> Callable[[Arguments, bool], int]:
    """A command whose work a launcher starts on `--workers` of `--address`; flags and work as
    above, `launcher` is of cluster.workers.options."""

    def run(arguments: Arguments, verbose: bool) -> int:
        from trainer.tools.ready import ready_for_torch

        ready_for_torch(verbose)
        from trainer.base.usage import parse

        parsed = parse(resolve_name(flags), f"tandem {name}", arguments)
        from cluster.workers import options

        started = getattr(options, launcher)(parsed.workers, parsed.address, verbose)
        resolve_name(work)(parsed, launcher=started)
        return 0

    return run


def recommend(arguments: Arguments, verbose: bool) -> int:
    """One user's answers wait for no torch; those of all may be made by a cluster."""
    from trainer.base.usage import parse
    from trainer.observe.progress import quiet_libraries
    from trainer.retrieval.arguments import RecommendArguments
    from trainer.retrieval.recommend import answer

    parsed, started = parse(RecommendArguments, "tandem recommend", arguments), None
    quiet_libraries(verbose)
    if parsed.all:
        from trainer.tools.ready import ready_for_torch

        ready_for_torch(verbose)
        from cluster.workers.options import launcher_for

        started = launcher_for(parsed.workers, parsed.address, verbose)
    answer(parsed, started)
    return 0


def serve(arguments: Arguments, verbose: bool) -> int:
    from cluster.commands.serve_run import main

    return main(arguments, verbose)


def resume(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from cluster.commands.train_run import resume

    return resume(arguments, verbose)


def of_jobs(name: str) -> Callable[[Arguments, bool], int]:
    """A command that talks to a cluster's dashboard."""

    def run(arguments: Arguments, verbose: bool) -> int:
        from cluster.jobs import submit
        from trainer.observe.progress import quiet_libraries

        quiet_libraries(verbose)  # after the import of Ray, which sets its own levels
        status: int = getattr(submit, name)(arguments)
        return status

    return run


def bench(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from cluster.commands.bench_run import main

    return main(arguments)


def demo(arguments: Arguments, verbose: bool) -> int:
    from cluster.commands.demo import DemoArguments, demo
    from trainer.base.usage import parse

    return demo(parse(DemoArguments, "tandem demo", arguments))


def dashboard(arguments: Arguments, verbose: bool) -> int:
    from trainer.base.usage import parse
    from trainer.live.dashboard import DashboardArguments, dashboard

    dashboard(parse(DashboardArguments, "tandem dashboard", arguments))
    return 0


def report(arguments: Arguments, verbose: bool) -> int:
    from trainer.tools.ready import ready_for_torch

    ready_for_torch(verbose)
    from trainer.base.usage import parse
    from trainer.report.report import ReportArguments, report

    report(parse(ReportArguments, "tandem report", arguments))
    return 0


COMMANDS = {
    "doctor": Command("Versions and devices, and what is wrong with them", doctor),
    "demo": Command("Data, training, recommendations, evaluation: under five minutes", demo),
    "prepare": Command("Make a dataset of your interactions", prepare),
    "synth": Command("Generate a dataset whose best possible recall is known", synth),
    "tune": Command("Search settings on the validation split", tune),
    "plan": Command("Say whether a preset fits the GPUs, and what to change if not", plan),
    "train": Command("Train a preset on a dataset, on Ray", train),
    "resume": Command("Go on with a run that stopped, as it was configured", resume),
    "evaluate": Command(
        "Measure a run over the whole catalog, beside popularity",
        by_ranks(
            "evaluate", f"{ARGUMENTS}:EvaluateArguments", "trainer.retrieval.evaluate_run:evaluate"
        ),
    ),
    "compare": Command(
        "Losses against each other at equal tuning budgets",
        by_ranks(
            "compare",
            "trainer.compare.flags:CompareArguments",
            "trainer.compare.comparison:compare",
            launcher="launcher_of_trials",
        ),
    ),
    "join": Command("Add another run's scores to a run's own", without_torch("join", *JOIN)),
    "recommend": Command("Items for a user", recommend),
    "similar": Command(
        "Items like an item",
        without_torch("similar", f"{ARGUMENTS}:SimilarArguments", f"{ANSWERS}:similar"),
    ),
    "export": Command(
        "Embeddings and an index for serving",
        by_ranks("export", f"{ARGUMENTS}:ExportArguments", "trainer.retrieval.export:export"),
    ),
    "mine": Command(
        "Hard negatives for training, out of a run",
        by_ranks("mine", f"{ARGUMENTS}:MineArguments", "trainer.retrieval.mining.mine:mine"),
    ),
    "serve": Command("Answer over HTTP from an export", serve),
    "dashboard": Command("Watch a run: a live page, Prometheus, alerts", dashboard),
    "report": Command("One page of plots of runs, side by side", report),
    "submit": Command("Run a command as a job on a Ray cluster", of_jobs("submit")),
    "status": Command(
        "A cluster's jobs, the runs below a folder, or how far one has come", of_jobs("status")
    ),
    "logs": Command("A job's output", of_jobs("logs")),
    "stop": Command("End a job", of_jobs("stop")),
    "bench": Command("Measure a part beside a floor or a peer", bench),
}


def print_help() -> None:
    from cluster.commands import listing

    listing.print_help({name: command.summary for name, command in COMMANDS.items()})


def run(arguments: Arguments, verbose: bool) -> int:
    """Find the subcommand and run it."""
    if not arguments:
        print_help()
        return 2
    name, *rest = arguments
    if name in ("--help", "-h", "help"):
        print_help()
        return 0
    if name == "--version":
        say(f"tandem {tandem.__version__}")
        return 0
    if name in ("--complete", "--install-completion"):
        from cluster.commands.completion import complete, install

        return install(rest) if name == "--install-completion" else complete(rest, list(COMMANDS))
    if name not in COMMANDS:
        raise UsageError(suggest("command", name, list(COMMANDS)))
    return COMMANDS[name].run(rest, verbose)


def main(arguments: Arguments | None = None) -> int:
    """Exit status: see trainer/base/ending.py."""
    given = sys.argv[1:] if arguments is None else arguments
    verbose = VERBOSE in given
    rest = [argument for argument in given if argument != VERBOSE]
    with never_silent(f"{shlex.join(['tandem', *rest[:1]])}: loading"):
        return guarded(lambda: run(rest, verbose), shlex.join(["tandem", *rest]), verbose)


if __name__ == "__main__":
    sys.exit(main())
