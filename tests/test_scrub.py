"""vemd scrub: what shows people goes, everything else stays."""

import json

import pytest

from vemd_jax import scrub

SHOWS = (
    'pictures/val_structure.png', 'gallery/gallery.json', 'gallery/a.jpg',
    'tensorboard/events.out.tfevents.1.host', 'report.html', 'overlays/a.JPG',
    'clips/b.mp4', 'traceback.txt', 'extra/events.out.tfevents.2.host',
    'notes/curves.png', 'page.html',
)  # fmt: skip
STAYS = (
    'config.json', 'classes.json', 'metrics.jsonl', 'results.json',
    'curves.png', 'confusion.png', 'model_card.html', 'model_card.md',
    'checkpoints/1/model/d/a.png', 'checkpoints/1/pictures/x',
)  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
  root = tmp_path / 'run'
  for name in SHOWS + STAYS:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('12345')
  lines = [
      {'split': 'val', 'file': 'anna_01.jpg', 'label': 'a'},
      {'split': 'val', 'file': 'bert_01.jpg', 'label': 'a'},
      {'split': 'test', 'file': 'anna_01.jpg', 'label': 'b'},
  ]
  (root / 'predictions.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
  )
  return root


def files(root):
  return {str(p.relative_to(root)) for p in root.rglob('*') if p.is_file()}


def test_what_shows_people_is_removed_and_named(workdir, capsys):
  before = files(workdir)
  assert scrub.main([str(workdir), '--dry_run']) == 0
  listed = capsys.readouterr().out
  assert files(workdir) == before
  assert scrub.main([str(workdir)]) == 0
  printed = capsys.readouterr().out
  assert listed.replace('would remove', 'removed') == printed
  assert 'removed gallery  2 files' in printed
  assert 'removed overlays/a.JPG' in printed
  assert files(workdir) == {*STAYS, 'predictions.jsonl'}
  assert 'anna_01.jpg' in (workdir / 'predictions.jsonl').read_text()
  assert scrub.main([str(workdir)]) == 0
  assert 'nothing shows a person' in capsys.readouterr().out


def test_links_are_removed_but_not_followed(workdir, tmp_path):
  outside = tmp_path / 'outside'
  outside.mkdir()
  (outside / 'own.jpg').write_text('mine')
  (workdir / 'linked.jpg').symlink_to(outside / 'own.jpg')
  (workdir / 'pictures' / 'val_structure.png').unlink()
  (workdir / 'pictures').rmdir()
  (workdir / 'pictures').symlink_to(outside)
  assert scrub.main([str(workdir)]) == 0
  assert (outside / 'own.jpg').read_text() == 'mine'
  assert not (workdir / 'linked.jpg').is_symlink()
  assert not (workdir / 'pictures').is_symlink()


def names(workdir):
  lines = (workdir / 'predictions.jsonl').read_text().splitlines()
  return [json.loads(line)['file'] for line in lines]


def test_names_are_hashed_consistently(workdir, capsys):
  original = (workdir / 'predictions.jsonl').read_text()
  found = []
  for argv in [], [], ['--salt=one'], ['--salt=one']:
    (workdir / 'predictions.jsonl').write_text(original)
    assert scrub.main([str(workdir), '--hash_names', *argv]) == 0
    assert 'hashed 3 names' in capsys.readouterr().out
    first, second, third = names(workdir)
    assert first == third != second
    assert first.startswith('hash:') and 'anna' not in first
    found.append(first)
  assert found[0] != found[1] and found[2] == found[3]
  # A second run leaves hashes as they are.
  assert scrub.main([str(workdir), '--hash_names']) == 0
  assert 'hashed 0 names' in capsys.readouterr().out
  assert names(workdir)[0] == found[3]


def test_only_workdirs(tmp_path, workdir, capsys):
  (tmp_path / 'family.jpg').write_text('mine')
  assert scrub.main([str(tmp_path)]) == 2
  assert "expected a run's workdir" in capsys.readouterr().err
  assert (tmp_path / 'family.jpg').exists()
  assert scrub.main([str(workdir), '--salt=x']) == 2
  assert '--hash_names' in capsys.readouterr().err
