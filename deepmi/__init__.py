"""The DeepMI curriculum metric for speech emotion recognition: what other trainers can import."""

__version__ = "0.3.0"

from deepmi.ccc import bootstrap_interval, ccc_loss, concordance_cc
from deepmi.curriculum import training_order
from deepmi.metric import deepmi_values, read_metric

__all__ = ["bootstrap_interval", "ccc_loss", "concordance_cc", "deepmi_values", "read_metric", "training_order"]
