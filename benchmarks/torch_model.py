"""VE-MD in PyTorch, as the comparison for `benchmarks/torch_baseline.py`.

Written from a description of what the authors' code computes, with the names of
their state dicts, so that `vemd_jax.models.torch_import` reads its weights. It
has the trained part of the model: one ResNet encoder, both structural decoders,
and the emotion head on projected structure, for one dataset without ViT (the
latent is then the head's second input, too).
"""

import math

import torch
from torch import nn
from torch.nn import functional

LIMBS = {
    'heatmap': {'body': 18, 'face': 83},
    'person_query': {'body': 18, 'face': 20},
}
_NAMES = {'body': 'decoder_skeleton', 'face': 'decoder_landmark'}


def _positions(length: int, dim: int) -> torch.Tensor:
  """Interleaved sines and cosines, [length, dim]."""
  step = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
  angle = torch.arange(length)[:, None] * step
  return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim]


class Bottleneck(nn.Module):
  """ResNet v1.5: the stride is on the 3 x 3 convolution."""

  def __init__(self, inputs: int, width: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * width)
    self.downsample = None
    if stride > 1 or inputs != 4 * width:
      self.downsample = nn.Sequential(
          nn.Conv2d(inputs, 4 * width, 1, stride, bias=False),
          nn.BatchNorm2d(4 * width),
      )

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)))
    y = functional.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return functional.relu(y + (self.downsample(x) if self.downsample else x))


class Encoder(nn.Module):
  """ResNet-50 and a 1 x 1 convolution to the latent channels."""

  def __init__(self, dim: int, depths=(3, 4, 6, 3)):
    super().__init__()
    layers = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = 64
    for i, depth in enumerate(depths):
      blocks = []
      for j in range(depth):
        stride = 2 if i and not j else 1
        blocks.append(Bottleneck(inputs, 64 * 2**i, stride))
        inputs = 256 * 2**i
      layers.append(nn.Sequential(*blocks))
    self.resnet = nn.Sequential(*layers)
    self.latent = nn.Conv2d(inputs, dim, 1)

  def forward(self, x):
    return self.latent(self.resnet(x))


class ResDown(nn.Module):

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, outputs // 2, 3, 2, 1)
    self.bn1 = nn.BatchNorm2d(outputs // 2, eps=1e-4)
    self.conv2 = nn.Conv2d(outputs // 2, outputs, 3, 1, 1)
    self.bn2 = nn.BatchNorm2d(outputs, eps=1e-4)
    self.conv3 = nn.Conv2d(inputs, outputs, 3, 2, 1)

  def forward(self, x):
    y = self.conv2(functional.elu(self.bn1(self.conv1(x))))
    return functional.elu(self.bn2(y + self.conv3(x)))


class ResUp(nn.Module):

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.dconv1 = nn.ConvTranspose2d(inputs, inputs // 2, 3, 1, 1)
    self.bn1 = nn.BatchNorm2d(inputs // 2, eps=1e-4)
    self.dconv2 = nn.ConvTranspose2d(inputs // 2, outputs, 3, 2, 1, 1)
    self.bn2 = nn.BatchNorm2d(outputs, eps=1e-4)
    self.dconv3 = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, 1)

  def forward(self, x):
    y = self.dconv2(functional.elu(self.bn1(self.dconv1(x))))
    return functional.elu(self.bn2(y + self.dconv3(x)))


def _twice(width: int) -> nn.Sequential:
  return nn.Sequential(*(
      layer
      for _ in range(2)
      for layer in (
          nn.Conv2d(width, width, 3, padding=1, bias=False),
          nn.BatchNorm2d(width),
          nn.ReLU(),
      )
  ))  # fmt: skip


class Upsampling(nn.Module):

  def __init__(self, dim: int):
    super().__init__()
    self.up5 = nn.Conv2d(dim, 2048, 1)
    self.up4, self.dec4 = ResUp(2048, 512), _twice(512)
    self.up3, self.dec3 = nn.ConvTranspose2d(512, 256, 2, 2), _twice(256)
    self.up2, self.dec2 = nn.ConvTranspose2d(256, 128, 2, 2), _twice(128)
    self.up1, self.dec1 = nn.ConvTranspose2d(128, 128, 1), _twice(128)
    self.final_conv = nn.Conv2d(128, 256, 1)

  def forward(self, x):
    x = self.dec4(self.up4(self.up5(x)))
    x = self.dec2(self.up2(self.dec3(self.up3(x))))
    return self.final_conv(self.dec1(self.up1(x)))


class HeatmapDecoder(nn.Module):
  """[N, D, 7, 7] -> logits of each stage, [S, N, L, 56, 56]."""

  def __init__(self, dim: int, limbs: int, stages: int = 6):
    super().__init__()
    self.unet_decoder = Upsampling(dim)
    self.limb_branch = nn.ModuleList(
        nn.Sequential(
            *(
                layer
                for _ in range(4)
                for layer in (nn.Conv2d(256, 256, 3, padding=1), nn.ReLU())
            ),
            nn.Conv2d(256, limbs, 1),
        )
        for _ in range(stages)
    )

  def forward(self, z):
    features = self.unet_decoder(z)
    return torch.stack([branch(features) for branch in self.limb_branch])


class Scales(nn.Module):

  def __init__(self, dim: int):
    super().__init__()
    self.featmap2_1 = nn.Conv2d(dim, dim, 3)
    self.featmap2_2 = ResDown(dim, dim)

  def forward(self, z):
    finer = functional.elu(self.featmap2_1(z))
    grids = z, finer, self.featmap2_2(finer)
    return torch.cat([g.flatten(2).mT for g in grids], 1)


class PersonQueryDecoder(nn.Module):
  """[N, D, 7, 7] -> limbs [N, Q, 4 L] in 0..1 and adjacency [N, Q, L L]."""

  def __init__(self, dim: int, limbs: int, queries: int, dropout: float):
    super().__init__()
    self.multiscalce_feat = Scales(dim)  # The reference's spelling.
    self.transformer = nn.Transformer(
        dim, 8, 3, 3, 2048, dropout, batch_first=True
    )
    self.query_embed = nn.Embedding(queries, dim)
    self.limb_head = nn.Sequential(
        nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, 4 * limbs), nn.Sigmoid()
    )
    self.adjacency_head = nn.Sequential(
        nn.Linear(dim, limbs * limbs), nn.Sigmoid()
    )
    self.register_buffer('table', _positions(83, dim), persistent=False)

  def forward(self, z):
    tokens = self.multiscalce_feat(z) + self.table
    queries = self.query_embed.weight.expand(len(z), -1, -1)
    people = self.transformer(tokens, queries)
    return self.limb_head(people), self.adjacency_head(people)


class AttentionPooling(nn.Module):

  def __init__(self, dim: int):
    super().__init__()
    self.attention = nn.Sequential(nn.Linear(dim, 1))

  def forward(self, x):
    return (self.attention(x).softmax(1) * x).sum(1)


class EmotionHead(nn.Module):
  """The head on latents and projected structure."""

  def __init__(
      self, dim: int, structure: dict[str, int], classes: int, dropout: float,
      proj_dim: int = 512,
  ):  # fmt: skip
    super().__init__()
    self.linear_reduction = nn.Linear(2 * 49 * dim, dim)
    for part, width in structure.items():
      name = 'kp_pose_proj' if part == 'body' else 'kp_face_proj'
      layers = nn.LayerNorm(width), nn.Linear(width, proj_dim), nn.ReLU()
      setattr(self, name, nn.Sequential(*layers))
    width = dim + proj_dim * len(structure)
    layer = nn.TransformerEncoderLayer(
        width, 1, 2048, dropout, batch_first=True
    )
    self.transformer = nn.TransformerEncoder(
        layer, 1, enable_nested_tensor=False
    )
    self.att_pool = AttentionPooling(width)
    self.classifier = nn.Sequential(
        nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.0),
        nn.Linear(512, classes),
    )  # fmt: skip
    self.register_buffer('table', _positions(500, width), persistent=False)

  def forward(self, z, structure):
    """z [B, T, 49 D], part -> [B, T, F] -> logits [B, C]."""
    x = [self.linear_reduction(torch.cat([z, z], -1))]
    x += [
        getattr(self, 'kp_pose_proj' if p == 'body' else 'kp_face_proj')(s)
        for p, s in structure.items()
    ]
    x = torch.cat(x, -1)
    x = self.transformer(x + self.table[: x.shape[1]])
    return self.classifier(self.att_pool(x))


class VEMD(nn.Module):
  """The variant ve_md_sr with projected structure.

  Args:
    decoder: 'heatmap' or 'person_query'.
    dataset: name of the dataset, part of the names in the state dict.
    classes: number of classes.
    dim: channels of the latent.
    queries: queries of `person_query`.
    dropout: rate within the transformers.
  """

  def __init__(
      self, decoder: str, dataset: str, classes: int, dim: int = 512,
      queries: int = 100, dropout: float = 0.1,
  ):  # fmt: skip
    super().__init__()
    self.encoders = nn.ModuleList([Encoder(dim)])
    structure = {}
    for part, limbs in LIMBS[decoder].items():
      if decoder == 'heatmap':
        module, structure[part] = HeatmapDecoder(dim, limbs), 56 * 56
      else:
        module = PersonQueryDecoder(dim, limbs, queries, dropout)
        structure[part] = queries * 4 * limbs
      setattr(self, _NAMES[part], module)
    head = EmotionHead(dim, structure, classes, dropout)
    self.decoder_emotions = nn.ModuleDict({dataset: head})

  def forward(self, image):
    """Runs the model.

    Args:
      image: [B, T, 3, H, W], normalized.

    Returns:
      Logits [B, C], latent [B T, D, 7, 7], part -> decoded structure.
    """
    batch, frames = image.shape[:2]
    z = self.encoders[0](image.flatten(0, 1))
    decoded = {p: getattr(self, name)(z) for p, name in _NAMES.items()}
    read = {
        part: (
            d[0] if isinstance(d, tuple) else d[-1].sigmoid().sum(1)
        ).reshape(batch, frames, -1)
        for part, d in decoded.items()
    }  # fmt: skip
    (head,) = self.decoder_emotions.values()
    logits = head(z.reshape(batch, frames, -1), read)
    return logits, z, decoded


def heatmap_loss(logits, target):
  """Sum over stages of the mean squared error, logits [S, N, L, h, w]."""
  return (logits.sigmoid() - target).square().mean((1, 2, 3, 4)).sum()


def mmd(z, prior, sigma: float = 1.0):
  """The reference's MMD between the rows of each channel, z [N, D, h, w]."""

  def kernel(x, y):
    # Squared distances without the [N, D, h, h, w] differences.
    square = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    distance = (square - 2 * x @ y.mT).clamp(min=0)
    return torch.exp(-distance / (2 * sigma**2))

  value = kernel(z, z) + kernel(prior, prior) - 2 * kernel(z, prior)
  return value.mean()


def set_loss(limbs, adjacency, target, loop: bool):
  """Matching loss of PersonQuery.

  Args:
    limbs: [N, Q, 4 L].
    adjacency: [N, Q, L L], in 0..1.
    target: limbs [N, P, 4 L], exists [N, P, 4 L], adjacency [N, P, L L] and
      people [N, P].
    loop: whether to fill the costs pair by pair, as the reference does.

  Returns:
    Mean over frames of the mean cost of the matched pairs.
  """
  from scipy.optimize import linear_sum_assignment

  there = target['people']
  if loop:
    cost = _pair_by_pair(limbs, adjacency, target)
  else:
    difference = functional.smooth_l1_loss(
        limbs[:, :, None].expand(-1, -1, there.shape[1], -1),
        target['limbs'][:, None].expand(-1, limbs.shape[1], -1, -1),
        reduction='none',
    )
    exists = target['exists'][:, None]
    l1 = (difference * exists).sum(-1) / exists.sum(-1).clamp(min=1)
    # Binary cross-entropy of all pairs as two matrix products.
    log, other = adjacency.log().clamp(-100), (1 - adjacency).log().clamp(-100)
    wanted = target['adjacency']
    bce = log @ wanted.mT + other @ (1 - wanted).mT
    cost = l1 - 0.5 * bce / wanted.shape[-1]
  frames = []
  plain = cost.detach().float().cpu().numpy()
  for n, count in enumerate(there.sum(1).tolist()):
    if count:
      row, column = linear_sum_assignment(plain[n, :, :count])
      frames.append(cost[n, row, column].mean())
  return torch.stack(frames).mean() if frames else cost.sum() * 0


def _pair_by_pair(limbs, adjacency, target):
  rows = []
  for n in range(len(limbs)):
    for q in range(limbs.shape[1]):
      for p in range(target['limbs'].shape[1]):
        exists = target['exists'][n, p]
        l1 = functional.smooth_l1_loss(
            limbs[n, q], target['limbs'][n, p], reduction='none'
        )
        l1 = (l1 * exists).sum() / exists.sum().clamp(min=1)
        bce = functional.binary_cross_entropy(
            adjacency[n, q], target['adjacency'][n, p]
        )
        rows.append(l1 + 0.5 * bce)
  return torch.stack(rows).reshape(*limbs.shape[:2], -1)


def losses(model, batch, loop: bool = False) -> dict[str, torch.Tensor]:
  """The reference's loss terms, weighted.

  Args:
    model: VEMD.
    batch: image, label, prior, and per part heatmap [N, L, 56, 56] or the
      targets of `set_loss`.
    loop: see `set_loss`.

  Returns:
    Name -> scalar.
  """
  logits, z, decoded = model(batch['image'])
  terms = {
      'emotion': functional.cross_entropy(logits, batch['label']),
      'mmd': mmd(z.float(), batch['prior']),
  }
  for part, d in decoded.items():
    if isinstance(d, tuple):
      limbs, adjacency = (x.float() for x in d)
      loss = set_loss(limbs, adjacency, batch[part], loop)
      terms[f'{part}_query'] = 0.1 * loss
    else:
      terms[f'{part}_heatmap'] = heatmap_loss(d.float(), batch[part])
  return terms
