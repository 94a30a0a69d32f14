"""Metadata of every dataset: classes, labels, splits, metrics, targets.

This module is the single source of this metadata; it reads no files. Split
names are this project's own ('train', 'val', 'test', ...); labels read from
files are compared after `normalize_label`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

# The learning rate of the reference; its epochs lie between 50 and 400.
LEARNING_RATE = 1e-4
EPOCHS_RANGE = (50, 400)

ENGAGEMENT_NOTICE = (
    'The EU AI Act, Article 5(1)(f), prohibits inferring emotions in '
    'workplaces and educational institutions (medical and safety uses aside); '
    'engagement in a classroom is covered.'
)


class Published(NamedTuple):
  """One published number.

  Attributes:
    value: in percent.
    metric: name of the metric, as in `Dataset.metrics` where it is one of them.
    split: the split it was measured on, as far as stated.
    source: the publication, and the place in it.
  """

  value: float
  metric: str
  split: str
  source: str


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Metadata of one dataset.

  Attributes:
    name: the name in configs and on the command line.
    title: the display name.
    kind: 'group', 'individual' or 'structure' (no emotion label).
    media: 'image', 'video' or 'frames' (a folder of frames per clip).
    frames: number of frames per sample, T.
    more_frames: other values of T that publications use.
    classes: class names in the order of the class numbers.
    file_labels: normalised label of the official files -> class number; class
      names need no entry.
    dropped_labels: normalised file label -> why such samples are left out.
    splits: split -> official number of samples, None where it is not known.
      With folds, 'train' and 'test' exist once per fold, and the number counts
      all samples.
    counts_source: source of the numbers of samples.
    folds: number of folds, 0 if there are none.
    choose_split: split on which the checkpoint is selected; 'holdout' is a
      held-out share of train, for datasets whose evaluation split is the
      official one.
    report_splits: splits on which metrics are reported.
    metrics: official metrics, the primary one first.
    published: published results for comparison, VE-MD first.
    labels, bodies, faces, audio, text: available signals. Bodies and faces
      are set where annotating them is useful; only COCO ships with them.
    batch_size: clips per batch in the reference.
    epochs: number of epochs used here, within the reference's range.
    learning_rate: learning rate of the reference.
    notice: warning printed by the preparation.
  """

  name: str
  title: str
  kind: str
  media: str
  frames: int
  classes: tuple[str, ...] = ()
  file_labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
  dropped_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
  splits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)
  counts_source: str = ''
  more_frames: tuple[int, ...] = ()
  folds: int = 0
  choose_split: str = 'holdout'
  report_splits: tuple[str, ...] = ()
  metrics: tuple[str, ...] = ()
  published: tuple[Published, ...] = ()
  labels: bool = True
  bodies: bool = True
  faces: bool = True
  audio: bool = False
  text: bool = False
  batch_size: int = 10
  epochs: int = 100
  learning_rate: float = LEARNING_RATE
  notice: str = ''


_VEMD = 'VE-MD, arXiv 2604.02397'

DATASETS: Mapping[str, Dataset] = MappingProxyType({
    d.name: d
    for d in (
        Dataset(
            name='gaf3',
            title='GAF-3.0',
            kind='group',
            media='image',
            frames=1,
            # Also the default meaning of the labels 0, 1, 2 of the flat layout.
            classes=('negative', 'neutral', 'positive'),
            splits={'train': 9815, 'val': 4346},
            counts_source='EmotiW 2018, group-level emotion (GAF 3.0)',
            report_splits=('val',),
            metrics=('accuracy', 'macro_f1'),
            published=(
                Published(
                    90.06,
                    'accuracy',
                    'not stated, presumably val',
                    f'{_VEMD}, abstract',
                ),
            ),
            batch_size=32,
        ),
        Dataset(
            name='vgaf',
            title='VGAF',
            kind='group',
            media='video',
            frames=5,
            more_frames=(25,),
            classes=('positive', 'neutral', 'negative'),
            file_labels={'1': 0, '2': 1, '3': 2},
            # The labels of Test are not public.
            splits={'train': 2661, 'val': 766, 'test': 756},
            counts_source='EmotiW 2020/2023, audio-video group emotion',
            report_splits=('val',),
            metrics=('accuracy',),
            published=(
                Published(
                    82.25,
                    'accuracy',
                    'not stated; with audio fusion',
                    f'{_VEMD}, abstract',
                ),
                Published(79.24, 'accuracy', 'val', 'arXiv 2312.05265'),
                Published(75.13, 'accuracy', 'test', 'arXiv 2312.05265'),
                Published(66.40, 'accuracy', 'test', 'K-injection network'),
                Published(47.88, 'accuracy', 'test', 'challenge baseline'),
            ),
            audio=True,
            batch_size=8,
        ),
        Dataset(
            name='samsemo',
            title='SAMSEMO',
            kind='individual',
            media='video',
            frames=10,
            classes=('happiness', 'neutral', 'sadness', 'anger', 'surprise'),
            # Disgust is counted as anger, as in VE-MD.
            file_labels={'disgust': 3},
            dropped_labels={'fear': 'label fear is not used'},
            splits={'train': None, 'val': None, 'test': None},
            choose_split='val',
            report_splits=('test',),
            # The official metric is the mean multi-label F1.
            metrics=('accuracy', 'macro_f1', 'multilabel_f1'),
            published=(
                Published(
                    77.9, 'accuracy', 'not stated; with text', f'{_VEMD}'
                ),
            ),
            audio=True,
            text=True,
        ),
        Dataset(
            name='dfew',
            title='DFEW',
            kind='individual',
            media='frames',
            frames=16,
            classes=(
                'happy', 'sad', 'neutral', 'angry', 'surprise', 'disgust',
                'fear',
            ),
            file_labels={str(i + 1): i for i in range(7)},
            splits={'folds': 11697},
            counts_source='DFEW, single-labelled clips',
            folds=5,
            report_splits=('test',),
            # WAR is accuracy, UAR macro recall; both are averaged over folds.
            metrics=('war', 'uar'),
            published=(
                Published(82.46, 'war', 'mean of 5 folds', 'HumanOmni'),
                Published(74.86, 'uar', 'mean of 5 folds', 'HumanOmni'),
                Published(77.51, 'war', 'mean of 5 folds', 'MMA-DFER'),
                Published(67.01, 'uar', 'mean of 5 folds', 'MMA-DFER'),
                Published(74.43, 'war', 'mean of 5 folds', 'MAE-DFER'),
                Published(63.41, 'uar', 'mean of 5 folds', 'MAE-DFER'),
            ),
            bodies=False,
        ),
        Dataset(
            name='mer2023',
            title='MER2023-MULTI',
            kind='individual',
            media='video',
            frames=10,
            classes=(
                'neutral', 'angry', 'happy', 'sad', 'worried', 'surprise',
            ),
            # test1 is MULTI, test2 NOISE, test3 the labelled part of SEMI.
            splits={'train': 3373, 'test1': 411, 'test2': 412, 'test3': 834},
            counts_source='MER 2023 challenge, arXiv 2304.08981',
            report_splits=('test1', 'test2', 'test3'),
            metrics=('weighted_f1', 'accuracy'),
            published=(
                Published(90.36, 'weighted_f1', 'test3', 'Emotion-LLaMA'),
                Published(86.75, 'weighted_f1', 'test3', 'challenge baseline'),
            ),
            audio=True,
            text=True,
        ),
        Dataset(
            name='mer2023_semi',
            title='MER2023-SEMI, unlabelled part',
            kind='structure',
            media='video',
            frames=5,
            splits={'train': None},
            choose_split='holdout',
            report_splits=('holdout',),
            metrics=('heatmap_error',),
            labels=False,
            audio=True,
        ),
        Dataset(
            name='engagenet',
            title='EngageNet',
            kind='individual',
            media='video',
            frames=10,
            classes=(
                'not-engaged', 'barely-engaged', 'engaged', 'highly-engaged',
            ),
            file_labels={str(i): i for i in range(4)},
            dropped_labels={
                'snp(subject-not-present)': 'SNP: subject not present',
                'snp': 'SNP: subject not present',
            },
            splits={'train': 7983, 'val': 1071, 'test': 2257},
            counts_source='EngageNet, published baselines',
            choose_split='val',
            report_splits=('test',),
            metrics=('accuracy', 'macro_f1'),
            published=(
                Published(74.7, 'accuracy', 'test', 'best found, 2024'),
                Published(71.3, 'accuracy', 'val', 'best found, 2024'),
                Published(68.91, 'accuracy', 'val', 'TCCT-Net'),
            ),
            notice=ENGAGEMENT_NOTICE,
        ),
        Dataset(
            name='coco',
            title='COCO keypoints 2017 (+ WholeBody faces)',
            kind='structure',
            media='image',
            frames=1,
            splits={'train': 118287, 'val': 5000},
            counts_source='COCO 2017, all images',
            choose_split='val',
            report_splits=('val',),
            metrics=('heatmap_error', 'pck'),
            labels=False,
        ),
    )
})  # fmt: skip


def get(name: str) -> Dataset:
  """Looks up a dataset.

  Args:
    name: its name.

  Returns:
    Its metadata.

  Raises:
    ValueError: there is no such dataset.
  """
  if name not in DATASETS:
    raise ValueError(
        f'unknown dataset {name!r}; expected one of {", ".join(DATASETS)}'
    )
  return DATASETS[name]


# Minus signs that spreadsheets and word processors substitute for '-'.
_MINUS = str.maketrans({'\u2212': '-', '\u2013': '-', '\u2014': '-'})
_INVISIBLE = '\ufeff\u200b\u200c\u200d\u2060'


def canonical_number(text: str) -> str | None:
  """Normalises the spelling of a number.

  Args:
    text: such as '1', '1.0', '01', '+1', '-1', '1.5'.

  Returns:
    '1' for each of the first four, '-1', '1.5'; None if it is not a number.
  """
  text = text.translate(_MINUS)
  match = re.fullmatch(r'([+-]?)([0-9]+)(?:\.([0-9]*))?', text)
  if not match:
    return None
  sign, whole, part = match.groups()
  whole, part = whole.lstrip('0') or '0', (part or '').rstrip('0')
  negative = sign == '-' and (whole != '0' or part)
  return '-' * bool(negative) + whole + ('.' + part if part else '')


def clean_label(text: str) -> str:
  """Strips quotes, whitespace and invisible characters around a label."""
  while text != (text := text.strip().strip(_INVISIBLE).strip('\'"')):
    pass
  return text


def normalize_label(text: str) -> str:
  """Normalises a label, so that its different spellings compare equal.

  Args:
    text: label as read. Letter case, quotes, surrounding whitespace and the
      separator between words (blank, '_' or '-') are ignored, and '1.0' and
      '01' equal '1'. A minus before a number is its sign.

  Returns:
    The normalised label.
  """
  text = clean_label(text).casefold()
  number = canonical_number(text)
  if number is not None:
    return number
  joined = '-'.join(text.replace('_', ' ').replace('-', ' ').split())
  # '-' is a separator only between words; a leading one changes the label.
  return '-' + joined if text.translate(_MINUS).startswith('-') else joined


def class_of(
    dataset: Dataset, text: str, label_order: tuple[str, ...] = ()
) -> int:
  """Maps a label of an official file to its class.

  Args:
    dataset: metadata of the dataset.
    text: label as read.
    label_order: class names of the labels 0, 1, ...; () uses the dataset's
      own `file_labels`.

  Returns:
    Class number.

  Raises:
    ValueError: no class has this label; the message states why the sample is
      left out.
  """
  label = normalize_label(text)
  if label in dataset.classes:
    return dataset.classes.index(label)
  if re.fullmatch('[0-9]+', label) and int(label) < len(label_order):
    return dataset.classes.index(label_order[int(label)])
  if label in dataset.file_labels and not label_order:
    return dataset.file_labels[label]
  if label in dataset.dropped_labels:
    raise ValueError(dataset.dropped_labels[label])
  if not label:
    raise ValueError('label is empty')
  raise ValueError(f'unknown label {clean_label(text)[:40]!r}')


def holdout_value(dataset: str, group: str) -> float:
  """Hashes a group of samples to [0, 1), to hold out a share of train.

  All samples of a group have the same value, so that no subject or source
  video occurs on both sides. A share s of train is held out by `value < s`.

  Args:
    dataset: its name.
    group: name of the subject, source video or sample.

  Returns:
    A number in [0, 1), the same on every machine.
  """
  digest = hashlib.blake2b(f'{dataset}/{group}'.encode(), digest_size=8)
  # 53 bits, so that it is exact and below 1 in float64.
  return (int.from_bytes(digest.digest(), 'big') >> 11) / 2**53
