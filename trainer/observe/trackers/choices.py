"""Names of the trackers; no library is read for them."""

from typing import Literal

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
