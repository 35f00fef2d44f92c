"""RMT-L on ImageNet-1k at 224x224: 95 M parameters; 85.5 % top-1 in the paper, 86.1 % with token labels.

    python main.py --config configs/rmt_l.py --workdir /data/rmt_l
    python main.py --config configs/rmt_l.py:token_label --workdir /data/rmt_l_star \\
        --config.data.token_labels.file=/data/label_top5_train_nfnet.array_record

The recipes of configs/rmt_s.py, where they and the data are explained. Drop path is the model's own.
Paper: arXiv 2309.11523.
"""

import ml_collections

from configs import rmt_s


def get_config(recipe: str = "") -> ml_collections.ConfigDict:
    """RMT-S's recipe with this model; `recipe` as there."""
    config = rmt_s.get_config(recipe)
    config.model.name = "rmt_l_star" if recipe else "rmt_l"
    return config
