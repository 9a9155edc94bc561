"""Pictures for the documentation: pages light and dark, wide and narrow; terminals of 80 and 160.

    python docs/site/screens.py WORK OUT

Needs Chromium. WORK keeps data and runs: what is there is not made again.
"""

import csv
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from terminal import recorded

TANDEM = str(Path(sys.executable).with_name("tandem"))
WIDTHS = {1400: 1500, 500: 1300}
"""Width of a window -> most rows that are kept of it."""
COLUMNS = (80, 160)
COLOURS = 255
PREPARE = ["prepare", "plays.csv", "DATA", "--user-column", "listener", "--item-column", "track",
           "--timestamp-column", "at", "--items", "tracks.csv"]  # fmt: skip
QUICK = ["--effort", "quick"]
TRAINED = ["--data", "DATA", "--workers", "1"]


def make_plays(work: Path) -> None:
    """The tutorial's listeners and tracks; rows.csv: the same with title and genre in every row."""
    page = Path(__file__).parents[1] / "tutorial.md"
    script = page.read_text().partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
    subprocess.run([sys.executable, "-c", script], cwd=work, check=True)
    with (work / "tracks.csv").open() as file:
        tracks = {track["track"]: track for track in csv.DictReader(file)}
    with (work / "plays.csv").open() as plays, (work / "rows.csv").open("w") as rows:
        whole = csv.writer(rows)
        whole.writerow(("listener", "track", "at", "song", "genre"))
        for play in csv.DictReader(plays):
            track = tracks[play["track"]]
            whole.writerow((*play.values(), track["title"], track["genre"]))


def make(work: Path, made: str, *command: str) -> None:
    """Run a command of tandem where what it makes is not there yet."""
    if not (work / made).exists():
        print(f"tandem {shlex.join(command)}", flush=True)
        subprocess.run([TANDEM, *command], cwd=work, check=True, stdout=subprocess.DEVNULL)


def terminals(work: Path, out: Path) -> None:
    """Commands that show what a newcomer sees, in the order in which they come."""
    commands = {
        "look": ["prepare", "rows.csv", "--look", *PREPARE[3:-2]],
        "prepare": [*PREPARE[:2], "{new}", *PREPARE[3:]],
        "train": ["train", "--data", "DATA", "--out", "{new}", "--workers", "1", *QUICK],
        "evaluate": ["evaluate", "RUN", "--split", "test", "--explain"],
        "recommend": ["recommend", "RUN", "--user", "user42"],
        "similar": ["similar", "RUN", "--item", "midnight train"],
        "report": ["report", "RUN", "--out", "one.html"],
        "runs": ["dashboard", "."],
        "help": [],
        "plan": ["plan", "gowalla", "--data", "DATA", "--gpus", "2", "--gpu-memory", "100MB"],
        "status": ["status"],
    }
    for columns in COLUMNS:
        for name, command in commands.items():
            with tempfile.TemporaryDirectory(dir=work) as folder:
                made = str(Path(folder).relative_to(work) / "NEW")
                given = [each.format(new=made) for each in command]
                shown = shlex.join(["tandem", *(each.format(new="NEW") for each in command)])
                names = {f"{work}/": "", made: "NEW"}
                text = recorded([TANDEM, *given], columns, work, shown, names)
            (out / f"terminal-{name}-{columns}.svg").write_text(text)


def picture(url: str, file: Path, width: int, dark: bool) -> None:
    """A page in a window of a width, cut below its last line, in few colours."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
            *(f"--user-data-dir={profile}", "--virtual-time-budget=6000"),
            *(f"--window-size={width},{WIDTHS[width]}", f"--screenshot={file}"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            url,
        ]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=120)
    image = Image.open(file).convert("RGB")
    corner = Image.new("RGB", image.size, image.getpixel((0, 0)))
    rows = [box[3] for box in [_difference(image, corner)] if box]
    image = image.crop((0, 0, width, min([*(row + 24 for row in rows), image.height])))
    image.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        file, optimize=True
    )


def _difference(one: Image.Image, other: Image.Image) -> tuple[int, int, int, int] | None:
    from PIL import ImageChops

    return ImageChops.difference(one, other).getbbox()


def pictures(url: str, name: str, out: Path) -> None:
    for width in WIDTHS:
        for dark in (False, True):
            picture(url, out / f"{name}-{'dark' if dark else 'light'}-{width}.png", width, dark)


def live(work: Path, out: Path) -> None:
    """The live page of a run in training."""
    subprocess.run(["rm", "-rf", str(work / "LIVE")], check=True)
    long = ["--training.epochs", "400", "--evaluation.patience", "400"]
    with (work / "live.log").open("w") as log:
        train = subprocess.Popen(
            [TANDEM, "train", "default", *TRAINED, "--out", "LIVE", *QUICK, *long],
            cwd=work, stdout=log, stderr=log,
        )  # fmt: skip
        page = subprocess.Popen(
            [TANDEM, "dashboard", "LIVE", "--port", "8391", "--no-prometheus"],
            cwd=work, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            lines = work / "LIVE" / "validation.jsonl"
            while not (lines.is_file() and lines.read_text().count("\n") >= 6):
                if train.poll() is not None:
                    raise SystemExit(f"the run ended: {work / 'live.log'}")
                time.sleep(1)
            pictures("http://127.0.0.1:8391/", "live", out)
        finally:
            train.send_signal(signal.SIGINT)
            page.send_signal(signal.SIGINT)
            train.wait()
            page.wait()


def main(work: Path, out: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    if not (work / "plays.csv").exists():
        make_plays(work)
    make(work, "DATA", *PREPARE)
    make(work, "RUN", "train", "default", *TRAINED, "--out", "RUN")
    settings = ["--loss.name", "ssm", "--loss.temperature", "0.2"]
    make(work, "SSM", "train", "default", *TRAINED, "--out", "SSM", *QUICK, *settings)
    for name in ("RUN", "SSM"):
        make(work, f"{name}/evaluation.json", "evaluate", name, "--split", "test")
    few = ["--seeds", "2", "--epochs", "3", "--tuning-trials", "2", "--sections", "noise"]
    losses = ["--losses", "ssm", "bsl", "bpr"]
    make(work, "COMPARED/report.html", "compare", "DATA", "--out", "COMPARED", *losses, *few)
    search = ["--trials", "6", "--losses", "ssm", "bsl", "--training.epochs", "4"]
    make(work, "TUNED/trials.html", "tune", "default", *TRAINED[:2], "--out", "TUNED", *search)
    make(work, "one.html", "report", "RUN", "--out", "one.html")
    make(work, "several.html", "report", "RUN", "SSM", "--out", "several.html")
    make(work, "answers.html", "recommend", "RUN", "--user", "user42", "--html", "answers.html")
    pages = {"report": "one.html", "answers": "answers.html", "reports": "several.html",
             "compare": "COMPARED/report.html", "tune": "TUNED/trials.html"}  # fmt: skip
    for name, file in pages.items():
        shown = work / f"shown-{name}.html"  # without the place of the work on this machine
        shown.write_text((work / file).read_text().replace(f"{work}/", ""))
        pictures(shown.as_uri(), name, out)
    live(work, out)
    terminals(work, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
