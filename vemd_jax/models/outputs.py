"""The outputs of the model; fields of disabled parts are None."""

import flax.struct
import jax


@flax.struct.dataclass
class Latent:
  """Gaussian latent map of each frame.

  Attributes:
    mean: [B, T, h, w, D] float32.
    log_variance: [B, T, h, w, D] float32; None for a deterministic latent.
    sample: [B, T, h, w, D] float32, the input of the decoders: sampled in
      training; the mean in evaluation and for a deterministic latent.
  """

  mean: jax.Array
  log_variance: jax.Array | None
  sample: jax.Array


@flax.struct.dataclass
class Structure:
  """Decoded structure of one part, body or face.

  Attributes:
    heatmap_logits: [S, B, T, h, w, L] float32, one map per stage and limb.
    limbs: [B, T, Q, L, 4] float32 (x1, y1, x2, y2), 0..1 of the image.
    adjacency_logits: [B, T, Q, L, L] float32.
    presence_logits: [B, T, Q] float32, whether the query holds a person.
    center_logits: [B, T, h, w] float32, whether a person's center lies in that
      grid position; only from the decoder `Centers`.
    center_limbs: [B, T, h, w, L, 4] float32, limbs decoded at each position.
    features: [B, T, h, w, F] grid from which people were decoded.
  """

  heatmap_logits: jax.Array | None = None
  limbs: jax.Array | None = None
  adjacency_logits: jax.Array | None = None
  presence_logits: jax.Array | None = None
  center_logits: jax.Array | None = None
  center_limbs: jax.Array | None = None
  features: jax.Array | None = None


@flax.struct.dataclass
class Outputs:
  """All outputs of the model for one batch of one dataset.

  Attributes:
    logits: [B, C] float32 emotion logits; None without an emotion head.
    latents: one latent, or (body, face) with two encoders.
    vit_latent: [B, T, h, w, D] float32, the projected features of the frozen
      ViT.
    body: decoded bodies.
    face: decoded faces.
    frame_attention: [B, T] float32, the weight of each frame, sums to 1.
    sources: [B, S, C] float32 summands of the logits, from the latents and from
      the relations of each part; None unless the head reads relations.
    teacher_sources: part -> [B, C] float32, the part's summand if the annotated
      people are read instead of the decoded ones; only in training.
  """

  logits: jax.Array | None
  latents: tuple[Latent, ...]
  vit_latent: jax.Array | None = None
  body: Structure | None = None
  face: Structure | None = None
  frame_attention: jax.Array | None = None
  sources: jax.Array | None = None
  teacher_sources: dict[str, jax.Array] | None = None
