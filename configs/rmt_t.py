"""RMT-T on ImageNet-1k at 224x224: 14 M parameters; 82.4 % top-1 in the paper.

    python main.py --config configs/rmt_t.py --workdir /data/rmt_t

The recipe of configs/rmt_s.py, where it and the data are explained. Drop path is the model's own. There is no RMT-T
with token labels. Paper: arXiv 2309.11523.
"""

import ml_collections

from configs import rmt_s


def get_config() -> ml_collections.ConfigDict:
    """RMT-S's recipe with this model."""
    config = rmt_s.get_config()
    config.model.name = "rmt_t"
    return config
