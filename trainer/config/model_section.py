"""The config's `model` section."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from embeddings.choices import Placement, Sharding, TablePrecision
from trainer.base.mistake import require
from trainer.base.typed import Range, check

HistoryPooling = Literal["mean", "attention", "places"]
Block = Literal["sasrec", "ligr", "hstu"]
Tower = Literal["mf", "mlp", "dcn", "history", "sequence"]
SequenceRead = Literal["kinds", "dislikes", "gaps", "attributes"]
MOST_WIDTH = 1024
"""FBGEMM's tables are silently zero beyond it."""
Layer = Annotated[int, Range(least=1, most=65_536)]


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and what they read."""

    RETIRED: ClassVar = ("neighbours",)
    """Of the graph tower, which is no more; runs of earlier versions have it."""
    tower: Tower = "mf"
    """mf: the sum of the features' embeddings, as they are. mlp: a perceptron over them. dcn: the
    same after layers that cross features with one another (DCN-v2). history: a gate between
    user and pooled history. sequence: a causal transformer over the ordered history, trained on
    every position of it at once."""
    dim: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 64
    """Width of every embedding table, but for what attribute_widths says."""
    attribute_widths: tuple[str, ...] = ()
    """mlp and dcn: tables of attributes narrower than dim. cardinality: 1.6 n ** .56 columns for n
    values, rounded up to a multiple of 4, dim at most; item.genre=8: so many."""
    hidden: Annotated[tuple[Layer, ...], Range(most=64)] = (128,)
    """Hidden layers of the mlp and dcn towers."""
    residual: bool = False
    """mlp and dcn: each hidden layer adds to what goes into it, through a LayerNorm."""
    cross_layers: Annotated[int, Range(least=1, most=64)] = 2
    """dcn: layers of crosses before the hidden ones; n of them cross up to n + 1 features."""
    output_dim: Annotated[int, Range(least=1, most=8192)] = 64
    """Width of the towers' output (mlp and dcn only; mf's is `dim`)."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """cosine: outputs are L2-normalised. dot: inner product."""
    use_user_id: bool = True
    """Give each user an embedding; False: users are their history and attributes alone."""
    use_history: bool = False
    """Feed the mean of the history items' embeddings to the query tower."""
    shared_item_table: bool = True
    """History and candidate read the same item table."""
    user_attributes: bool = False
    """Feed every user attribute of the dataset to the query tower: categories, numbers, vectors."""
    item_attributes: bool = False
    """Feed every item attribute of the dataset to the candidate tower."""
    context_attributes: bool = False
    """Feed the context of each event (the hour, the device) to the query tower."""
    id_dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of training rows whose candidate tower does without the item's id, so that it learns to
    tell items that are new by their attributes."""
    history_pooling: HistoryPooling = "mean"
    """history: how the items of the history become one vector. places: the last items, each
    through a matrix of its own, for data where the order tells what comes next."""
    sequence_length: Annotated[int, Range(least=1, most=10_000)] = 20
    """sequence, history with attention or places: most recent items that are read one by one.
    sequence: longer ones are trained in chunks whose halves overlap."""
    block: Block = "ligr"
    """sequence: layers of the transformer. sasrec: attention and a perceptron. ligr: both gated,
    the perceptron a SwiGLU (eSASRec). hstu: pointwise attention with a bias by distance."""
    sequence_reads: tuple[SequenceRead, ...] = ()
    """sequence: what its items say beside themselves. kinds: of which kind each event is (view,
    buy). dislikes: that, and disliked items are in the sequence too. gaps: the time since the event
    before, as its logarithm. attributes: those of the item, as candidates have them (with
    item_attributes)."""
    sequence_layers: Annotated[int, Range(least=1, most=64)] = 2
    """sequence: layers of the transformer."""
    sequence_heads: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 2
    """sequence: attention heads; must divide dim."""
    targets: Annotated[int, Range(least=1, most=64)] = 1
    """sequence: next liked items that each position of the history learns to predict."""
    widths: Annotated[tuple[Annotated[int, Range(least=1, most=8192)], ...], Range(most=16)] = ()
    """Train the first columns of both towers' output to be embeddings of their own, too: the loss
    is its mean over these widths, the last the whole one (64 128 256, Matryoshka)."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of each tower's inputs dropped in training."""
    init_std: Annotated[float, Range(above=0, most=100)] = 0.1
    """Standard deviation of the tables' first values."""
    spectral_start: Annotated[float, Range(least=0, most=1000)] = 0.0
    """Length of the spectral vector added to each user's and item's first value (the leading
    singular vectors of the training graph, seconds to compute; with dot, items are longer the more
    they are liked); 0: noise alone. For the moment of it every worker holds
    (users + 3 x items) x (dim + 16) x 4 bytes of host memory."""
    item_vectors: str | None = None
    """Name of the items' vectors at whose projections the item table begins, in place of noise;
    also rows of items that are never trained, and those that come with grown data."""
    table_precision: TablePrecision = "fp32"
    """Precision of the tables' weights; optimizer states stay fp32."""
    sharding: Sharding = "row_wise"
    """How tables are dealt to ranks; both kinds resume on any number of workers."""
    placement: Placement = "device"
    """uvm_caching (GPUs): tables in host memory, the rows in use cached on the GPU."""

    def __post_init__(self) -> None:
        check(self, "model")
        require(
            self.use_user_id
            or self.user_attributes
            or self.context_attributes
            or self.reads_history,
            "the query tower has no input: set model.use_user_id, model.use_history or "
            "model.user_attributes",
        )
        require(
            self.item_vectors is None or not self.spectral_start,
            "model.item_vectors and model.spectral_start both say where items begin: leave one "
            "out (--model.spectral-start 0)",
        )
        require(
            self.concatenates or not (self.attribute_widths or self.residual),
            f"model.attribute_widths and model.residual are of the mlp and dcn towers, not of "
            f"{self.tower}",
        )
        self.width_of("", 1)
        require(
            self.tower != "sequence" or self.dim % self.sequence_heads == 0,
            f"model.sequence_heads={self.sequence_heads} does not divide model.dim={self.dim}",
        )
        require(
            self.tower == "sequence" or not self.sequence_reads,
            f"model.sequence_reads is of the sequence tower, not of {self.tower}",
        )
        require(
            self.item_attributes or "attributes" not in self.sequence_reads,
            "model.sequence_reads names attributes, which items have with model.item_attributes: "
            "set that, too",
        )
        require(
            self.tower == "sequence" or self.targets == 1,
            f"model.targets={self.targets} is of the sequence tower, not of {self.tower}",
        )
        require(
            not self.widths
            or (list(self.widths) == sorted(set(self.widths)) and self.widths[-1] == self.width),
            f"model.widths={' '.join(map(str, self.widths))}: they must rise, the last being the "
            f"whole width, model.{'output_dim' if self.concatenates else 'dim'}={self.width}",
        )

    @property
    def reads_history(self) -> bool:
        """Whether what somebody took before is an input of the query tower."""
        return self.use_history or self.tower in ("history", "sequence")

    @property
    def reads_positions(self) -> bool:
        """Whether each position of the history is a feature of the query tower."""
        return self.tower == "history" and self.history_pooling != "mean"

    @property
    def reads_order(self) -> bool:
        """Whether the history's order changes the query."""
        by_place = self.tower == "history" and self.history_pooling == "places"
        return by_place or self.tower == "sequence"

    @property
    def concatenates(self) -> bool:
        """Whether the towers read features side by side, in layers of their own."""
        return self.tower in ("mlp", "dcn")

    def width_of(self, key: str, num_values: int) -> int:
        """Columns of the table of an attribute ("item.genre") of so many values.

        Raises:
            Mistake: where attribute_widths cannot be read.
        """
        width = self.dim
        for word in self.attribute_widths:
            name, given, number = word.partition("=")
            if not given and word == "cardinality":
                by_values = 4 * math.ceil(round(1.6 * num_values**0.56) / 4)
                width = min(self.dim, max(4, by_values))
        for word in self.attribute_widths:
            name, given, number = word.partition("=")
            require(
                word == "cardinality"
                or (number.isdecimal() and 4 <= int(number) <= self.dim and int(number) % 4 == 0),
                f"model.attribute_widths={word!r}: take cardinality, or NAME=COLUMNS as in "
                f"item.genre=8, a multiple of 4 up to model.dim={self.dim}",
            )
            width = int(number) if given and name == key else width
        return width

    @property
    def width(self) -> int:
        """Columns of a query and of a candidate."""
        return self.output_dim if self.concatenates else self.dim
