"""`tandem compare DATA`: tune each loss, train it over seeds, write tables, plots and one page.

cases (cases.py) -> tuning trials on validation -> best setting -> trials over seeds on test
    -> OUT/results.json, OUT/report.html
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.base.machine import usable_cpus
from trainer.base.screen import say
from trainer.compare.cases import (
    Case,
    Setting,
    apply,
    candidate_settings,
    make_cases,
    uniform_negatives,
)
from trainer.compare.flags import CompareArguments
from trainer.compare.html import write_page
from trainer.compare.noise import noisy_dataset
from trainer.compare.results import CaseResult, Comparison, baseline_ahead, print_tables
from trainer.compare.trials import CUT_OFF, Trial, check_dataset, run_trials
from trainer.compare.verdict import verdicts
from trainer.compare.working_folder import own_folder
from trainer.config.presets import find_preset
from trainer.config.sections import Config
from trainer.data.schema import Dataset
from trainer.files.json_files import read_json, write_json
from trainer.files.whole_folder import whole_folder
from trainer.launch.launcher import Launcher
from trainer.launch.processes import Processes
from trainer.observe.progress import Progress, TerminalProgress
from trainer.retrieval.baselines.measured import Asking, measure_baselines

TUNED_BY = "ndcg@20"


def compare(
    arguments: CompareArguments,
    progress: Progress | None = None,
    launcher: Launcher | None = None,
) -> Comparison:
    """Run the whole comparison; prints the tables and writes OUT/results.json and report.html.

    Args:
        launcher: of the trainings; None: processes of this machine.
    """
    launcher = launcher or Processes(arguments.workers)
    dataset = Dataset.load(arguments.data)
    check_dataset(dataset)
    base = with_fitting_batch(base_config(arguments), dataset.splits["train"].positives)
    cases = make_cases(
        arguments.losses, arguments.sections, dataset.has_feedback, arguments.uniform
    )
    with own_folder(arguments, dataset) as folder:
        progress = progress or TerminalProgress()
        settings = tune(arguments, base, cases, folder, launcher, progress)
        results = measure(arguments, base, cases, settings, dataset, launcher, progress)
        baselines = _baselines(dataset, folder, launcher)
        progress.close()
        losses = [case for case in cases if case.section == "losses"]
        said = verdicts(results[: len(losses)], folder, [_slug(case) for case in losses])
        comparison = Comparison(_facts(arguments, dataset, base), results, baselines, said)
        write_json(folder / "results.json", comparison.to_json())
        write_page(comparison, folder / "report.html")
    print_tables(comparison)
    for line in comparison.verdicts:
        say(line)
    if (ahead := baseline_ahead(comparison)) is not None:
        say(ahead)
    say(f"the same with plots: {folder / 'report.html'}")
    return comparison


def tune(
    arguments: CompareArguments,
    base: Config,
    cases: list[Case],
    folder: Path,
    launcher: Launcher,
    progress: Progress,
) -> dict[str, Setting]:
    """The best setting of each case by validation NDCG; noisy cases take their loss's."""
    trials: list[Trial] = []
    tried: dict[str, list[tuple[str, Setting]]] = {}
    for case in cases:
        if case.tuned_as is not None:
            continue
        for place, setting in enumerate(candidate_settings(case.loss, arguments.tuning_trials)):
            name = f"tuning-{_slug(case)}-{place}"
            config = apply(base, case, setting, seed=0)
            trials.append(Trial(name, config, arguments.data, "validation", case.clipped))
            tried.setdefault(case.label, []).append((name, setting))
    found = run_trials(trials, folder, launcher, progress)
    best = {
        label: max(pairs, key=lambda pair: found[pair[0]]["values"][TUNED_BY])[1]
        for label, pairs in tried.items()
    }
    return {case.label: best[case.tuned_as or case.label] for case in cases}


def measure(
    arguments: CompareArguments,
    base: Config,
    cases: list[Case],
    settings: dict[str, Setting],
    dataset: Dataset,
    launcher: Launcher,
    progress: Progress,
) -> list[CaseResult]:
    """Every case trained once a seed with its setting, and evaluated on the test split."""
    folder, seeds = Path(arguments.out), range(1, arguments.seeds + 1)
    data = {case.label: _data_of(case, dataset, folder) for case in cases}
    trials = [
        Trial(
            f"{_slug(case)}-seed{seed}",
            apply(base, case, settings[case.label], seed),
            data[case.label],
            "test",
            case.clipped,
        )
        for case in cases
        for seed in seeds
    ]
    found = run_trials(trials, folder, launcher, progress)
    return [
        CaseResult(
            case.section,
            case.label,
            case.loss,
            describe(settings[case.label]),
            case.random_positives,
            case.removed_positives,
            [found[f"{_slug(case)}-seed{seed}"] for seed in seeds],
        )
        for case in cases
    ]


def _baselines(dataset: Dataset, folder: Path, launcher: Launcher) -> list[dict[str, Any]]:
    """What nothing is trained for, on the test split; kept where it is known."""
    file = folder / "baselines.json"
    if not file.is_file():
        asking = {"baselines": Asking(dataset.path, "test", (CUT_OFF,))}
        ((_, found),) = launcher.each(measure_baselines, asking)
        write_json(file, found)
    return list(read_json(file))


def base_config(arguments: CompareArguments) -> Config:
    """The preset under the comparison's negatives and length."""
    preset = find_preset(arguments.preset)
    threads = max(1, usable_cpus() // arguments.workers)
    return replace(
        preset,
        negatives=uniform_negatives(arguments.uniform),
        training=replace(preset.training, epochs=arguments.epochs, threads=threads),
        evaluation=replace(preset.evaluation, every_epochs=0, patience=None),
        metrics=replace(preset.metrics, enabled=False, track=()),
    )


def with_fitting_batch(config: Config, rows: int) -> Config:
    """The same with a batch of at most half the train rows, of which noise may take some away."""
    batch = min(config.training.global_batch_size, max(rows // 2, 1))
    return replace(config, training=replace(config.training, global_batch_size=batch))


def describe(setting: Setting) -> str:
    """A setting in words, for the tables."""
    parameters, factor = setting
    shown = ", ".join(f"{key} {value}" for key, value in parameters.items())
    return shown if factor == 1 else f"{shown}, learning rate x {factor:g}"


def _data_of(case: Case, dataset: Dataset, folder: Path) -> str:
    if not case.random_positives and not case.removed_positives:
        return dataset.path
    name = f"added{case.random_positives:g}-removed{case.removed_positives:g}"
    path = folder / "data" / name
    if not (path / "dataset.json").is_file():
        with whole_folder(path) as made:
            noisy_dataset(dataset, made, case.random_positives, case.removed_positives, seed=0)
    return str(path)


def _slug(case: Case) -> str:
    kept = (letter if letter.isalnum() or letter in "+-." else "_" for letter in case.label)
    return f"{case.section}-{''.join(kept)}"


def _facts(arguments: CompareArguments, dataset: Dataset, base: Config) -> dict[str, Any]:
    return {
        "data": dataset.path,
        "digest": dataset.digest,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "train_rows": dataset.splits["train"].rows,
        "seeds": arguments.seeds,
        "tuning_trials": arguments.tuning_trials,
        "epochs": arguments.epochs,
        "preset": arguments.preset,
        "batch": base.training.global_batch_size,
        "uniform": arguments.uniform,
    }
