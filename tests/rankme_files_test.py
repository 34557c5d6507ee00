"""Embeddings of any file give the rank of the array in it."""

import io
import json
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from audiorank import rankme
from audiorank.rankme import files
from audiorank.rankme import streaming


def decaying(n=300, width=12):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(n, width)) / np.arange(1, width + 1)[None]).astype(
      np.float32)


def write(path, z_ND, source_N):
  """One file of each kind, with the recordings beside where it can."""
  if path.suffix == '.npy':
    np.save(path, z_ND)
  elif path.name == 'packed.npz':
    np.savez_compressed(path, z=z_ND, source=source_N)
  elif path.suffix == '.npz':
    np.savez(path, z=z_ND, source=source_N)
  elif path.suffix == '.safetensors':
    safetensors.numpy.save_file({'z': z_ND, 'source': source_N}, path)
  elif path.name == 'wide.parquet':
    pq.write_table(pa.table({
        'source': source_N, **{f'{d}': x for d, x in enumerate(z_ND.T)}}),
                   path, row_group_size=70)
  else:
    flat = pa.array(z_ND.ravel())
    kind = (pa.FixedSizeListArray.from_arrays(flat, z_ND.shape[1])
            if path.name == 'fixed.parquet' else
            pa.array(list(z_ND)))
    pq.write_table(pa.table({'source': source_N, 'z': kind}), path,
                   row_group_size=70)
  return path


FILES = ['z.npy', 'z.npz', 'packed.npz', 'z.safetensors', 'wide.parquet',
         'fixed.parquet', 'lists.parquet']


@pytest.mark.parametrize('name', FILES)
def test_rank_of_a_file_is_that_of_its_array(tmp_path, monkeypatch, name):
  z_ND, source_N = decaying(), np.arange(300) // 4
  path = write(tmp_path / name, z_ND, source_N)
  # A chunk of seven rows.
  monkeypatch.setattr(files, 'CHUNK', 7 * 12 * 4)
  pieces = list(files.open_table(path).chunks())
  assert max(map(len, pieces)) <= 7
  np.testing.assert_array_equal(np.concatenate(pieces), z_ND)
  groups = '' if path.suffix == '.npy' else 'source'
  got = files.file_rank(path, groups=groups)
  for field, center in (('rank', False), ('rank_center', True)):
    want = rankme.estimate(
        z_ND, groups=source_N if groups else None, center=center)
    for key in ('value', 'low', 'high', 'value_inf', 'low_inf', 'high_inf'):
      assert got[field][key] == pytest.approx(
          getattr(want, key), rel=1e-9), key
    siblings = rankme.metrics(
        rankme.singular_values(z_ND, center=center), 300)
    assert got[field]['siblings'] == pytest.approx(siblings, rel=1e-6,
                                                   nan_ok=True)
  assert got['n'] == 300 and got['width'] == 12
  assert got['sources'] == (75 if groups else 300)


def test_halves_and_bfloat16_are_read(tmp_path):
  import ml_dtypes
  for dtype in (np.float16, ml_dtypes.bfloat16):
    z_ND = decaying().astype(dtype)
    safetensors.numpy.save_file({'z': z_ND}, tmp_path / 'z.safetensors')
    got = files.file_rank(tmp_path / 'z.safetensors')
    assert got['rank']['value'] == pytest.approx(
        float(rankme.rankme(z_ND.astype(np.float32))), rel=1e-6)


def test_one_vector_has_no_centred_rank(tmp_path):
  np.save(tmp_path / 'z.npy', np.ones((64, 4), np.float32))
  got = files.file_rank(tmp_path / 'z.npy')
  assert got['rank']['value'] == pytest.approx(1, abs=1e-4)
  assert got['rank_center']['value'] is None


def test_other_files_are_one_line(tmp_path):
  z_ND, source_N = decaying(), np.arange(300)
  for name in FILES:
    path = write(tmp_path / name, z_ND, source_N)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=name):
      files.file_rank(path)
    path.write_bytes(b'no such thing')
    with pytest.raises(ValueError, match=name):
      files.file_rank(path)
  with pytest.raises(FileNotFoundError, match='none.npy: no such file'):
    files.open_table(tmp_path / 'none.npy')
  with pytest.raises(ValueError, match='z.csv: expected a file .npy'):
    files.open_table(tmp_path / 'z.csv')
  np.savez(tmp_path / 'two.npz', a=z_ND, b=z_ND)
  with pytest.raises(ValueError, match='two.npz: expected one .* a, b'):
    files.open_table(tmp_path / 'two.npz')
  assert files.open_table(tmp_path / 'two.npz', 'b').shape == (300, 12)
  with pytest.raises(ValueError, match="no array 'c': there are a, b"):
    files.open_table(tmp_path / 'two.npz', 'c')
  with pytest.raises(ValueError, match="no array 'c': there are a, b"):
    files.file_rank(tmp_path / 'two.npz', 'a', groups='c')
  for bad, message in (
      (np.zeros((3, 4, 5), np.float32), r'shape \(3, 4, 5\), expected \(clip'),
      (np.ones((8, 2), np.int64), 'int64, expected floating point'),
      (np.ones((1, 2), np.float32), 'at least 2 clips, found 1'),
      (np.array([[1, 2], [3, 4], [1, np.nan]], np.float32), 'in row 2')):
    np.save(tmp_path / 'bad.npy', bad)
    with pytest.raises(ValueError, match=message):
      files.file_rank(tmp_path / 'bad.npy')
  ragged = pa.table({'z': pa.array([[1., 2.], [3.]])})
  pq.write_table(ragged, tmp_path / 'ragged.parquet')
  with pytest.raises(ValueError, match='lists of other lengths'):
    files.file_rank(tmp_path / 'ragged.parquet')


def test_columns_beside_the_dimensions_are_no_dimensions(tmp_path):
  z_ND = decaying()
  want = rankme.estimate(z_ND).value
  frame = pd.DataFrame(z_ND, columns=[f'd{i}' for i in range(12)])
  path = tmp_path / 'z.parquet'
  # What pandas writes by itself does not count.
  times = pd.Index(np.arange(300) * .04)
  for index in (times, times.rename('seconds')):
    frame.set_index(index).to_parquet(path)
    assert files.file_rank(path)['rank']['value'] == pytest.approx(want)
  for other in ('start_seconds', 'score', 'score1', 'd', ''):
    frame.assign(**{other: np.arange(300) * 10.}).to_parquet(path)
    with pytest.raises(ValueError, match=f'found {other}; --array=d takes d0'):
      files.file_rank(path)
    assert files.file_rank(path, 'd')['rank']['value'] == pytest.approx(want)
  with pytest.raises(ValueError, match="no array 'x'"):
    files.file_rank(path, 'x')
  frame[['d0', 'd1']].rename(columns={'d0': 'a', 'd1': 'b'}).to_parquet(path)
  with pytest.raises(ValueError, match='one prefix and a number, found a$'):
    files.file_rank(path)
  # Beside a column of lists no float counts.
  pd.DataFrame({'z': list(z_ND), 'score': 1.}).to_parquet(path)
  assert files.file_rank(path)['rank']['value'] == pytest.approx(want)


def test_nothing_pickled_is_opened(tmp_path):
  class Trap:

    def __reduce__(self):
      return print, ('sprung',)

  trap = np.array([[Trap()]], object)
  np.save(tmp_path / 'trap.npy', trap, allow_pickle=True)
  np.savez(tmp_path / 'trap.npz', z=trap)
  for name in ('trap.npy', 'trap.npz'):
    with pytest.raises(ValueError, match=name):
      files.file_rank(tmp_path / name)


def test_a_false_header_is_no_crash(tmp_path):
  text = json.dumps({'z': {'dtype': 'F32', 'shape': [4, 4],
                           'data_offsets': [0, 6400]}}).encode()
  (tmp_path / 'z.safetensors').write_bytes(
      len(text).to_bytes(8, 'little') + text + bytes(64))
  with pytest.raises(ValueError, match='damaged'):
    files.open_table(tmp_path / 'z.safetensors')


WIDE = 10 ** 6  # Its Gram matrices take 16 TB.


def large_header(folder, kind):
  """A small file that promises a large array; returns (path, what it says)."""
  path = folder / kind
  if kind in ('columns.npy', 'rows.npy'):
    shape = (10, 10 ** 9) if kind == 'columns.npy' else (10 ** 15, 8)
    with open(path, 'wb') as file:
      np.lib.format.write_array_header_1_0(file, {
          'descr': '<f4', 'fortran_order': False, 'shape': shape})
      file.write(bytes(320))
    return path, shape
  if kind == 'z.npz':
    with zipfile.ZipFile(path, 'w') as archive:
      text = io.BytesIO()
      np.lib.format.write_array_header_1_0(text, {
          'descr': '<f4', 'fortran_order': False, 'shape': (10, 10 ** 9)})
      archive.writestr('z.npy', text.getvalue() + bytes(320))
    return path, (10, 10 ** 9)
  header = json.dumps({'z': {'dtype': 'F32', 'shape': [10, 10 ** 9],
                             'data_offsets': [0, 320]}}).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(320))
  return path, (10, 10 ** 9)


@pytest.mark.parametrize('kind', ['columns.npy', 'rows.npy', 'z.npz',
                                  'z.safetensors'])
def test_a_header_that_promises_more_than_its_file_is_refused(
    tmp_path, kind, monkeypatch):
  monkeypatch.setattr(streaming, 'init', lambda *_: pytest.fail('allocated'))
  path, stated = large_header(tmp_path, kind)
  with pytest.raises(ValueError) as caught:
    files.file_rank(path)
  assert str(caught.value).startswith(str(path))
  assert str(stated) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['z.npy', 'packed.npz', 'z.safetensors',
                                  'lists.parquet', 'fixed.parquet'])
def test_a_width_beyond_memory_is_refused_before_it_is_asked_for(
    tmp_path, monkeypatch, name):
  path = write(tmp_path / name, np.zeros((2, WIDE), np.float32), np.arange(2))
  monkeypatch.setattr(streaming, 'init', lambda *_: pytest.fail('allocated'))
  with pytest.raises(ValueError, match=rf'{path}.*: shape \(2, {WIDE}\): its '
                     r'rank needs 16,000 GB of memory, of [\d,]+ GB') as caught:
    files.file_rank(path)
  assert '\n' not in str(caught.value)


def test_rows_beyond_memory_are_refused_and_others_are_not():
  with pytest.raises(ValueError, match=r'^z: shape \(1000000000000, 8\): '):
    files.check_memory('z', 10 ** 12, 8)
  files.check_memory('z', 10 ** 6, 1536)


def test_row_groups_that_contradict_the_file_are_refused(tmp_path):
  path = write(tmp_path / 'lists.parquet', decaying(), np.arange(300))
  whole = path.read_bytes()
  lines = []
  # 300 rows are a varint of two bytes; 428 would be as long.
  for at in range(len(whole) - 1):
    if whole[at:at + 2] == b'\xd8\x04':
      path.write_bytes(whole[:at] + b'\xd8\x06' + whole[at + 2:])
      try:
        assert files.open_table(path).shape == (300, 12)
      except ValueError as error:
        lines.append(str(error))
  assert f'{path}: damaged: 428 rows, but its row groups have 300' in lines
  assert all(line.startswith(str(path)) for line in lines)
