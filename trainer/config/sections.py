"""A run's configuration: frozen dataclasses, one a section. A field's docstring is its `--help`.

Presets (presets.py) are values of `Config`; the command line overrides fields by
`--section.field VALUE`. Type, choices and range of a field are its annotation's, and hold however a
config comes about: by a flag, a file, or Python (typed.py). Configs stop at the `build_*`
functions: classes below them take plain arguments.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from embeddings.choices import Placement, Sharding, TableOptimizer, TablePrecision
from trainer.base.mistake import Mistake
from trainer.base.typed import Range, check, nearest, read_as

LossName = Literal["ssm", "sl", "bsl", "improved_logq", "ntr", "ssm_ntr", "ccl", "ova", "bpr"]
HistoryPooling = Literal["mean", "attention", "places"]
LogQ = Literal["none", "counts", "streaming"]
Schedule = Literal["constant", "linear", "cosine"]
Tower = Literal["mf", "mlp", "graph", "history", "sequence"]
Measure = Literal["recall", "ndcg", "hit", "mrr", "map", "coverage"]
"""What can be watched: more is better."""

MOST_COLUMNS = 2**24
"""Rows or negatives of a step, at most: they are counted in float32."""
MOST_STEPS = 10**12
MOST_WIDTH = 1024
"""FBGEMM's tables are silently zero beyond it."""
LAST_PORT = 65_535
Cutoff = Annotated[int, Range(least=1, most=1_000_000)]
Layer = Annotated[int, Range(least=1, most=65_536)]
Columns = Annotated[int, Range(least=0, most=MOST_COLUMNS)]
Steps = Annotated[int, Range(least=1, most=MOST_STEPS)]
Weight = Annotated[float, Range(least=0, most=1e6)]
Temperature = Annotated[float, Range(least=0.01, most=1000)]
LearningRate = Annotated[float, Range(above=0, most=1e4)]
Decay = Annotated[float, Range(least=0, most=100)]


def require(condition: bool, message: str) -> None:
    """Raise Mistake(message) unless `condition`: the user's mistake, not ours."""
    if not condition:
        raise Mistake(message)


@dataclass(frozen=True)
class DataConfig:
    """What the loader reads and how it shuffles."""

    train_splits: tuple[str, ...] = ("train",)
    """Splits trained on. Add "validation" only for a final model whose settings are chosen."""
    shuffle_window_rows: Annotated[int, Range(least=1, most=2**31)] = 131_072
    """Rows shuffled together in memory; row groups are permuted as a whole before that."""
    streams: Annotated[int, Range(least=0, most=65_536)] = 0
    """Parts of the epoch read side by side; 0: the least common multiple of 8 and the workers,
    so that 1, 2, 4 and 8 workers see the same global batches."""
    history_length: Annotated[int, Range(least=1, most=100_000)] | None = None
    """Most recent history items fed to the query tower; None: all that were prepared. To leave the
    history out, set model.use_history to False."""
    skip_corrupt: bool = False
    """Count and skip row groups that cannot be read, instead of stopping."""

    def __post_init__(self) -> None:
        check(self, "data")
        unknown = set(self.train_splits) - {"train", "validation"}
        require(
            "train" in self.train_splits and not unknown,
            f"data.train_splits={self.train_splits}: 'train', optionally with 'validation'; "
            "the test split is never trained on",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and what they read."""

    tower: Tower = "mf"
    """mf: the sum of the features' embeddings, as they are. mlp: a perceptron over them. graph: mf
    plus each side's neighbours in train, weighted as LightGCN's first hop. history: a gate between
    user and pooled history. sequence: a causal transformer over the ordered history."""
    dim: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 64
    """Width of every embedding table."""
    hidden: Annotated[tuple[Layer, ...], Range(most=64)] = (128,)
    """Hidden layers of the mlp towers."""
    output_dim: Annotated[int, Range(least=1, most=8192)] = 64
    """Width of the towers' output (mlp only; mf's is `dim`)."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """cosine: outputs are L2-normalised. dot: inner product."""
    use_user_id: bool = True
    """Give each user an embedding; False: users are their history and attributes alone."""
    use_history: bool = False
    """Feed the mean of the history items' embeddings to the query tower."""
    shared_item_table: bool = True
    """History and candidate read the same item table."""
    user_attributes: bool = False
    """Feed every user attribute of the dataset to the query tower."""
    item_attributes: bool = False
    """Feed every item attribute of the dataset to the candidate tower."""
    history_pooling: HistoryPooling = "mean"
    """history: how the items of the history become one vector. places: the last items, each
    through a matrix of its own, for data where the order tells what comes next."""
    sequence_length: Annotated[int, Range(least=1, most=10_000)] = 20
    """sequence, history with attention or places: most recent items of a list that are read one
    by one."""
    sequence_layers: Annotated[int, Range(least=1, most=64)] = 1
    """sequence: layers of the transformer."""
    sequence_heads: Annotated[int, Range(least=1, most=MOST_WIDTH)] = 2
    """sequence: attention heads; must divide dim."""
    neighbours: Annotated[int, Range(least=1, most=100_000)] | None = 16
    """graph: most neighbours drawn for a row in training; None: all. Evaluation takes all."""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """Share of each tower's inputs dropped in training."""
    init_std: Annotated[float, Range(above=0, most=100)] = 0.1
    """Standard deviation of the tables' first values."""
    spectral_start: Annotated[float, Range(least=0, most=1000)] = 0.0
    """Length of the spectral vector added to each user's and item's first value (the leading
    singular vectors of the training graph, seconds to compute); 0: noise alone. For the moment of
    it every worker holds (users + 3 x items) x (dim + 16) x 4 bytes of host memory."""
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
            or self.use_history
            or self.user_attributes
            or self.tower in ("history", "sequence"),
            "the query tower has no input: set model.use_user_id, model.use_history or "
            "model.user_attributes",
        )
        require(
            self.tower != "sequence" or self.dim % self.sequence_heads == 0,
            f"model.sequence_heads={self.sequence_heads} does not divide model.dim={self.dim}",
        )
        require(
            self.tower != "graph" or self.use_user_id,
            "model.tower='graph' needs the users' table: leave model.use_user_id on",
        )

    @property
    def reads_positions(self) -> bool:
        """Whether the query tower reads lists item by item."""
        one_by_one = self.tower == "history" and self.history_pooling != "mean"
        return one_by_one or self.tower == "sequence"

    @property
    def reads_order(self) -> bool:
        """Whether the history's order changes the query."""
        by_place = self.tower == "history" and self.history_pooling == "places"
        return by_place or self.tower == "sequence"

    @property
    def width(self) -> int:
        """Columns of a query and of a candidate."""
        return self.output_dim if self.tower == "mlp" else self.dim


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its parameters."""

    name: LossName = "ssm"
    """ssm: implicit feedback, huge catalogs: begin here. improved_logq: the same, the positive left
    uncorrected. bsl: noisy positives. ntr: explicit dislikes, or items that must not be shown;
    ssm_ntr: they are negatives too. sl, ccl: clean implicit data. ova, bpr: for comparison. ccl
    and ova need negatives.uniform."""
    temperature: Temperature | None = None
    """Scores are divided by this; None: the loss's own default (0.1; ccl has none)."""
    negative_temperature: Temperature | None = None
    """bsl: the negatives' temperature; None: `temperature`."""
    negative_weight: Annotated[float, Range(above=0, most=1e6)] | None = None
    """bsl: factor of the log-sum-exp, with one temperature the authors' exponent. None: 1.2, or
    the ratio of temperatures, the paper's form, where negative_temperature is given. ccl, ova: w of
    w/N, None is a plain sum."""
    margin: Annotated[float, Range(least=-1000, most=1000)] | None = None
    """ccl: negatives scored below this cost nothing; None: 0.9."""
    disliked_weight: Weight | None = None
    """ntr: weight of the disliked rows; None: 1."""
    alpha: Weight | None = None
    """ssm_ntr: weight of its NTR half, disliked rows pushed down; its SSM half has the user's
    disliked items among the negatives. None: 1."""
    several_positives: bool = False
    """bsl: a user's positives in the batch count together; needs mask_same_user."""
    correction: Literal["all", "negatives", "none"] | None = None
    """Scores that log Q is subtracted from. all: the positive's too, with which ssm tends to sl as
    columns become many. negatives: ssm tends to the full softmax. None: the loss's own, all for the
    softmax losses but improved_logq, none for ccl, ova and bpr."""
    learn_temperature: bool = False
    """Train the temperature with the towers, from `temperature` on."""
    mask_same_user: bool = False
    """Leave out columns whose item is another positive of the row's user in the global batch."""
    mask_history: bool = False
    """Leave out columns that are in the row's own history."""
    embedding_penalty: Decay = 0.0
    """L2 on what a step looks up (each feature's pooled embedding), a row's mean: regularises the
    touched rows with every table optimizer."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Operands of the score products; accumulation and reduction are fp32 in both. bf16 takes half
    the time on CPUs and GPUs that have its products; elsewhere it is fp32, in whole or for the
    scores. fp32 on a GPU is three passes of TF32. Towers and the gathering of candidates are fp32
    either way. What it does to recall: docs/benchmarks/loss.md."""
    backend: Literal["auto", "blocked", "compiled", "triton"] = "auto"
    """auto: the fastest there is. blocked: plain torch. compiled: the CPU kernel, built by gcc at
    first use. triton: the CUDA kernel. With ring, or with mask_same_user and mask_history together,
    GPUs walk in plain torch, many times slower."""

    ring: bool = False
    """Never gather all candidates: one rank's at a time visits the others, for batches whose W x B
    candidates do not fit a rank. Same result; on CPUs a third more work and twice the bytes moved,
    on GPUs far slower, for it has no kernel there yet."""

    def __post_init__(self) -> None:
        check(self, "loss")
        require(
            not (self.ring and self.name == "ssm_ntr"),
            "loss.ring with loss.name=ssm_ntr: a user's disliked items must reach its rows on "
            "every rank; use ntr, or turn ring off",
        )
        require(
            not (self.ring and self.backend == "triton"),
            "loss.ring with loss.backend=triton: the ring walk has no CUDA kernel; use auto",
        )
        require(
            not (self.ring and self.several_positives),
            "loss.ring with loss.several_positives: they need all candidates at once; turn one off",
        )

    @property
    def uses_dislikes(self) -> bool:
        """Batches hold disliked rows."""
        return self.name in ("ntr", "ssm_ntr")

    @property
    def disliked_negatives(self) -> bool:
        """Disliked items are negatives of their own user's positive rows."""
        return self.name == "ssm_ntr"


@dataclass(frozen=True)
class NegativesConfig:
    """Where negatives come from; the sources add up."""

    in_batch: bool = True
    """The other rows' positives, gathered from every rank."""
    uniform: Columns = 0
    """Items drawn uniformly from the catalog a step, shared by all ranks."""
    popularity: Columns = 0
    """Items drawn by their count in train a step, shared by all ranks."""
    queue: Columns = 0
    """Candidates of past steps kept as further negatives (cross-batch queue): for batches of some
    dozens of rows, where they help a little; with hundreds they change nothing (docs/losses.md)."""
    queue_warmup_steps: Annotated[int, Range(least=0, most=MOST_STEPS)] = 1000
    """Steps before the queue is used: early embeddings move too fast to be kept."""
    log_q: LogQ = "counts"
    """Correction for how often an item is drawn. counts: exact, from train. streaming: estimated
    from the positives seen so far, repeats counted (after Yi et al. 2019). none: no correction."""

    def __post_init__(self) -> None:
        check(self, "negatives")
        require(
            self.in_batch or self.uniform + self.popularity > 0,
            "there are no negatives: set negatives.in_batch, negatives.uniform or "
            "negatives.popularity",
        )
        require(
            self.uniform == 0 or self.popularity == 0,
            f"negatives.uniform={self.uniform} and negatives.popularity={self.popularity}: "
            "one kind of catalog sampling a run; in-batch negatives already follow popularity",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Fused optimizer of the tables, AdamW of the towers, one schedule for both."""

    tables: TableOptimizer = "rowwise_adagrad"
    """Fused into the backward pass; adam runs on GPUs only."""
    table_learning_rate: LearningRate = 0.05
    """Peak learning rate of the tables."""
    table_weight_decay: Decay = 0.0
    """On GPUs, of the rows a step touches: L2 with rowwise_adagrad, decoupled with adam. sgd,
    adagrad and CPUs have none: see loss.embedding_penalty."""
    tower_learning_rate: LearningRate = 1e-3
    """Peak learning rate of the towers (AdamW)."""
    tower_weight_decay: Decay = 0.0
    """AdamW's decoupled weight decay of matrices; biases, gates and temperatures have none."""
    tower_averaging: Annotated[float, Range(least=0, below=1)] = 0.0
    """Decay a step of the towers' moving average, which evaluation and export then use; 0: none."""
    schedule: Schedule = "constant"
    """How learning rates fall to zero over the run, after the warm-up."""
    warmup_steps: Annotated[int, Range(least=0, most=MOST_STEPS)] = 0
    """Steps over which learning rates rise from zero."""

    def __post_init__(self) -> None:
        check(self, "optimizer")


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch and seed of the run."""

    epochs: Annotated[int, Range(least=1, most=10**9)] = 5
    """Passes over the training rows."""
    max_steps: Steps | None = None
    """Stop after this many steps even if epochs are left."""
    global_batch_size: Annotated[int, Range(least=1, most=MOST_COLUMNS)] = 2048
    """Rows a step over all workers together; must divide by the number of workers."""
    seed: Annotated[int, Range(least=0, below=2**63)] = 1
    """Seeds tables, shuffling and sampling."""
    log_every_steps: Steps = 50
    """Steps between two lines of metrics; the only steps where a GPU is waited for."""
    threads: Annotated[int, Range(least=0, most=1024)] = 0
    """CPU threads a worker; 0: the machine's cores divided by its workers."""

    def __post_init__(self) -> None:
        check(self, "training")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every_steps: Steps | None = None
    """Steps between checkpoints; None: one an epoch."""
    keep: Annotated[int, Range(least=1, most=10**6)] = 2
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        check(self, "checkpoint")


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on the validation split while training."""

    every_epochs: Annotated[int, Range(least=0, most=10**9)] = 0
    """Epochs between evaluations; 0: none while training."""
    patience: Annotated[int, Range(least=1, most=10**9)] | None = None
    """Stop when the metric has not risen for this many evaluations; None: never."""
    metric: str = "ndcg@20"
    """What patience watches."""
    k: Annotated[tuple[Cutoff, ...], Range(least=1, most=100)] = (10, 20, 50)
    """Cut-offs."""
    users: Annotated[int, Range(least=2, most=10**12)] | None = None
    """Users sampled for an evaluation while training; None: all."""

    def __post_init__(self) -> None:
        check(self, "evaluation")
        measure, at, cutoff = self.metric.partition("@")
        require(
            measure in get_args(Measure) and at == "@" and cutoff.isdecimal(),
            f"evaluation.metric={self.metric!r}: {nearest(measure, get_args(Measure))}must be one "
            f"of {', '.join(get_args(Measure))} at one of the cut-offs, as in ndcg@20",
        )


@dataclass(frozen=True)
class MetricsConfig:
    """Each rank's Prometheus endpoint."""

    enabled: bool = True
    """Serve metrics while training."""
    host: str = "127.0.0.1"
    """Address listened on; set 0.0.0.0 to let other machines scrape it."""
    port: Annotated[int, Range(least=0, most=LAST_PORT)] = 0
    """Port of each machine's first rank; its other ranks take the next ones. 0: any free port."""
    advertise: str | None = None
    """Address that Prometheus is told in place of `host`, where it reaches the machine by another
    (the same on all machines, so for runs on one). Left out: found out."""

    def __post_init__(self) -> None:
        check(self, "metrics")
        require(bool(self.host), "metrics.host is empty; 0.0.0.0 listens on every address")


@dataclass(frozen=True)
class Config:
    """Everything a run is: with the data, the seed and the number of workers it fixes the run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def __post_init__(self) -> None:
        check(self, "")
        drawn = self.negatives.uniform + self.negatives.popularity + self.negatives.queue
        require(
            self.training.global_batch_size > 1 or drawn > 0,
            "training.global_batch_size=1 leaves no negatives in the batch: raise it, or set "
            "negatives.uniform or negatives.popularity",
        )
        require(
            not self.loss.ring or self.negatives.queue == 0,
            f"loss.ring with negatives.queue={self.negatives.queue}: the queue holds every rank's "
            "candidates, which the ring never gathers; set one of them only",
        )
        require(
            self.loss.name not in ("ccl", "ova") or self.negatives.uniform > 0,
            f"loss.name={self.loss.name} with negatives.uniform=0: all negatives follow "
            "popularity, which pushes popular items below all others, and this loss corrects for "
            "none of it; set negatives.uniform (2048), or take ssm, sl or bsl",
        )
        require(
            self.loss.name != "ccl" or self.model.similarity == "cosine",
            "loss.name=ccl with model.similarity=dot: its margin is on cosines; set "
            "model.similarity to cosine",
        )
        require(
            self.loss.name != "improved_logq" or self.negatives.log_q != "none",
            "loss.name=improved_logq with negatives.log_q=none: the loss is a correction by log Q; "
            "set negatives.log_q to counts or streaming, or take ssm",
        )
        require(
            not self.loss.mask_history or self.model.use_history,
            "loss.mask_history masks the items of the row's history, which the batch only holds "
            "with model.use_history",
        )
        require(
            self.evaluation.every_epochs == 0 or "validation" not in self.data.train_splits,
            "data.train_splits has 'validation', so evaluating on it while training says nothing: "
            "set evaluation.every_epochs to 0",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, for RUN/config.json."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Any) -> Config:
        """Inverse of `to_json`; Mistake names the first field that is unknown or wrong."""
        return read_as(Config, data)

    @property
    def digest(self) -> str:
        """Short hash: ranks compare it at start."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
