"""Inference with a trained run, on photographs and videos."""

from vemd_jax.inference.clips import Clip
from vemd_jax.inference.model import (
    Model,
    Prediction,
    hides_people,
    load,
    predict_clips,
)

__all__ = [
    'Clip',
    'Model',
    'Prediction',
    'hides_people',
    'load',
    'predict_clips',
]
