"""A long run that is hurt again and again: python -m tests.soak FAULTS DATA OUT SLOWNESS MINUTES

Two ranks in plain processes, restarted as `cluster/workers/groups.py` would restart them but
without Ray, whose start takes longer than the run lives (with Ray: tests/soak_cluster.py). At a
random moment (start, step, checkpoint, anything) one of KINDS befalls them. A rank whose peer was
killed ends by itself; one that does not is ended, as Ray and torchrun do, and counted: a rank that
waits for others to come at the start of a process group waits long.
After FAULTS of them, or MINUTES, the run is let finish, and its curve and tables are compared, bit
by bit, with those of a run to which nothing happened. SLOWNESS stretches the time between faults
where starting takes longer.
"""

import errno
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

import trainer.run.checkpoint_facts
import trainer.run.shard_files
from tests.datasets import make_dataset
from tests.distributed import free_port, start_rank
from tests.test_training import small_config
from trainer.distributed.hooks import Hooks
from trainer.distributed.ranks import process_group
from trainer.files.json_files import committed
from trainer.files.storage import StoragePath
from trainer.observe.progress import SilentProgress
from trainer.run.checkpoint_facts import DTYPES, read_facts
from trainer.run.checkpoint_read import Found, load
from trainer.run.folder import RunSpec
from trainer.train import run_worker

RANKS = 2
Kind = Literal["kill", "node", "hang", "pause", "stop", "storage"]
KINDS: dict[Kind, str] = {
    "kill": "SIGKILL of a rank",
    "node": "SIGKILL of all ranks at once",
    "hang": "SIGSTOP of a rank, and of all SIGKILL, as the driver does it",
    "pause": "SIGSTOP of a rank and SIGCONT: it goes on, and is stopped later",
    "stop": "SIGTERM of a rank: a checkpoint of that step, all end by themselves",
    "storage": "a third of the writes of shards and commits fail (ESTALE); then SIGTERM",
}
DEADLY = ("kill", "node", "hang")
PAUSE_SECONDS = 2.0
SURVIVOR_SECONDS = 15.0
LIFE_SECONDS = (0.3, 3.0)
LAST_LIFE_SECONDS = 3600
EVERY_STEPS = 5
STEPS_AFTER = 20


def fail_writes() -> None:
    """A third of a checkpoint's writes raise ESTALE from now on."""
    chance = random.Random(os.getpid())

    def wrap(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def failing(*arguments: Any, **named: Any) -> Any:
            if chance.random() < 1 / 3:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return real(*arguments, **named)

        setattr(owner, name, failing)

    wrap(trainer.run.shard_files.ShardWriter, "write_data")
    wrap(trainer.run.checkpoint_facts, "write_json")


def rank_main(rank: int, port: int, spec: RunSpec, met: Path, kind: Kind) -> None:
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    if kind == "storage":
        fail_writes()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # peers' deaths, again and again
    with process_group():
        (met / f"{port}-{rank}").touch()
        run_worker(spec, SilentProgress(), Hooks(stop_requested=told.is_set))


def have_met(met: Path, port: int) -> bool:
    """Whether all ranks have come to the process group of that port."""
    return len(list(met.glob(f"{port}-*"))) == RANKS


def befall(kind: Kind, pids: list[int], victim: int) -> None:
    """What happens to the ranks. A process that is a zombie already takes signals, too."""
    hurt = pids[victim]
    match kind:
        case "kill":
            os.kill(hurt, signal.SIGKILL)
        case "node":
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        case "hang":
            os.kill(hurt, signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        case "pause":
            os.kill(hurt, signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            os.kill(hurt, signal.SIGCONT)
            time.sleep(PAUSE_SECONDS)
            os.kill(hurt, signal.SIGTERM)
        case "stop" | "storage":
            os.kill(hurt, signal.SIGTERM)


def live(
    spec: RunSpec, kind: Kind, seconds: float | None, victim: int, met: Path
) -> tuple[list[int], float]:
    """Exit codes of the ranks of one life, and how long the last one took to end.

    Args:
        seconds: until `kind` befalls them; None: let them finish.
    """
    port = free_port()
    ranks = [start_rank(rank_main, rank, port, spec, met, kind) for rank in range(RANKS)]
    if seconds is not None:
        while kind not in DEADLY and not have_met(met, port):  # who listens to SIGTERM is up
            assert all(process.is_alive() for process in ranks)
            time.sleep(0.05)
        time.sleep(seconds)
        codes = [process.exitcode for process in ranks]
        assert kind == "storage" or codes == [None] * RANKS, f"a healthy run ended: {codes}"
        befall(kind, [process.pid or 0 for process in ranks], victim)
    killed_at = time.monotonic()
    if seconds is not None and kind == "kill" and not have_met(met, port):
        time.sleep(1)
        for process in ranks:
            process.kill()
    patience = LAST_LIFE_SECONDS if seconds is None or kind not in DEADLY else SURVIVOR_SECONDS
    for process in ranks:
        process.join(timeout=patience)
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in ranks], time.monotonic() - killed_at


def losses(out: Path) -> dict[int, float]:
    """By step; a step that is there twice is an error."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {record["step"]: record["loss"] for record in records}
    assert len(found) == len(records), "a step was written twice"
    return found


def tables(out: StoragePath) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    path = committed(out / "checkpoints")[-1]
    facts = read_facts(path)
    state = {
        name: torch.empty(saved.shape, dtype=DTYPES[saved.dtype])
        for name, saved in facts.tensors.items()
    }
    load(Found(path, facts), state)
    return state


def soak(
    faults: int,
    data: Path,
    out: Path,
    kinds: Sequence[Kind] = tuple(KINDS),
    slowness: float = 1.0,
    minutes: float = 1e9,
    seed: int = 0,
) -> dict[str, Any]:
    """Hurt it so often, finish, compare; the figures. AssertionError if anything differs."""
    chance = random.Random(seed)
    config = small_config(
        training={"epochs": 100_000, "log_every_steps": 1},
        optimizer={"schedule": "constant"},
        checkpoint={"every_steps": EVERY_STEPS},
        evaluation={"every_epochs": 0},
    )
    spec = RunSpec("ml-100k", config, str(data), str(out / "killed"))
    met = out / "met"
    met.mkdir(parents=True)
    started, slowest, ended, at = time.monotonic(), 0.0, 0, []
    befallen: Counter[Kind] = Counter()
    for count in range(faults):
        if time.monotonic() - started > 60 * minutes:
            break
        resume = (out / "killed" / "config.json").exists()
        attempt = replace(spec, resume=resume, run_id=f"start-{count}")
        life = slowness * chance.uniform(*LIFE_SECONDS)
        kind = chance.choice(kinds)
        codes, seconds = live(attempt, kind, life, chance.randrange(RANKS), met)
        befallen[kind] += 1
        if kind in ("stop", "pause"):
            assert codes == [0] * RANKS, f"{KINDS[kind]}: {codes}"
        if kind == "kill":
            slowest = max(slowest, seconds)
        kept = committed(out / "killed" / "checkpoints") if resume else []
        ended += kind == "kill" and codes.count(-signal.SIGKILL) == RANKS
        at.append(int(kept[-1].name.removeprefix("step-")) if kept else 0)
        print(
            f"{count + 1} {kind}: exits {codes}, {seconds:.1f} s, checkpoint {at[-1]}", flush=True
        )
        assert at == sorted(at), "a checkpoint was lost"
    last = max(losses(out / "killed")) + STEPS_AFTER
    config = replace(config, training=replace(config.training, max_steps=last))
    codes, _ = live(replace(spec, config=config, resume=True), "kill", None, 0, met)
    assert codes == [0] * RANKS, codes
    killed_seconds = time.monotonic() - started
    whole = replace(spec, config=config, out=str(out / "whole"))
    codes, _ = live(whole, "kill", None, 0, met)
    assert codes == [0] * RANKS, codes
    curve = losses(out / "killed")
    assert list(curve) == list(range(1, last + 1)), "a step is missing or out of order"
    assert curve == losses(out / "whole"), "the curve is another"
    ours, others = tables(out / "killed"), tables(out / "whole")
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert torch.equal(value, others[name]), f"{name} is another"
    return {
        "faults": dict(befallen),
        "ended_by_the_launcher": ended,
        "steps": last,
        "starts_with_progress": len(set(at)),
        "slowest_survivor_seconds": round(slowest, 1),
        "seconds": round(killed_seconds, 1),
        "tensors_equal": len(ours),
    }


if __name__ == "__main__":
    if not Path(sys.argv[2]).exists():
        make_dataset(Path(sys.argv[2]), users=80, items=60, rows=1500)
    slowness, minutes = (*map(float, sys.argv[4:]), *(1.0, 1e9)[len(sys.argv[4:]) :])
    figures = soak(
        int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), slowness=slowness, minutes=minutes
    )
    print(json.dumps(figures))
