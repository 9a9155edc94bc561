"""The examples of docs/guides/losses.md, run as they stand: torch alone, no process group."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from losses.choices import LOSSES

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guides" / "losses.md"


def test_the_loop_of_the_guide_learns_what_users_like() -> None:
    loop, drawn = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len([line for line in loop.splitlines() if line]) <= 15
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(loop, names)
    score_UI = names["query_BD"] @ torch.nn.functional.normalize(names["items"].weight).T
    top_UK = score_UI.topk(20, dim=1).indices
    liked = (top_UK % 10 == names["user_B"][:, None] % 10).float().mean()
    assert liked > 0.9  # by chance .1
    before = names["value"].item()
    exec(drawn, names)
    assert names["value"].item() > before  # more negatives
    assert names["statistics"]["negatives_mean"].item() > 2000


def test_it_needs_torch_alone() -> None:
    """Nothing of the project's other packages, nor of its dependencies, is imported."""
    script = (
        "import sys; sys.modules |= dict.fromkeys("
        "('numpy', 'pyarrow', 'ray', 'torchrec', 'fbgemm_gpu', 'tyro', 'trainer', 'embeddings'))\n"
        "import losses\n"
        "assert 'torch' not in sys.modules\n"
        "from losses import build_loss, in_batch\n"
        "import torch\n"
        "vectors = torch.eye(4, requires_grad=True)\n"
        "for name in sys.argv[1:]:\n"
        "    value, _ = build_loss(name)(*in_batch(vectors, vectors, torch.arange(4)))\n"
        "    value.backward()\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", script, *LOSSES], cwd=ROOT, check=True)


def test_the_guide_says_when_to_take_each_loss() -> None:
    table = GUIDE.read_text().partition("## In a PyTorch loop")[0]
    assert [name for name in LOSSES if f"`{name}`" not in table] == []
