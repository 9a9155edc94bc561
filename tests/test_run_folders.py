"""RUN folders that someone else made, or that a crash, a full disk or a hand has hurt."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)

from tests.one_rank import STEPS, begun, checkpoints, resumed, small_data
from tests.test_training import losses
from trainer.base.mistake import Mistake
from trainer.distributed.agreement import first_decides
from trainer.distributed.ranks import process_group
from trainer.model.trained import load_run
from trainer.run.checkpoint_facts import COMMIT_FILE, NotWholeError, _digest, read_facts
from trainer.run.checkpoint_read import Found, load, newest_sound
from trainer.run.folder import RunFolder
from trainer.run.state import read_state

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 4 and 6, which stopped there."""
    out = tmp_path_factory.mktemp("whole") / "run"
    begun(data, out, training={"max_steps": 6})
    assert [path.name for path in checkpoints(out)] == ["step-00000004", "step-00000006"]
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def found(out: Path, **arguments: Any) -> Found | None:
    with process_group() as ranks:
        return newest_sound(out / "checkpoints", ranks, lambda name: True, **arguments)


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change checkpoint.json and give it the digest that its new contents want, as a stranger."""
    contents = json.loads(path.read_text())
    del contents["digest"]
    contents = change(contents) or contents
    path.write_text(json.dumps({**contents, "digest": _digest(contents)}))


def test_no_file_of_the_product_unpickles() -> None:
    forbidden = re.compile(r"\bpickle\b|torch\.(load|save)\(|weights_only|allow_pickle|\bmarshal\b")
    sources = [p for name in ("cluster", "trainer", "losses") for p in (ROOT / name).rglob("*.py")]
    assert len(sources) > 150
    assert [str(p) for p in sources if forbidden.search(p.read_text())] == []


def test_any_safetensors_library_reads_a_checkpoint(whole: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = checkpoints(whole)[-1]
    theirs = safetensors.load_file(path / "rank-00000.safetensors")
    facts = read_facts(path)
    ours = {name: torch.empty(saved.shape) for name, saved in facts.tensors.items()}
    load(Found(path, facts), ours)
    assert theirs.keys() == ours.keys() and len(ours) > 30
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())


def test_a_checkpoint_of_the_earlier_form_is_not_read(run: Path, data: str) -> None:
    """Such a one could run code; here it would."""
    newest = checkpoints(run)[-1]
    met = run / "met"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(met),)

    (newest / ".metadata").write_bytes(pickle.dumps(Evil()))
    (newest / COMMIT_FILE).write_text(json.dumps({"step": 6, "files": {".metadata": "0" * 64}}))
    before = (run / "config.json").read_text()
    with pytest.raises(Mistake, match="written by an earlier Tandem in a form that can run code"):
        resumed(data, run)
    with process_group() as ranks, pytest.raises(Mistake, match="earlier Tandem"):
        load_run(run, ranks, data)
    assert not met.exists() and (run / "config.json").read_text() == before


COMMITS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_text(""),
    "torn": lambda file: file.write_text(file.read_text()[:300]),
    "object": lambda file: file.write_text("{}"),
    "list": lambda file: file.write_text("[1]"),
    "binary": lambda file: file.write_bytes(b"\x00\xff" * 50),
    "flipped": lambda file: file.write_text(file.read_text().replace('"step": 6', '"step": 7', 1)),
    "other step": lambda file: rewritten(file, lambda c: c.update(step=8)),
    "outside": lambda file: rewritten(file, lambda c: _piece(c).update(file="../../metrics.jsonl")),
    "absolute": lambda file: rewritten(file, lambda c: _piece(c).update(file="/etc/passwd")),
    "bytes": lambda file: rewritten(file, lambda c: _tensor(c).update(dtype="bytes")),
    "huge": lambda file: rewritten(file, lambda c: _tensor(c).update(shape=[10**12, 16])),
    "negative": lambda file: rewritten(file, lambda c: _piece(c).update(begin=-4)),
    "text rows": lambda file: rewritten(file, lambda c: c.update(known_rows={"item": "40"})),
    "no tensors": lambda file: rewritten(file, lambda c: c.update(tensors=None)),
    "unknown": lambda file: rewritten(file, lambda c: c.update(hook="os.system")),
    "validation": lambda file: rewritten(file, lambda c: c.update(validation={"best": "x"})),
    "position": lambda file: rewritten(file, lambda c: c["position"].update(streams=[[[1]]])),
}


def _tensor(contents: dict[str, Any]) -> dict[str, Any]:
    return contents["tensors"]["model.embeddings.embedding_bags.item.weight"]


def _piece(contents: dict[str, Any]) -> dict[str, Any]:
    return _tensor(contents)["pieces"][0]


@pytest.mark.parametrize("hurt", COMMITS)
def test_a_commit_that_is_none_is_passed_over(
    hurt: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = checkpoints(run)[-1]
    COMMITS[hurt](newest / COMMIT_FILE)
    with pytest.raises(NotWholeError):
        read_facts(newest)
    taken = found(run)
    assert taken is not None and taken.path.name == "step-00000004" and taken.damaged == {6}
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "step-00000006 is damaged" in said and "\n" not in said


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "dangling", "short"])
def test_a_shard_that_is_no_file_is_damage_and_is_not_waited_for(kind: str, run: Path) -> None:
    shard = checkpoints(run)[-1] / "rank-00000.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    match kind:
        case "fifo":
            os.mkfifo(shard)
        case "zero":
            shard.symlink_to("/dev/zero")
        case "folder":
            shard.mkdir()
        case "dangling":
            shard.symlink_to("nowhere")
        case "short":
            shard.write_bytes(content[:-1])
    taken = found(run)
    assert taken is not None and taken.path.name == "step-00000004"


def test_only_what_is_read_is_verified(run: Path) -> None:
    """Answering one user hashed the optimizer's shards, twice the tables' size."""
    newest = checkpoints(run)[-1]
    piece = (
        read_facts(newest)
        .tensors["optimizer.state.tables.embeddings.embedding_bags.item.weight.item.momentum1"]
        .pieces[0]
    )
    shard = newest / piece.file
    content = bytearray(shard.read_bytes())
    content[piece.begin] ^= 1
    shard.write_bytes(content)
    with process_group() as ranks:
        counted = []
        taken = newest_sound(
            run / "checkpoints",
            ranks,
            lambda name: name.startswith("model."),
            on_bytes=lambda done, total: counted.append((done, total)),
        )
    assert taken is not None and taken.path == newest
    assert counted[-1][0] == counted[-1][1] < len(content) / 2
    assert found(run).path.name == "step-00000004"  # type: ignore[union-attr]


def test_where_none_is_whole_nothing_is_begun_and_nothing_removed(run: Path, data: str) -> None:
    for path in checkpoints(run):
        (path / "rank-00000.safetensors").write_bytes(b"")
    before = {path: path.stat().st_size for path in run.rglob("*") if path.name != ".lock"}
    with pytest.raises(Mistake, match=r"none of the 2 checkpoints is whole: step 6: rank-00000"):
        resumed(data, run)
    after = {path: path.stat().st_size for path in run.rglob("*") if path.name != ".lock"}
    assert after == before


def test_new_checkpoints_stay_when_older_ones_are_damaged(run: Path, data: str) -> None:
    """keep=1, the newest damaged: each new one was deleted in the moment it was whole."""
    (checkpoints(run)[-1] / "rank-00000.safetensors").write_bytes(b"hurt")
    said = resumed(data, run, training={"max_steps": 5}, checkpoint={"keep": 1})
    assert "going on from step-00000004" in said
    assert [path.name for path in checkpoints(run)] == ["step-00000005", "step-00000006"]
    taken = found(run)
    assert taken is not None and taken.path.name == "step-00000005"
    resumed(data, run, checkpoint={"keep": 1})
    assert [path.name for path in checkpoints(run)] == [f"step-{STEPS:08d}"]


def test_stray_folders_are_not_ours(run: Path, data: str, whole: Path) -> None:
    strays = [run / "checkpoints" / name for name in ("step-garbage", "step-1", "old", "step-")]
    for stray in strays:
        stray.mkdir()
        (stray / COMMIT_FILE).write_text("{}")
    (run / "checkpoints" / "step-99999999").mkdir()  # not whole: never read
    said = resumed(data, run)
    assert "going on from step-00000006" in said
    assert all((stray / COMMIT_FILE).exists() for stray in strays)
    assert max(losses(run)) == STEPS


def hurt_lines(file: Path, *lines: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(b"\n".join(lines))


def test_lines_that_a_crash_has_torn_do_not_stop_a_resume(run: Path, data: str) -> None:
    hurt_lines(run / "metrics.jsonl", b'{"step": 7, "lo', b"\x00\x00\x00", b"[1]", b'{"step": "x"}')
    hurt_lines(run / "validation.jsonl", b"nonsense\n")
    hurt_lines(run / "starts.jsonl", b'{"time": 1')
    assert read_state(run).step == 6
    resumed(data, run)
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    assert (run / "validation.jsonl").read_bytes() == b""
    starts = (run / "starts.jsonl").read_text().splitlines()
    assert [json.loads(starts[0])["step"], json.loads(starts[-1])["step"]] == [0, 6]


@pytest.mark.parametrize("text", ["", "[]", "7", '{"renewed": "soon"}', '{"renewed": 1e999}'])
def test_an_owner_that_cannot_be_understood(text: str, run: Path, data: str) -> None:
    """It is somebody's while it is fresh; an old one is nobody's. Here the kernel knows better."""
    file = run / "owner.json"
    file.write_text(text)
    assert read_state(run).is_alive
    os.utime(file, (1e9, 1e9))
    assert read_state(run).phase == "finished"


def test_what_is_in_a_runs_place_is_named(run: Path, data: str, tmp_path: Path) -> None:
    def moved(name: str, make: Callable[[Path], object]) -> Path:
        out = Path(shutil.copytree(run, tmp_path / f"moved-{len(list(tmp_path.iterdir()))}"))
        inner = out / name
        shutil.rmtree(inner) if inner.is_dir() else inner.unlink(missing_ok=True)
        make(inner)
        return out

    for name, make in (
        ("metrics.jsonl", Path.mkdir),
        ("validation.jsonl", os.mkfifo),
        (".lock", os.mkfifo),
        ("starts.jsonl", lambda path: path.symlink_to("/dev/zero")),
        ("owner.json", Path.mkdir),
        ("checkpoints", Path.touch),
        ("checkpoints", os.mkfifo),
    ):
        out = moved(name, make)
        with pytest.raises(Mistake, match=rf"{out}/{name} is no (file|folder), which a run has"):
            resumed(data, out)
    for out, said in (
        (tmp_path / "file", "is no folder; name another"),
        (tmp_path / "dangling", "is a link to nothing"),
    ):
        (out.symlink_to("nowhere") if out.name == "dangling" else out.touch())
        with pytest.raises(Mistake, match=said):
            begun(data, out)


def broken(config: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    inner = config["config"]
    return {**config, "config": {**inner, section: {**inner[section], **values}}}


def test_a_foreign_config_is_checked(run: Path) -> None:
    file = run / "config.json"
    config = json.loads(file.read_text())
    for contents, said in (
        (broken(config, "model", use_history="false"), "config.model.use_history='false': must be"),
        (broken(config, "model", dmi=3), "unknown field config.model.dmi: did you mean 'dim'"),
        ({**config, "world_size": 0}, "world_size=0: must be a whole number, at least 1"),
        ({**config, "data": None}, "data=None: must be text"),
        ({"config": {}}, "run_id, preset, data, dataset_digest, world_size, versions missing"),
        ([], r"\[\]: must be an object"),
    ):
        file.write_text(json.dumps(contents))
        with pytest.raises(Mistake, match=rf"{file}: .*{said}"):
            RunFolder(run).read_config()
    file.write_text("{")
    with pytest.raises(Mistake, match=rf"{file}: is no JSON: .* at line 1, column 2"):
        RunFolder(run).read_config()


def test_a_config_sends_its_reader_to_folders_and_object_stores_alone(run: Path) -> None:
    facts = RunFolder(run).read_config()
    for data in ("/data", "data", "s3://bucket/data", "gs://b/d", "file:///data"):
        assert replace(facts, data=data).named_data == data
    for data in (
        "http://10.0.0.1/d",
        "https://x/d",
        "sftp://host/d",
        "github://a:b@c/",
        "simplecache::http://x/d",
        "zip://x::s3://b/d",
        "://x",
    ):
        with pytest.raises(Mistake, match="name the data yourself by --data"):
            _ = replace(facts, data=data).named_data


def test_a_fault_of_one_rank_is_told_with_its_type() -> None:
    def fail() -> None:
        raise OSError(5, "Input/output error")

    with process_group(), pytest.raises(OSError, match="Input/output error"):
        first_decides(fail)


def test_a_gpu_run_opens_on_a_cpu(run: Path, data: str) -> None:
    """Reading needs no optimizer, no GPU kernel, no place for rows in a GPU's cache."""
    file = run / "config.json"
    config = json.loads(file.read_text())
    config = broken(config, "optimizer", tables="adam", table_weight_decay=0.1)
    config = broken(config, "model", placement="uvm_caching")
    config = broken(config, "loss", backend="triton")
    file.write_text(json.dumps(config))
    with process_group() as ranks:
        trained = load_run(run, ranks, data)
        assert trained.step == 6 and trained.config.optimizer.tables == "adam"
        weight = trained.model.embeddings.state_dict()["embedding_bags.item.weight"]
        rows = weight.local_shards()[0].tensor.clone()
        del trained, weight
    facts = read_facts(checkpoints(run)[-1])
    saved = {"model.embeddings.embedding_bags.item.weight": torch.empty(rows.shape)}
    load(Found(checkpoints(run)[-1], facts), saved)
    assert torch.equal(rows, saved["model.embeddings.embedding_bags.item.weight"])


def test_a_resumed_optimizer_knows_its_step(
    run: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's bias correction began anew, with warm moments: a third of a step at first."""
    told: list[int] = []
    real = SplitTableBatchedEmbeddingBagsCodegen.set_optimizer_step

    def noted(tables: Any, step: int) -> None:
        real(tables, step)
        told.append(int(tables.iter[0]))

    monkeypatch.setattr(SplitTableBatchedEmbeddingBagsCodegen, "set_optimizer_step", noted)
    resumed(data, run, training={"max_steps": 7})
    assert told and set(told) == {6}
