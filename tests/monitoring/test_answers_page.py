"""Pages of recommendations and neighbours: words of others stay words, nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.monitoring.chromium import visit
from tests.monitoring.conftest import needs
from trainer.base.mistake import Mistake
from trainer.bundle.asked import Item, Recommendations
from trainer.live.answers_page import TITLE, AnswersPage, images_of
from trainer.live.document import Document
from trainer.retrieval.arguments import RecommendArguments, SimilarArguments

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>\" 'q' & 🎬 \u202e"
ITEMS = [Item(0, "i&0", HOSTILE), Item(1, "i/1", None), Item(2, 3, "A plain title")]
FOUND = Recommendations(ITEMS, [0.5, 0.25, -0.125], ITEMS[1:])


def written(folder: Path, images: str | None = None, found: Recommendations = FOUND) -> str:
    page = AnswersPage(str(folder / "page.html"), images)
    page.write(found, f"For user {HOSTILE}", "/runs/<b>", ["note & <i>"])
    return (folder / "page.html").read_text()


def policy_of(text: str) -> str:
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    return found[1]


def test_words_are_escaped_and_nothing_is_asked_for(tmp_path: Path) -> None:
    text = written(tmp_path)
    assert "<script" not in text and "<img" not in text and "<i>" not in text
    assert text.count("&lt;script&gt;") == 3  # the window's title, the heading, the item
    assert policy_of(text).endswith("img-src data:")
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert text.index("0.5000") < text.index("0.2500") < text.index("-0.1250")
    assert "recent history" in text and text.count("A plain title") == 2
    assert len(text) < 20_000, "no chart library where there is no chart"
    assert "history" not in written(tmp_path, found=Recommendations(ITEMS, [1, 1, 1], []))


def test_a_heading_stands_where_its_column_does() -> None:
    page = Document("x")
    rows = [[("a", "name"), "0.1", ("why", "soft left")], [("b", "name"), "0.2", ""]]
    page.table(["tried", "ndcg", "reason"], rows, "figures")
    assert '<th>tried</th><th>ndcg</th><th class="left">reason</th>' in page.parts[0]


@pytest.mark.slow
@needs("chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_opens_it_cleanly(dark: bool, tmp_path: Path) -> None:
    written(tmp_path)
    seen = visit((tmp_path / "page.html").as_uri(), tmp_path, dark=dark)
    assert seen.console == [] and seen.outside == set()
    assert f"<title>{TITLE}For user &lt;script&gt;" in seen.dom and "<img" not in seen.dom


def test_pictures_are_asked_of_the_named_origin_alone(tmp_path: Path) -> None:
    text = written(tmp_path, "https://cdn.example:8443/c/{item}.jpg?w=1&h=2")
    assert 'src="https://cdn.example:8443/c/i%260.jpg?w=1&amp;h=2"' in text
    assert 'src="https://cdn.example:8443/c/i%2F1.jpg' in text and text.count("<img") == 5
    assert policy_of(text).endswith("img-src data: https://cdn.example:8443")
    assert '<meta name="referrer" content="no-referrer">' in text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_pictures_of_a_table(suffix: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    urls = [
        'https://a.example/0.jpg"><script>',
        "https://b.example; script-src 'unsafe-eval'/x.jpg",
        "javascript:alert(1)",
    ]
    table = pa.table({"name": ["x"] * 3, "item_id": ["i&0", "i/1", "3"], "cover": urls})
    file = tmp_path / f"items{suffix}"
    (csv.write_csv if suffix == ".csv" else pq.write_table)(table, file)
    text = written(tmp_path, f"{file}:cover")
    assert text.count("<img") == 1 and "https://a.example/0.jpg&quot;&gt;&lt;script&gt;" in text
    assert policy_of(text).endswith("img-src data: https://a.example")
    with pytest.raises(Mistake, match="no column 'covers': name, item_id, cover"):
        images_of(f"{file}:covers")


@pytest.mark.parametrize(
    "given",
    ["", "nothing", "none.csv:url", "https://cdn/x.jpg", "javascript:{item}", "https://{item}/x"],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(Mistake, match="--images '"):
        images_of(given)


def test_a_page_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path)
    (tmp_path / "mine.html").write_text("<title>my thesis</title>")
    with pytest.raises(Mistake, match="no such page: choose another --html"):
        AnswersPage(str(tmp_path / "mine.html"))


def test_flags_that_contradict_each_other() -> None:
    with pytest.raises(Mistake, match="--images are of a page"):
        RecommendArguments("R", user="1", images="x.csv:u")
    with pytest.raises(Mistake, match="leave one out"):
        SimilarArguments("R", "i", html="p.html", json=True)
    with pytest.raises(Mistake, match="no --html"):
        RecommendArguments("R", all=True, out="o", html="p.html")
    with pytest.raises(Mistake, match="--html is empty"):
        RecommendArguments("R", user="1", html="")
