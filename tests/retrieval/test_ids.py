"""Raw ids as people write them: never another id than the one that was meant."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.datasets import make_dataset
from trainer.base.mistake import Mistake
from trainer.data.schema import Dataset
from trainer.retrieval.arguments import (
    EvaluateArguments,
    ExportArguments,
    RecommendArguments,
    SimilarArguments,
)
from trainer.retrieval.names import HOW_TO_QUOTE, find_rows, split_ids


@pytest.fixture(scope="module")
def whole_numbers(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("ids") / "data [1]" / "user=7" / "item=5"
    return make_dataset(path, users=20, items=10, rows=300)


@pytest.fixture(scope="module")
def strings(whole_numbers: Dataset) -> Dataset:
    """The same with ids that hold everything."""
    ids = ["-Kx1_a", "Doe, Jane", "--verbose", " lead", 'say "hi"', "[b]", "1_0", "10", "a\nb", "x"]
    table = pq.ParquetFile(whole_numbers.file("items.parquet")).read()
    place = table.schema.get_field_index("raw_id")
    pq.write_table(
        table.set_column(place, "raw_id", pa.array(ids)), whole_numbers.file("items.parquet")
    )
    return whole_numbers


NO_NUMBERS = ("1_0", "+1000", " 1000", "1000 ", "01000", "-0", "1e3", "1000.0", "", "٣", "0x10")


@pytest.mark.parametrize("raw_id", [*NO_NUMBERS, str(1 << 80), str(1 << 63), str(-(1 << 63) - 1)])
def test_what_is_no_64_bit_whole_number_is_no_id(whole_numbers: Dataset, raw_id: str) -> None:
    with pytest.raises(Mistake, match="ids of this dataset are whole numbers") as caught:
        find_rows(whole_numbers, "user", [raw_id])
    assert repr(raw_id) in str(caught.value)


def test_whole_numbers_are_found(whole_numbers: Dataset) -> None:
    assert find_rows(whole_numbers, "user", ["1003", "1000"]) == [3, 0]
    with pytest.raises(Mistake, match="no user -7 in"):
        find_rows(whole_numbers, "user", ["-7"])


def test_ids_of_any_letters_are_found(strings: Dataset) -> None:
    written = '-Kx1_a,"Doe, Jane",--verbose, lead,"say ""hi""",[b], 1_0 ,10'
    groups = split_ids(written)
    assert find_rows(strings, "item", groups) == list(range(8))


@pytest.mark.parametrize(("written", "words"), [("Doe, Jane,x", "comma"), ("x,nobody", "nobody")])
def test_an_id_that_is_not_there_says_how_ids_are_written(
    strings: Dataset, written: str, words: str
) -> None:
    with pytest.raises(Mistake, match=words):
        find_rows(strings, "item", split_ids(written), HOW_TO_QUOTE)


def test_lists_of_ids_are_read_as_csv() -> None:
    assert split_ids("i3, i8") == [("i3",), (" i8", "i8")]
    assert split_ids('"a,b",c') == [("a,b",), ("c",)]
    assert split_ids(",a,,") == [("a",)]
    with pytest.raises(Mistake, match="quote"):
        split_ids('"a,b')
    with pytest.raises(Mistake, match="--items is empty"):
        split_ids(" , ")


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        (RecommendArguments, {"user": "1", "k": 0}, "-k 0: must be at least 1"),
        (
            RecommendArguments,
            {"user": "1", "k": 1 << 70},
            "-k 1180591620717411303424: must be from",
        ),
        (SimilarArguments, {"item": "1", "k": -1}, "-k -1: must be at least 1"),
        (SimilarArguments, {"item": "", "k": 1}, "--item is empty"),
        (RecommendArguments, {"user": ""}, "--user is empty"),
        (EvaluateArguments, {"k": ()}, "--k is empty"),
        (EvaluateArguments, {"k": (10, 0)}, "--k 0: must be at least 1"),
        (EvaluateArguments, {"users": 1}, "--users 1: must be at least 2, a sample"),
        (EvaluateArguments, {"seed": -1}, "--seed -1: "),
        (EvaluateArguments, {"seed": 1 << 70}, "--seed "),
        (EvaluateArguments, {"groups": 256}, "--groups 256: "),
        (ExportArguments, {"out": "o", "index_k": 0}, "--index-k 0: must be at least 1"),
        (
            ExportArguments,
            {"out": "o", "encoder_limit": -1},
            "--encoder-limit -1: must be at least 0",
        ),
        (ExportArguments, {"out": ""}, "OUT is empty"),
        (EvaluateArguments, {"run": ""}, "RUN is empty"),
        (EvaluateArguments, {"data": ""}, "--data is empty"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(kind: type, arguments: dict, words: str) -> None:
    with pytest.raises(Mistake, match=words):
        kind(**{"run": "r", **arguments})
