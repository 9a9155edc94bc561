"""A run's bundle answers as the code that trained it does: by id, by items, by features."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.data.windows import make, make_log, write
from tests.retrieval.ranks import run_on_ranks
from tests.test_features import data_of_every_type
from tests.test_training import small_config
from trainer.base.mistake import Mistake
from trainer.bundle.answers import recommend, similar
from trainer.bundle.asked import Ask, AskSimilar
from trainer.bundle.manifest import is_bundle, read_manifest
from trainer.bundle.opened_bundle import Bundle
from trainer.data.schema import Dataset
from trainer.distributed.ranks import Ranks, process_group
from trainer.launch.launcher import Worker
from trainer.model.two_tower import TwoTower
from trainer.observe.progress import SilentProgress
from trainer.retrieval import run_bundle
from trainer.retrieval.arguments import ExportArguments, JoinArguments
from trainer.retrieval.export import export, export_on_rank, new_bundle
from trainer.retrieval.joining.join_runs import join_quietly
from trainer.retrieval.known import KnownUsers, known_at
from trainer.retrieval.opened import OpenedRun
from trainer.retrieval.run_bundle import opened_bundle
from trainer.retrieval.search.item_lists import ItemLists
from trainer.retrieval.search.keys import decode_keys
from trainer.retrieval.search.topk import exact_topk
from trainer.retrieval.written import bundle_programs
from trainer.run.folder import RunSpec
from trainer.train import run_worker

pytestmark = pytest.mark.xdist_group("ranks")

FEATURES = {"item_attributes": True, "user_attributes": True, "context_attributes": True}
TOWERS: dict[str, dict[str, Any]] = {
    "mlp": {**FEATURES, "use_history": True},
    "features alone": {**FEATURES, "use_history": True, "use_user_id": False},
    "dot": {"tower": "mf", "output_dim": 16, "similarity": "dot", "use_history": False},
    "history": {"tower": "history", "history_pooling": "places", "sequence_length": 3},
    "attention": {"tower": "history", "history_pooling": "attention", "sequence_length": 4},
    "mean": {"tower": "history", "history_pooling": "mean", **FEATURES},
    "sequence": {"tower": "sequence", "sequence_length": 4, **FEATURES},
    "dcn": {"tower": "dcn", "use_history": True, "attribute_widths": ("cardinality",), **FEATURES},
}
JOINED = {"sequence beside dot": ("sequence", "dot"), "dot beside mean": ("dot", "mean")}
K = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return data_of_every_type(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def run_of(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def run(tower: str) -> Path:
        if tower not in made and tower in JOINED:
            first, second = map(run, JOINED[tower])
            made[tower] = tmp_path_factory.mktemp("joined") / "R"
            shutil.copytree(first, made[tower], ignore=shutil.ignore_patterns("bundles"))
            join_quietly(JoinArguments(str(made[tower]), str(second)))
        elif tower not in made:
            made[tower] = tmp_path_factory.mktemp("run") / "R"
            config = small_config(model=TOWERS[tower], training={"max_steps": 4})
            spec = RunSpec("ml-100k", config, data.path, str(made[tower]))
            run_worker(spec, SilentProgress())
        return made[tower]

    return run


@pytest.fixture(scope="module")
def traced() -> dict[bytes, Any]:
    """Programs of towers by their weights."""
    return {}


@pytest.fixture(autouse=True)
def traced_once(traced: dict[bytes, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers are traced the first time that they are exported: seconds, nearly all of an export."""
    trace = bundle_programs.export_towers

    def programs_of(model: TwoTower, scale: float = 1.0) -> dict[str, Any]:
        digest = hashlib.sha256(f"{model.head!r} {scale}".encode())
        for name, value in model.head.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
        if digest.digest() not in traced:
            traced[digest.digest()] = trace(model, scale)
        return dict(traced[digest.digest()])

    monkeypatch.setattr(bundle_programs, "export_towers", programs_of)


@contextmanager
def trained_code(run: Path) -> Iterator[Callable[..., list[tuple[int, float]]]]:
    """(rows, scores) as the code that evaluates ranks, for users and lists of items."""
    with process_group() as ranks:
        encoder = OpenedRun(run, ranks).encoder
        items = encoder.items()

        def best(
            user: int, known: KnownUsers, context: dict[str, np.ndarray]
        ) -> list[tuple[int, float]]:
            query = encoder.queries(torch.tensor([user]), known.history, known.disliked, context)
            score, row = decode_keys(exact_topk(items, query, known.seen, K))
            return [(int(r), float(s)) for r, s in zip(row[0], score[0], strict=True) if r >= 0]

        yield best


def asked(bundle: Bundle, ask: Ask) -> list[tuple[int, float]]:
    found = recommend(bundle, ask)
    return [(item.row, score) for item, score in zip(found.items, found.scores, strict=True)]


def check_same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> None:
    assert [row for row, _ in found] == [row for row, _ in wanted]
    assert [score for _, score in found] == pytest.approx([s for _, s in wanted], abs=1e-5)


def new_person(rows: list[int]) -> KnownUsers:
    nothing = ItemLists.from_lists([[]])
    return KnownUsers(
        -1, ItemLists.from_lists([rows]), nothing, ItemLists.from_lists([sorted(rows)])
    )


@pytest.mark.parametrize("tower", ["mean", "sequence"])
def test_answers_where_ids_share_rows(tower: str, tmp_path: Path) -> None:
    write(make_log(3, rows=900), tmp_path / "log.parquet")
    make(tmp_path / "log.parquet", tmp_path / "data", min_count=4, min_user_count=6)
    data = Dataset.load(tmp_path / "data")
    assert {side: data.rows_of_table(side) for side in ("user", "item")} != {
        "user": data.num_users,
        "item": data.num_items,
    }
    plain = dict.fromkeys(FEATURES, False)
    config = small_config(model={**TOWERS[tower], **plain}, training={"max_steps": 4})
    run_worker(RunSpec("ml-100k", config, data.path, str(tmp_path / "R")), SilentProgress())
    with opened_bundle(str(tmp_path / "R")) as bundle, trained_code(tmp_path / "R") as best:
        for user in range(0, data.num_users, 5):
            raw_id = str(bundle.user_names.id_of(user))
            check_same(asked(bundle, Ask(raw_id, k=K)), best(user, known_at(data, [user]), {}))
        for rows in ([3], [3, 8, 20], list(range(data.num_items))):
            liked = tuple((str(bundle.item_names.id_of(row)),) for row in rows)
            check_same(asked(bundle, Ask(items=liked, k=K)), best(-1, new_person(rows), {}))


@pytest.mark.parametrize("tower", [*TOWERS, *JOINED])
def test_answers_are_those_of_the_training_code(
    tower: str, data: Dataset, run_of: Callable[[str], Path]
) -> None:
    run, users = run_of(tower), (0, 5, 17, 41)
    with opened_bundle(str(run)) as bundle, trained_code(run) as best:
        ids = [str(bundle.user_names.id_of(user)) for user in users]
        for user, raw_id in zip(users, ids, strict=True):
            check_same(asked(bundle, Ask(raw_id, k=K)), best(user, known_at(data, [user]), {}))
        if "context.hour" in bundle.program.reads:
            hour = bundle.vocabularies.rows_of(
                "context", bundle.manifest.attributes("context")["hour"], 4
            )
            context = {"context.hour": hour, "context.temperature": np.array([1.5])}
            said = {"hour": "4", "temperature": 1.5}
            for user, raw_id in zip(users, ids, strict=True):
                found = asked(bundle, Ask(raw_id, context=said, k=K))
                check_same(found, best(user, known_at(data, [user]), context))
        if bundle.manifest.reads_history:
            for rows in ([3], [3, 8, 20], list(range(30))):
                liked = tuple((str(bundle.item_names.id_of(row)),) for row in rows)
                check_same(asked(bundle, Ask(items=liked, k=K)), best(-1, new_person(rows), {}))


def test_raw_features_say_what_the_dataset_says(
    run_of: Callable[[str], Path], source: dict[str, dict[str, Any]]
) -> None:
    """A user's own features and history, given by value, are the user, where no id is read."""
    with opened_bundle(str(run_of("features alone"))) as bundle:
        for user in (0, 5, 17):
            raw_id = str(bundle.user_names.id_of(user))
            liked = tuple(
                (str(bundle.item_names.id_of(int(row))),) for row in bundle.list_of("history", user)
            )
            by_value = Ask(items=liked, features=source[raw_id], k=50)
            past = {*bundle.list_of("seen", user).tolist(), *bundle.list_of("history", user)}
            found, wanted = asked(bundle, by_value), asked(bundle, Ask(raw_id, k=50))
            check_same(
                *([pair for pair in each if pair[0] not in past] for each in (found, wanted))
            )
        other = dict(source[raw_id], age=None)
        assert asked(bundle, replace(by_value, features=other)) != asked(bundle, by_value)
        for features, words in (
            ({"age": "old"}, "the data never had it; there are 60 values"),
            ({"taste": [1.0]}, "a list of 3 finite numbers"),
            ({"agee": 3}, "did you mean 'age'"),
            ({"age": [1.0, 2.0]}, "one value, not 2"),
        ):
            with pytest.raises(Mistake, match=words):
                recommend(bundle, Ask(features=features))


@pytest.fixture(scope="module")
def source(data: Dataset) -> dict[str, dict[str, Any]]:
    """Features of users by raw id, as the source has them."""
    rows = pq.read_table(Path(data.path).parent / "users.parquet").to_pylist()
    return {str(row["user"]): {"age": row["age"], "taste": row["taste"]} for row in rows}


def test_a_bundle_without_user_vectors_computes_them(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    run = str(run_of("mlp"))
    export(ExportArguments(run, str(tmp_path / "B"), users=False, encoder_limit=0))
    with opened_bundle(run) as whole, opened_bundle(str(tmp_path / "B")) as bundle:
        assert bundle.users is None and not (tmp_path / "B/users/vectors.npy").exists()
        for user in (0, 5, 17):
            ask = Ask(str(bundle.user_names.id_of(user)), k=K)
            check_same(asked(bundle, ask), asked(whole, ask))
        assert similar(bundle, AskSimilar("3")) == similar(whole, AskSimilar("3"))


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_what_a_precision_loses_is_told(
    precision: Any, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ExportArguments(str(run_of("mlp")), str(tmp_path / "B"), precision=precision)
    facts = export(replace(arguments, encoder_limit=0))
    assert f"stored as {precision}: recall@10 against float32 " in capsys.readouterr().out
    with opened_bundle(str(run_of("mlp"))) as whole:
        stored = Bundle(tmp_path / "B")
        assert stored.items.code_ND.dtype == precision
        hits = []
        for user in range(60):
            ask = Ask(str(whole.user_names.id_of(user)), k=10)
            rows = [{row for row, _ in asked(each, ask)} for each in (whole, stored)]
            hits.append(len(rows[0] & rows[1]) / len(rows[0]))
    assert facts["recall"]["recall"] == pytest.approx(np.mean(hits), abs=0.1)
    assert facts["recall"]["queries"] == 60


def test_ranks_write_what_one_does(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = str(run_of("mlp"))
    (tmp_path / "out").mkdir()
    run_on_ranks(export_together, (2,), (run, str(tmp_path)), tmp_path / "out")
    with opened_bundle(run) as bundle:
        alone = bundle.path
    for name in sorted(each.relative_to(alone) for each in alone.rglob("*.npy")):
        one, two = np.load(alone / name), np.load(tmp_path / "2" / name)
        if one.dtype == np.float32:
            np.testing.assert_allclose(two, one, atol=1e-5, err_msg=str(name))
        else:
            np.testing.assert_array_equal(two, one, err_msg=str(name))


def export_together(ranks: Ranks, run: str, out: str) -> None:
    from trainer.distributed.hooks import Hooks

    place = f"{out}/{ranks.world_size}"
    with ExitStack() as stack:
        folder = stack.enter_context(new_bundle(place)) if ranks.is_first else None
        worker = Worker(ranks, SilentProgress(), Hooks())
        export_on_rank((ExportArguments(run, place, encoder_limit=0), folder), worker)


@pytest.fixture
def copied(run_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A run without a bundle."""
    shutil.copytree(run_of("dot"), tmp_path / "R", ignore=shutil.ignore_patterns("bundles"))
    return tmp_path / "R"


def bundles(run: Path) -> list[Path]:
    return sorted(each for each in (run / "bundles").glob("*") if is_bundle(each))


def test_a_run_keeps_one_bundle_for_its_checkpoint(
    copied: Path, capsys: pytest.CaptureFixture
) -> None:
    with opened_bundle(str(copied)) as bundle:
        first = bundle.manifest
    assert [each.resolve() for each in bundles(copied)] == [bundle.path]
    assert "answers come from it until" in capsys.readouterr().err
    with opened_bundle(str(copied)) as again:
        assert again.manifest == first and capsys.readouterr().err == ""
    (step,) = (copied / "checkpoints").glob("step-*")
    later = copied / "checkpoints/step-00000009"
    shutil.copytree(step, later)
    said = json.loads((later / "checkpoint.json").read_text())
    (later / "checkpoint.json").write_text(json.dumps({**said, "step": 9}))  # its digest is wrong
    with opened_bundle(str(copied)) as other:
        assert other.path != bundle.path and other.manifest.step == first.step
    assert bundles(copied) == [other.path], "that of before is gone"


def test_a_damaged_bundle_is_made_again(copied: Path) -> None:
    with opened_bundle(str(copied)) as bundle:
        pass
    for damage in ("items/ids.arrow", "bundle.json", "users/seen.values.npy"):
        (bundle.path / damage).write_bytes(b"{")
        with pytest.raises(Mistake):
            Bundle(bundle.path)
        with opened_bundle(str(copied)) as again:
            assert read_manifest(again.path, full=True).items == bundle.manifest.items


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_that_cannot_be_written_is_answered(
    copied: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    make = run_bundle._make

    def refused(run: str, dataset: Dataset, out: Path) -> None:
        if out.is_relative_to(copied):
            raise OSError(number, "refused", str(out))
        make(run, dataset, out)

    monkeypatch.setattr(run_bundle, "_make", refused)
    with opened_bundle(str(copied)) as bundle:
        assert bundle.manifest.items and not bundle.path.is_relative_to(copied)
    assert "cannot be kept (refused)" in capsys.readouterr().err
    assert not bundle.path.exists() and not bundles(copied)


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_else_has_the_bundles_name_stays(copied: Path, tmp_path: Path, kind: str) -> None:
    """A link would have what lies behind it taken for bundles of before."""
    other = tmp_path / "other/0123456789abcdef"
    other.mkdir(parents=True)
    (other / "bundle.json").write_text("{}")
    if kind == "link":
        (copied / "bundles").symlink_to(other.parent)
    else:
        (copied / "bundles").touch()
    with opened_bundle(str(copied)) as bundle:
        assert not bundle.path.is_relative_to(copied)
    assert [each.name for each in other.parent.iterdir()] == [other.name]


def test_a_bundle_says_what_is_wrong_with_it(copied: Path, data: Dataset) -> None:
    with opened_bundle(str(copied)) as bundle:
        path = str(bundle.path)
    with pytest.raises(Mistake, match=r"--data: .* is a bundle"), opened_bundle(path, data.path):
        pass
    with pytest.raises(Mistake, match="is no run"), opened_bundle(str(copied.parent)):
        pass
    with pytest.raises(Mistake, match="copy it to a local folder"):
        Bundle("memory://bundle")
