"""The train step against the same model in PyTorch, in alternating runs.

Ways, each in a process of its own:

  jax        the step of `vemd_jax.run`, as the training program builds it
  reference  PyTorch as the authors run it: eager, float32, channels first
  expert     PyTorch as an expert would: channels_last, torch.compile, fused
             Adam, vectorised matching, and autocast for bfloat16

All start from the same weights, get the same batch (224 x 224, ResNet-50, a
latent of 512 channels, body and face, projected structure, no ViT, dropout 0,
targets rendered beforehand) and must compute the same losses at the first step,
or the program ends.

  python benchmarks/torch_baseline.py [--decoder=person_query] [--batch=4]
      [--rounds=5] [--steps=2] [--dtype=bfloat16] [--ways=jax,expert] [--loop]

Requires `torch`. Prints the medians over the rounds and the peak memory.
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

WAYS = ('jax', 'reference', 'expert')
LEARNING_RATE = 1e-4


def make_config(decoder: str, batch: int, dtype: str):
  """The authors' settings on drawn scenes, without ViT and dropout."""
  from configs import reference

  config = reference.get_config(f'{decoder},projected')
  with config.unlocked():
    config.batch_size = config.eval.batch_size = batch
    config.data.update(source='group_scenes', targets='host')
    config.data.group_scenes.train_samples = 4 * batch
    config.model.dtype = dtype
    config.model.vit.name = 'none'
    config.model.head.dropout = 0.0
    config.model.person_query.dropout = 0.0
    config.losses.mmd.kwargs.include_vit = False
    config.optim.learning_rate = LEARNING_RATE
  return config


# ------------------------------------------------------------------- the ways


class Jax:
  """Our step."""

  def __init__(self, args, folder: pathlib.Path):
    config = make_config(args.decoder, args.batch, args.dtype)
    from vemd_jax import devices

    devices.set_up((args.batch,), 1, distributed=False)
    import jax

    from vemd_jax import run, sharding
    from vemd_jax.data import pipeline
    from vemd_jax.models.torch import convert, read

    parts = run.set_up(config, folder / 'workdir')
    (self.name,) = parts.datasets
    data = pipeline.train_batches(parts.datasets, args.batch, seed=0)
    _, batch = next(data)
    data.close()
    batch.pop('unreadable', None)
    np.savez(folder / 'batch.npz', **batch)
    (folder / 'ready').touch()
    while not (folder / 'weights.npz').exists():
      time.sleep(0.1)
    weights = read.read(folder / 'weights.npz')
    converted = convert.import_vemd(weights, config.model.to_dict())
    state = parts.create()
    place = lambda new, old: jax.device_put(new, old.sharding)  # noqa: E731
    merged = _merged(state.params, converted['params'])
    self.state = state.replace(
        params=jax.tree.map(place, merged, state.params),
        batch_stats=jax.tree.map(
            place, converted['batch_stats'], state.batch_stats
        ),
    )
    self.batch = sharding.put_batch(batch, parts.mesh)
    self.step_fn, self.jax = parts.train_step, jax
    self.device = jax.devices()[0].device_kind
    self.version = f'jax {jax.__version__}'

  def step(self):
    self.state, metrics, self.scalars = self.step_fn(
        self.state, self.batch, dataset=self.name
    )
    return metrics

  def terms(self):
    metrics = self.step().compute()
    return {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0}

  def wait(self):
    self.jax.block_until_ready((self.state, self.scalars))

  def device_memory(self):
    stats = self.jax.devices()[0].memory_stats() or {}
    return stats.get('peak_bytes_in_use')


def _merged(ours, theirs):
  """Our tree with the leaves that the other one has."""
  return {
      key: _merged(value, theirs[key])
      if isinstance(value, dict) and key in theirs
      else theirs.get(key, value)
      for key, value in ours.items()
  }


class Torch:
  """The step in PyTorch, as the reference or as an expert runs it."""

  def __init__(self, args, folder: pathlib.Path):
    import torch
    import torch_model

    self.torch, expert = torch, args.worker == 'expert'
    self.device_name = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    model = torch_model.VEMD(args.decoder, 'gaf3', 3, dropout=0.0)
    weights = folder / 'weights.npz'
    if not weights.exists():
      state = {k: v.numpy() for k, v in model.state_dict().items()}
      np.savez(folder / 'part.npz', **state)
      (folder / 'part.npz').rename(weights)
    with np.load(weights) as stored:
      model.load_state_dict({k: torch.tensor(v) for k, v in stored.items()})
    model = model.to(self.device_name).train()
    self.batch = _torch_batch(folder / 'batch.npz', args.decoder, torch)
    self.batch = _moved(self.batch, self.device_name)
    if expert:
      model = model.to(memory_format=torch.channels_last)
      image = self.batch['image'].flatten(0, 1)
      image = image.to(memory_format=torch.channels_last)
      self.batch['image'] = image.unflatten(0, (args.batch, -1))
    self.parameters = list(model.parameters())
    self.optimizer = torch.optim.Adam(
        self.parameters, LEARNING_RATE, fused=expert or None
    )
    # The matching runs on the host, outside of what is compiled.
    forward = torch.compile(model) if expert else model
    autocast = expert and args.dtype == 'bfloat16'

    def losses():
      with torch.autocast(
          self.device_name, torch.bfloat16, enabled=autocast
      ):
        return torch_model.losses(forward, self.batch, args.loop)

    self.losses = losses
    self.device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
    )
    self.version = f'torch {torch.__version__}'

  def terms(self):
    return {k: float(v.detach()) for k, v in self._update().items()}

  def _update(self):
    self.optimizer.zero_grad(set_to_none=True)
    terms = self.losses()
    sum(terms.values()).backward()
    self.torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
    self.optimizer.step()
    return terms

  def step(self):
    self._update()

  def wait(self):
    if self.device_name == 'cuda':
      self.torch.cuda.synchronize()

  def device_memory(self):
    if self.device_name == 'cuda':
      return self.torch.cuda.max_memory_allocated()
    return None


def _torch_batch(path, decoder, torch):
  """The batch of `pipeline.train_batches` as the PyTorch model takes it."""
  import jax

  from vemd_jax import matching, skeletons
  from vemd_jax.models import normalization

  with np.load(path) as stored:
    batch = dict(stored)
  with jax.default_device(jax.devices('cpu')[0]):
    image = normalization.normalize(batch['image'], 'imagenet')
    result = {
        'image': torch.tensor(np.moveaxis(np.asarray(image), -1, 2)),
        'label': torch.tensor(batch['label']).long(),
    }
    frames = batch['image'].shape[0] * batch['image'].shape[1]
    result['prior'] = torch.randn(frames, 512, 7, 7)
    for part in ('body', 'face'):
      if decoder == 'heatmap':
        maps = batch[f'{part}_heatmap']
        maps = maps.reshape(frames, *maps.shape[2:])
        result[part] = torch.tensor(np.moveaxis(maps, -1, 1).copy())
        continue
      people = matching.people(
          batch[f'{part}_keypoints'],
          batch[f'{part}_mask'].astype(bool),
          skeletons.QUERY_LIMBS[part],
          batch['image'].shape[2:4],
      )
      # Real people first, so that a count tells which columns are real.
      order = np.argsort(~np.asarray(people.mask), -1, kind='stable')

      def flat(x, order=order):
        x = np.asarray(x, np.float32)
        at = order.reshape(*order.shape, *(1,) * (x.ndim - order.ndim))
        x = np.take_along_axis(x, at, order.ndim - 1)
        shape = frames, order.shape[-1], -1
        return torch.tensor(x.reshape(*shape[: max(x.ndim - 1, 2)]))

      adjacency = flat(people.adjacency)
      result[part] = {
          'limbs': flat(people.limbs),
          'exists': flat(people.exists),
          'adjacency': adjacency.reshape(frames, order.shape[-1], -1),
          'people': flat(people.mask).reshape(frames, -1).long(),
      }
  return result


def _moved(tree, device):
  if isinstance(tree, dict):
    return {k: _moved(v, device) for k, v in tree.items()}
  return tree.to(device)


def work(args) -> None:
  """A worker: answers each line with the seconds of as many steps."""
  folder = pathlib.Path(args.folder)
  way = (Jax if args.worker == 'jax' else Torch)(args, folder)
  start = time.perf_counter()
  terms = way.terms()
  way.wait()
  first = time.perf_counter() - start
  way.step()  # A second compilation, where there is one, is not timed.
  way.wait()
  say = lambda **answer: print(json.dumps(answer), flush=True)  # noqa: E731
  say(terms=terms, first=first, device=way.device, version=way.version)
  for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
      way.step()
    way.wait()
    seconds = (time.perf_counter() - start) / int(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(seconds=seconds, peak=way.device_memory() or peak)


# ----------------------------------------------------------------- comparison


def check(answers: dict[str, dict], dtype: str) -> None:
  """Ends the program if the first step's losses differ between the ways."""
  base = answers['jax']['terms']
  tolerance = 2e-3 if dtype == 'float32' else 5e-2
  for way, answer in answers.items():
    for name, value in answer['terms'].items():
      # The MMD draws its own sample of the prior.
      if way == 'jax' or name == 'mmd':
        continue
      ours = base[name] * (0.1 if name.endswith('_query') else 1.0)
      if abs(ours - value) > tolerance * abs(ours):
        sys.exit(f'{way}: {name} is {value:.6g}, in jax it is {ours:.6g}')


def main() -> None:
  """Starts the workers and compares them."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
      '--decoder', choices=('heatmap', 'person_query'), default='heatmap'
  )
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--steps', type=int, default=2, help='steps per round')
  parser.add_argument(
      '--dtype', choices=('float32', 'bfloat16'), default='float32'
  )
  parser.add_argument('--ways', default=','.join(WAYS))
  parser.add_argument(
      '--loop', action='store_true', help='match pair by pair in PyTorch'
  )
  parser.add_argument('--worker', choices=WAYS, help=argparse.SUPPRESS)
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.worker:
    work(args)
    return
  ways = args.ways.split(',')
  if 'jax' not in ways or len(set(ways)) < 2 or not set(ways) <= set(WAYS):
    # Without PyTorch nobody would write the weights.
    parser.error(
        f'--ways is {args.ways!r}, expected jax and at least one of {WAYS[1:]}'
    )

  with tempfile.TemporaryDirectory() as folder:
    workers = {}

    def start(way):
      workers[way] = subprocess.Popen(
          [sys.executable, __file__, *sys.argv[1:], f'--worker={way}',
           f'--folder={folder}'],
          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      )  # fmt: skip

    def ask(way, steps):
      worker = workers[way]
      if steps:
        worker.stdin.write(f'{steps}\n')
        worker.stdin.flush()
      for line in worker.stdout:
        if line.startswith('{'):
          return json.loads(line)
      sys.exit(f'{way}: the worker has ended')

    try:
      # Our worker makes the batch, then the first in PyTorch the weights.
      start('jax')
      while not (pathlib.Path(folder) / 'ready').exists():
        if workers['jax'].poll() is not None:
          sys.exit('jax: the worker has ended')
        time.sleep(0.1)
      answers = {}
      for way in (w for w in ways if w != 'jax'):
        start(way)
        answers[way] = ask(way, 0)
      answers['jax'] = ask('jax', 0)
      check(answers, args.dtype)
      times = {way: [] for way in ways}
      peaks = {}
      for _ in range(args.rounds):
        for way in ways:
          answer = ask(way, args.steps)
          times[way].append(answer['seconds'])
          peaks[way] = answer['peak']
    finally:
      for worker in workers.values():
        worker.kill()

  print(f'{args.decoder}, batch {args.batch}, {args.dtype}, '
        f'{args.rounds} alternating rounds of {args.steps} steps, '
        f'{answers["jax"]["device"]}')  # fmt: skip
  print(f'{"way":34}{"first":>9}{"median":>9}{"least":>9}{"most":>9}'
        f'{"ratio":>8}{"peak":>10}')  # fmt: skip
  ours = statistics.median(times['jax'])
  for way in ways:
    median = statistics.median(times[way])
    name = f'{way} ({answers[way]["version"]})'
    print(f'{name:34}{answers[way]["first"]:8.1f}s{median:8.3f}s'
          f'{min(times[way]):8.3f}s{max(times[way]):8.3f}s'
          f'{median / ours:8.2f}{peaks[way] / 2**30:6.2f} GiB')  # fmt: skip


if __name__ == '__main__':
  main()
