"""What is tried of each command: a strategy a command of `cluster.cli.COMMANDS`."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.hostile.case import Case, Put
from tests.hostile.documents import JSON_CHANGES
from tests.hostile.flags import flags_of, hostile_flags
from tests.hostile.making import extending, preparing, synthesising
from tests.hostile.parts import (
    FIXTURES,
    KINDS_OF_NOTHING,
    OUTS,
    RUN_WRITES,
    SEEDS,
    changed_dataset,
    changed_run,
    said,
    typed,
    words_of,
)
from tests.hostile.values import NO_PLACES, WORDS

LISTS = st.sampled_from(("i1,i2", "i1", "", ",", "i1,,i2", '"', '"i1', " i1 , i2 "))


OTHER_RUNS: dict[str, st.SearchStrategy[list[str]]] = {
    "resume": st.just([]),
    "join": (st.just(f"{FIXTURES}/R") | NO_PLACES).map(
        lambda place: [f"./{place}" if place.startswith("-") else place]
    ),
}


@st.composite
def using(draw: st.DrawFn, command: str) -> Case:
    """A command that opens a run: odd flags, or a run or dataset that somebody has changed."""
    run, puts, named = f"{FIXTURES}/R", list(KINDS_OF_NOTHING), ["R", "run", "RUN"]
    act = draw(st.integers(0, 7))
    flags: list[tuple[str, list[str]]] = []
    arguments: list[str] = []
    if act <= 2 and flags_of(command):
        flags = [each for each in draw(hostile_flags(command)) if each[0] != "--out"]
    elif act == 3:
        run = draw(NO_PLACES)
        named = [*words_of(run), "run", "RUN"]
    elif act <= 5:
        puts.append(draw(changed_run("R")))
        run, named = "R", ["R", "step", "config"]
    elif command not in ("report", "dashboard", "status", "resume", "join"):
        puts.append(draw(changed_dataset("D", "D")))
        arguments, named = ["--data=D"], ["D", "R"]
    out, usual = None, list[str]()
    if command in ("export", "mine"):
        out = draw(st.just("X") | OUTS)
        usual = [f"./{out}" if out.startswith("-") else out]
        named += words_of(out)
    elif command == "recommend":
        flags = [each for each in flags if each[0] not in ("--all", "--users", "--workers")]
        usual = [f"--user={draw(st.just('1007') | WORDS)}"]
        if draw(st.booleans()):
            usual = [f"--items={draw(LISTS | WORDS)}"]
        named += ["user", "item", usual[0].partition("=")[2]]
    elif command == "similar":
        usual = [f"--item={draw(st.just('i3') | WORDS)}"]
        named += ["item", usual[0].partition("=")[2]]
    elif command == "report":
        out = draw(st.just("page.html") | OUTS)
        usual = [f"--out={out}"]
        named += words_of(out)
    elif command == "dashboard":
        usual = ["--port=0", "--no-prometheus", "--wait=0"]
    elif command in ("resume", "join"):
        usual = draw(OTHER_RUNS[command])
        named += [*words_of("".join(usual)), "other"]
        puts = puts if run == "R" else [*puts, Put("R", fixture="R")]
        run = "R" if run.startswith(FIXTURES) else run
    given = {flag for flag, _ in flags}
    usual = [each for each in usual if each.partition("=")[0] not in given]
    return Case(
        command,
        (command, run, *usual, *arguments, *typed(flags)),
        tuple(puts),
        out,
        writes=(*RUN_WRITES, *(["R/*", "R"] if command in ("resume", "join") else [])),
        named=(*named, *said(flags)),
    )


@st.composite
def configured(draw: st.DrawFn, command: str) -> Case:
    """train, tune, plan: a preset, a preset file that somebody has changed, flags, data."""
    preset = draw(st.sampled_from(("demo", "ml-100k", "default", "gowalla", "best.json")))
    puts, named = [*KINDS_OF_NOTHING, Put("best.json", fixture="best.json")], [preset]
    data, out = f"{FIXTURES}/D", "run"
    flags: list[tuple[str, list[str]]] = []
    act = draw(st.integers(0, 9))
    if act <= 3:
        flags = draw(hostile_flags(command, most=3))
    elif act <= 6:
        change = draw(st.sampled_from(JSON_CHANGES))
        puts[-1] = Put("best.json", fixture="best.json", change=change, seed=draw(SEEDS))
        preset, named = "best.json", ["best.json", "config", "model", "training"]
    elif act == 7:
        preset = draw(WORDS | NO_PLACES | st.sampled_from(("pipe.json", "loop.json", "dir.json")))
        puts += [Put("pipe.json", fifo=True), Put("loop.json", link="loop.json"), Put("dir.json")]
        named = [preset, "preset"]
    elif act == 8:
        data, out = draw(NO_PLACES), draw(OUTS)
        named = [*words_of(data), *words_of(out), "data"]
    else:
        puts.append(draw(changed_dataset("D", "D")))
        data, named = "D", ["D"]
    arguments = [f"--data={data}", *([f"--out={out}"] if command != "plan" else [])]
    return Case(
        command,
        (command, preset, *arguments, *typed(flags)),
        tuple(puts),
        out if command != "plan" else None,
        writes=("*/.derived/*",),
        named=(*named, *said(flags), "preset"),
    )


@st.composite
def comparing(draw: st.DrawFn) -> Case:
    flags = draw(hostile_flags("compare")) if draw(st.booleans()) else []
    data, out, puts = f"{FIXTURES}/D", "made", list(KINDS_OF_NOTHING)
    if not flags and draw(st.booleans()):
        puts.append(draw(changed_dataset("D", "D")))
        data = "D"
    elif not flags:
        data, out = draw(NO_PLACES), draw(OUTS)
    return Case(
        "compare",
        ("compare", data, f"--out={out}", *typed(flags)),
        tuple(puts),
        out,
        named=(*said(flags), *words_of(data), *words_of(out), "D", "DATA"),
    )


ADDRESSES = st.sampled_from(
    [
        *("{server:html}", "{server:json}", "{server:empty}", "{server:error}", "{server:cut}"),
        *("http://127.0.0.1:9", "127.0.0.1:9", "auto", "", "nope", "http://", "ray://x", "[::1]:1"),
        *("http://127.0.0.1:99999", "ftp://127.0.0.1:9", "http://[red]:1", "http://a b:1", "🎈:1"),
    ]
)


@st.composite
def asking(draw: st.DrawFn, command: str) -> Case:
    """submit, status, logs, stop: clusters and jobs that are none, commands that fail."""
    address = draw(ADDRESSES | WORDS)
    flags = draw(hostile_flags(command)) if command == "submit" and draw(st.booleans()) else []
    words = [f"--address={address}", *typed(flags)]
    if command == "submit":
        inner = draw(st.sampled_from(INNER) | WORDS.map(lambda word: (word,)))
        words += ["--detach", *(["--"] if draw(st.integers(0, 9)) else []), *inner]
    else:
        job = draw(st.sampled_from(("job", "raysubmit_1")) | WORDS | NO_PLACES)
        words += [f"./{job}" if job.startswith("-") else job]
    named = (*said(flags), *words, address, "address", "job", "command", "working", "RUN", "OUT")
    return Case(
        command,
        (command, *words),
        (*KINDS_OF_NOTHING, Put("state/tandem/jobs.jsonl", b'{"job": 1}\n\xff\n[[[\n')),
        named=named,
        writes=("state/tandem/jobs.jsonl",),
        environment={"XDG_STATE_HOME": "state"},
    )


INNER = [
    ("doctor",),
    ("train", "demo", "--data=/d", "--out=/o"),
    ("train", "demo", "--data=d", "--out=o"),
    ("train", "nope", "--data=/d", "--out=/o"),
    ("prepare", "a", "/o", "--threads=x"),
    ("synth", "/o", "--users=-1"),
    ("evaluate",),
    ("submit", "--", "doctor"),
    (),
]


@st.composite
def measuring(draw: st.DrawFn) -> Case:
    """bench: small sizes and a hostile number."""
    part = draw(st.sampled_from((*SMALL, "nope", "")))
    if part not in SMALL:
        return Case("bench", ("bench", part), named=(part, "part"))
    flags = draw(hostile_flags(f"bench {part}", most=1))
    given = {flag for flag, _ in flags}
    small = [each for each in SMALL[part] if each.partition("=")[0] not in given]
    return Case("bench", ("bench", part, *small, *typed(flags)), named=said(flags))


SMALL = {
    "loss": ("--rows=8", "--columns=16", "--dim=4", "--items=50", "--repeats=1", "--threads=1"),
    "step": ("--users=50", "--dim=4", "--global-batch-size=8", "--rounds=1", "--steps=1"),
    "data": (
        "--rows=2000",
        "--items=60",
        "--history-length=3",
        "--local-batch-size=64",
        "--repeats=1",
    ),
    "serve": ("--items=60", "--dim=4", "--k=3", "--requests=2"),
    "eval": (
        "--users=8",
        "--sampled-users=4",
        "--items=60",
        "--dim=4",
        "--k=3",
        "--seen=2",
        "--threads=1",
    ),
    "sequence": (
        "--users=20",
        "--items=60",
        "--length=4",
        "--dim=4",
        "--global-batch-size=8",
        "--uniform=4",
        "--plain-negatives=4",
        "--rounds=1",
        "--steps=1",
    ),
}


@st.composite
def serving(draw: st.DrawFn) -> Case:
    """What is refused: anything else answers until it is told to end."""
    place = draw(st.just(f"{FIXTURES}/R") | NO_PLACES)
    flags = draw(hostile_flags("serve"))
    named = (*words_of(place), "bundle", "BUNDLE", *said(flags))
    words = f"./{place}" if place.startswith("-") else place
    return Case("serve", ("serve", words, *typed(flags)), tuple(KINDS_OF_NOTHING), named=named)


@st.composite
def diagnosing(draw: st.DrawFn) -> Case:
    return Case("doctor", ("doctor", *draw(st.lists(WORDS, max_size=2))))


@st.composite
def demonstrating(draw: st.DrawFn) -> Case:
    """What is refused: anything else trains for minutes."""
    wrong = st.sampled_from(["0", "-1", "nan", "1.5", "", "two", str(-(2**70))])
    return Case("demo", ("demo", f"--workers={draw(wrong)}"))


STRATEGIES: dict[str, st.SearchStrategy[Case]] = {
    "doctor": diagnosing(),
    "demo": demonstrating(),
    "prepare": st.one_of(preparing(), preparing(), preparing(), extending()),
    "synth": synthesising(),
    "bench": measuring(),
    "serve": serving(),
    "compare": comparing(),
    **{name: configured(name) for name in ("train", "tune", "plan")},
    **{
        name: using(name)
        for name in (
            "resume",
            "evaluate",
            "recommend",
            "similar",
            "export",
            "join",
            "mine",
            "report",
            "dashboard",
        )
    },
    **{name: asking(name) for name in ("submit", "logs", "stop")},
    "status": st.one_of(asking("status"), using("status")),
}
