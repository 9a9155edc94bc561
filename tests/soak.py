"""A long run that is killed again and again: python -m tests.soak KILLS DATA OUT [SLOWNESS]

Two ranks in plain processes, restarted as `cluster/workers/groups.py` would restart them but
without Ray, whose start takes longer than the run lives. At a random moment (start, step,
checkpoint, anything) one rank gets SIGKILL, and the other ends by itself. One that does not is
ended, as Ray and torchrun do, and counted: a rank that waits for others to come at the start of a
process group waits long.
After KILLS of them the run is let finish, and its curve and tables are compared, bit by bit, with
those of a run to which nothing happened. SLOWNESS stretches the time between kills where starting
takes longer.
"""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.datasets import make_dataset
from tests.distributed import free_port, start_rank
from tests.test_training import small_config
from trainer.distributed.ranks import process_group
from trainer.files.json_files import committed
from trainer.files.storage import StoragePath
from trainer.observe.progress import SilentProgress
from trainer.run.checkpoint_facts import DTYPES, read_facts
from trainer.run.checkpoint_read import Found, load
from trainer.run.folder import RunSpec
from trainer.train import run_worker

RANKS = 2
SURVIVOR_SECONDS = 15.0
LIFE_SECONDS = (0.3, 3.0)
LAST_LIFE_SECONDS = 3600
EVERY_STEPS = 5
STEPS_AFTER = 20


def rank_main(rank: int, port: int, spec: RunSpec, met: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # peers' deaths, again and again
    with process_group():
        (met / f"{port}-{rank}").touch()
        run_worker(spec, SilentProgress())


def live(spec: RunSpec, seconds: float | None, victim: int, met: Path) -> tuple[list[int], float]:
    """Exit codes of the ranks of one life, and how long the survivor took to end.

    Args:
        seconds: until `victim` gets SIGKILL; None: let them finish.
    """
    port = free_port()
    ranks = [start_rank(rank_main, rank, port, spec, met) for rank in range(RANKS)]
    if seconds is not None:
        time.sleep(seconds)
        os.kill(ranks[victim].pid or 0, signal.SIGKILL)
    killed_at = time.monotonic()
    if seconds is not None and len(list(met.glob(f"{port}-*"))) < RANKS:
        time.sleep(1)
        for process in ranks:
            process.kill()
    for process in ranks:
        process.join(timeout=SURVIVOR_SECONDS if seconds is not None else LAST_LIFE_SECONDS)
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


def soak(kills: int, data: Path, out: Path, seed: int = 0, slowness: float = 1.0) -> dict[str, Any]:
    """Kill `kills` times, finish, compare; the figures. AssertionError if anything differs."""
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
    for count in range(kills):
        resume = (out / "killed" / "config.json").exists()
        attempt = replace(spec, resume=resume, run_id=f"start-{count}")
        life = slowness * chance.uniform(*LIFE_SECONDS)
        codes, seconds = live(attempt, life, chance.randrange(RANKS), met)
        slowest = max(slowest, seconds)
        kept = committed(out / "killed" / "checkpoints") if resume else []
        ended += codes.count(-signal.SIGKILL) == RANKS
        at.append(int(kept[-1].name.removeprefix("step-")) if kept else 0)
        print(f"kill {count + 1}: exits {codes}, {seconds:.1f} s, checkpoint {at[-1]}", flush=True)
        assert at == sorted(at), "a checkpoint was lost"
    last = max(losses(out / "killed")) + STEPS_AFTER
    config = replace(config, training=replace(config.training, max_steps=last))
    codes, _ = live(replace(spec, config=config, resume=True), None, 0, met)
    assert codes == [0] * RANKS, codes
    killed_seconds = time.monotonic() - started
    whole = replace(spec, config=config, out=str(out / "whole"))
    codes, _ = live(whole, None, 0, met)
    assert codes == [0] * RANKS, codes
    curve = losses(out / "killed")
    assert list(curve) == list(range(1, last + 1)), "a step is missing or out of order"
    assert curve == losses(out / "whole"), "the curve is another"
    ours, others = tables(out / "killed"), tables(out / "whole")
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        assert torch.equal(value, others[name]), f"{name} is another"
    return {
        "kills": kills,
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
    slowness = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
    print(json.dumps(soak(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), 0, slowness)))
