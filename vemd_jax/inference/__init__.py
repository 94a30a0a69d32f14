"""A trained run as a function, and photographs and videos as its inputs."""

from vemd_jax.inference.model import Model, Prediction, load, predict_clips

__all__ = ['Model', 'Prediction', 'load', 'predict_clips']
