"""The DeepMI curriculum metric for speech emotion recognition: what other trainers can import."""

__version__ = "0.3.0"

from deepmi.ccc import bootstrap_interval, ccc_loss, concordance_cc
from deepmi.curriculum import training_order
from deepmi.metric import deepmi_values, emotion_levels, read_metric

__all__ = [  # without CurriculumSampler, so that `import *` does not need torch
    "bootstrap_interval",
    "ccc_loss",
    "concordance_cc",
    "deepmi_values",
    "emotion_levels",
    "read_metric",
    "training_order",
]


def __getattr__(name: str) -> object:
    """`CurriculumSampler` is imported when it is asked for, because it needs torch, and the package only numpy."""
    if name == "CurriculumSampler":
        from deepmi.sampler import CurriculumSampler

        return CurriculumSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
