"""Towers that read features side by side: crosses, residual layers, tables of their own width."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.distributed import run_ranks
from tests.one_rank import begun, resumed, small_data, spec_of
from tests.test_training import _worker, losses, small_config
from trainer.base.mistake import Mistake
from trainer.config.model_section import ModelConfig
from trainer.data.schema import Dataset
from trainer.distributed.ranks import process_group
from trainer.model.build import build_model
from trainer.model.inputs import build_inputs
from trainer.model.towers import Tower
from trainer.retrieval.programs import export_encoders, export_towers
from trainer.retrieval.written.bundle_programs import gathered
from trainer.tools.plan import make_plan

pytestmark = pytest.mark.xdist_group("ranks")

WIDE: dict[str, Any] = {
    "tower": "dcn",
    "hidden": (16, 16, 8),
    "residual": True,
    "cross_layers": 2,
    "attribute_widths": ("cardinality", "item.genre=8"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_data(tmp_path_factory.mktemp("data"))


def test_a_cross_by_hand() -> None:
    """x0 = (1, 2), W = ((1, 0), (1, 1)), b = (1, 0): W x0 + b = (2, 3); x1 = x0 * that + x0 =
    (1 * 2 + 1, 2 * 3 + 2) = (3, 8). Again: W x1 + b = (4, 11); x2 = (1 * 4 + 3, 2 * 11 + 8)."""
    tower = Tower("dcn", 1, 2, (), 2, 0.0, normalise=False, cross_layers=2)
    with torch.no_grad():
        for cross in tower.crosses:
            cross.linear.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))  # type: ignore[union-attr]
            cross.linear.bias.copy_(torch.tensor([1.0, 0.0]))  # type: ignore[union-attr]
        tower.layers[0].weight.copy_(torch.eye(2))  # type: ignore[union-attr]
        tower.layers[0].bias.zero_()  # type: ignore[union-attr]
    assert tower([torch.tensor([[1.0, 2.0]])]).tolist() == [[7.0, 30.0]]


def test_residual_layers_by_their_formula() -> None:
    torch.manual_seed(0)
    tower = Tower("mlp", 2, 3, (4, 4, 5), 2, 0.0, normalise=False, residual=True)
    features = [torch.randn(6, 3), torch.randn(6, 3)]
    first, same, wider, last = tower.layers
    x = first(torch.cat(features, dim=1))
    x = x + same.linear(F.relu(F.layer_norm(x, (4,))))  # type: ignore[union-attr,operator]
    x = wider.skip(x) + wider.linear(F.relu(F.layer_norm(x, (4,))))  # type: ignore[union-attr,operator]
    x = last[2](F.relu(F.layer_norm(x, (5,))))  # type: ignore[index]
    assert torch.allclose(tower(features), x)
    plain = Tower("mlp", 2, 3, (4, 4, 5), 2, 0.0, normalise=False)
    assert set(plain.state_dict()) == {
        f"layers.{n}.{w}" for n in range(4) for w in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("values", "width"), [(1, 4), (2, 4), (10, 8), (100, 24), (1000, 64), (10**7, 64)]
)
def test_widths_by_cardinality(values: int, width: int) -> None:
    """1.6 n ** .56: 1.6, 2.4, 5.8, 21.1, 76.6: to multiples of 4, from 4 to dim."""
    model = ModelConfig(tower="mlp", dim=64, attribute_widths=("cardinality", "item.code=12"))
    assert model.width_of("item.tag", values) == width
    assert model.width_of("item.code", values) == 12
    assert ModelConfig(tower="mlp", dim=64).width_of("item.tag", values) == 64


def test_tables_are_as_wide_as_told_and_planned(data: str) -> None:
    dataset = Dataset.load(data)
    config = small_config(model=WIDE)
    inputs = build_inputs(config.model, dataset)
    widths = {table.name: table.dim for table in inputs.tables}
    assert widths == {"item": 16, "user": 16, "user_age": 4, "item_genre": 8, "item_tags": 8}
    one = small_config(model={**WIDE, "attribute_widths": ()})
    narrow, wide = (
        make_plan(each, dataset, gpus=2, gpu_bytes=2**33).estimate for each in (config, one)
    )
    spared = {"user_age": (4, 12), "item_genre": (6, 8), "item_tags": (9, 8)}
    assert wide.weights - narrow.weights == sum(
        -(-rows // 2) * columns * 4 for rows, columns in spared.values()
    )
    assert narrow.sent_embeddings < wide.sent_embeddings


def test_one_rank_trains_as_two_and_goes_on(data: str, tmp_path: Path) -> None:
    begun(data, tmp_path / "one", model=WIDE)
    run_ranks(2, _worker, spec_of(data, tmp_path / "two", model=WIDE))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-4)
    begun(data, tmp_path / "stopped", model=WIDE, training={"max_steps": 5})
    resumed(data, tmp_path / "stopped", model=WIDE)
    assert losses(tmp_path / "stopped") == one
    assert one[10] < one[1]


def test_programs_answer_as_the_model(data: str) -> None:
    """Tables inside: rows of narrower ones end in zeros there, too."""
    with process_group() as ranks:
        sharded = build_model(small_config(model=WIDE), Dataset.load(data), ranks)
        model = sharded.module.eval()
        tables = {
            name.removeprefix("embedding_bags.").removesuffix(".weight"): gathered(sharded, ranks)
            for name, sharded in model.embeddings.state_dict().items()
        }
        programs = export_encoders(model, tables, model.inputs, {}) | export_towers(model)
        inputs = model.inputs
        ids = {"item": [[3], [4]], "item.genre": [[1], [2]], "item.tags": [[1, 2, -1], [3, -1, -1]]}
        given = {key: torch.tensor(ids[key]) for key in inputs.candidate_keys}
        encoded = programs["item_encoder"].module()(given)
        pooled = []
        for key in inputs.candidate_keys:
            table = tables[next(t.name for t in inputs.tables if key in t.features)]
            rows = [torch.stack([table[i] for i in own if i >= 0]) for own in ids[key]]
            each = [r.mean(0) if key in inputs.mean_keys else r.sum(0) for r in rows]
            pooled.append(torch.stack([F.pad(e, (0, 16 - len(e))) for e in each]))
        tower = programs["item_tower"].module()(torch.stack(pooled, dim=1))
        assert torch.allclose(encoded, tower, atol=1e-6)
        expected = model.head.encoding.candidate(pooled)
        assert torch.allclose(encoded, expected, atol=1e-6)
        del sharded, model


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"tower": "mf", "residual": True}, "not of mf"),
        ({"tower": "mlp", "attribute_widths": ("wide",)}, "take cardinality, or NAME=COLUMNS"),
        ({"tower": "mlp", "attribute_widths": ("item.genre=6",)}, "a multiple of 4"),
        ({"tower": "mlp", "attribute_widths": ("item.genre=128",)}, "up to model.dim=64"),
    ],
)
def test_what_cannot_be_is_told(model: dict[str, Any], wanted: str) -> None:
    with pytest.raises(Mistake, match=wanted):
        ModelConfig(**model)


def test_a_width_of_nothing_is_told(data: str) -> None:
    config = small_config(model={**WIDE, "attribute_widths": ("item.gnre=8",)})
    with pytest.raises(Mistake, match=r"'item\.gnre', which is no category of the dataset"):
        build_inputs(config.model, Dataset.load(data))
