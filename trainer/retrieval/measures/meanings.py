"""What each measure means, in a line, and what it is called: `evaluate --explain`, the pages."""

MEANINGS = {
    "recall": "share of what users liked next that is in their list",
    "ndcg": "the same, counting more for what stands high",
    "hit": "share of users with something they liked in their list",
    "mrr": "mean of 1 / place of the first liked",
    "map": "mean precision at the places of what is liked",
    "disliked": "share of what users disliked next that is in their list; low is good",
    "coverage": "share of items that are in anybody's list",
    "gini": "0: every item is shown as often; 1: one item is shown to all",
}
GROUPS = (
    "items 1/5 to 5/5: the catalog by popularity, in parts that share the training rows evenly; "
    "1/5 is most of the items"
)
BASELINE = "popularity ranking: everybody is shown what most users took and they have not met"


def titled(measure: str) -> str:
    """`NDCG@20`, `Recall@20`: over a chart or a figure."""
    return measure.replace("ndcg", "NDCG").replace("recall", "Recall")


def group_names(count: int) -> list[str]:
    """Of so many popularity groups of items, in their order."""
    names = [str(place + 1) for place in range(count)]
    names[0], names[-1] = "rarest", "most popular"
    return names
