"""Which recording a clip is of: tables as people have them, and patterns."""


import pytest

from audiorank.prepare import listing
from audiorank.prepare import sources
from audiorank.prepare import summary

FILES = [f'clips/c{i}.wav' for i in range(6)]
RECORDINGS = {f: f'rec{i // 3}' for i, f in enumerate(FILES)}


def rows(prefix='clips/', sep=',', files=range(6), end='\n'):
  return ''.join(f'{prefix}c{i}.wav{sep}rec{i // 3}{end}' for i in files)


def matched(tmp_path, data, files=FILES, **how):
  path = tmp_path / 'manifest.csv'
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  found, counts = sources.match(sources.read(path, **how), files, '/data/set')
  return {f: row.source for f, row in found.items()}, counts


@pytest.mark.parametrize('text', [
    'file,source\n' + rows(),
    'source,file\n' + ''.join(f'rec{i // 3},clips/c{i}.wav\n'
                              for i in range(6)),
    ('file,source\n' + rows()).encode('utf-8-sig'),
    ('file;source\n' + rows(sep=';')).encode('utf-16'),
    'file,source\r\n' + rows(end='\r\n'),
    'file,source\r' + rows(end='\r'),
    'sep=;\nfile;source\n' + rows(sep=';'),
    'file\tsource\n' + rows(sep='\t'),
    'file, source\n' + rows(sep=', '),
    ' File , Source \n' + rows(),
    'path,recording\n' + rows(),
    '"file","source"\n' + ''.join(f'"clips/c{i}.wav","rec{i // 3}"\n'
                                  for i in range(6)),
    ',file,source\n' + ''.join(f'{i},clips/c{i}.wav,rec{i // 3}\n'
                               for i in range(6)),
    'file,source\n' + rows('./clips/'), 'file,source\n' + rows('clips\\'),
    'file,source\n' + rows('.\\clips\\'), 'file,source\n' + rows(''),
    'file,source\n' + rows('/data/set/clips/'),
    'file,source\n' + rows('/home/me/set/clips/'),
    'file,source\n' + rows().replace('.wav', ''),
    'file,source\n' + rows().replace('rec0', 'rec0 + 7'),
    # Empty lines and comments, no mark of UTF-16, a shell's columns and quotes,
    # the case of Windows.
    '\n# by hand\nfile,source\n' + rows(), '#file,source\n' + rows(),
    ('file,source\n' + rows()).encode('utf-16-le'),
    ('file,source\n' + rows()).encode('utf-16-be'),
    'file   source\n' + rows(sep='   '),
    "'file','source'\n" + ''.join(f"'clips/c{i}.wav','rec{i // 3}'\n"
                                  for i in range(6)),
    'file,source\n' + rows().replace('.wav', '.WAV'),
    'file,source\n' + rows('Clips/')])
def test_any_writer_of_tables_is_understood(tmp_path, text):
  found, counts = matched(tmp_path, text)
  want = RECORDINGS
  assert {f: sources.recording(s) for f, s in found.items()} == want
  assert counts['unmatched'] == counts['ambiguous'] == 0


def test_case_counts_where_two_files_differ_in_it(tmp_path):
  files = ['a/X.wav', 'a/x.wav', 'b/Y.wav']
  text = 'file,source\nX.wav,1\nx.wav,2\ny.WAV,3\n'
  assert matched(tmp_path, text, files)[0] == dict(zip(files, '123'))


def test_a_second_recording_of_a_file_is_counted_and_not_used(tmp_path):
  text = 'file,source\nc0.wav,a\nc0.wav,b\nclips/c0.wav,a\n'
  found, counts = matched(tmp_path, text)
  assert found == {'clips/c0.wav': 'a'}
  assert counts['contradicted'] == 1 and counts['example'] == 'c0.wav'
  about = {'table': 'm.csv', 'note': '', 'files': 1, **counts}
  assert '1 give a file a second recording' in summary._sources(about)


def test_members_of_archives_are_meant_by_their_own_names(tmp_path):
  files = [f'deep/all.tar/{f}' for f in FILES]
  for prefix in ('clips/', './clips/', '', 'all.tar/clips/',
                 'deep/all.tar/clips/'):
    found, _ = matched(tmp_path, 'file,source\n' + rows(prefix), files)
    assert list(found.values()) == list(RECORDINGS.values())


def test_what_matches_only_in_part_is_counted(tmp_path):
  text = 'file,source\n' + rows(files=range(2)) + 'gone.wav,rec9\nc5.wav,rec1\n'
  found, counts = matched(tmp_path, text, FILES + ['other/c5.wav'])
  assert len(found) == 2
  assert counts == {'rows': 4, 'unmatched': 1, 'ambiguous': 1,
                    'contradicted': 0, 'example': 'gone.wav'}


def test_names_in_other_scripts_and_in_another_normal_form(tmp_path):
  files = ['e\u0301t\u00e9/\u97f3.wav']  # As one file system has it.
  found, _ = matched(tmp_path, 'file,source\n\u00e9te\u0301/\u97f3.wav,x\n',
                     files)
  assert found == {files[0]: 'x'}
  found, _ = matched(tmp_path, 'file;source\nh\xe9.wav;B\xe4r\n'.encode(
      'cp1252'), ['h\xe9.wav'])
  assert found == {'h\xe9.wav': 'B\xe4r'}


def test_single_quotation_marks_take_no_rows(tmp_path):
  # Such as Common Voice's transcripts, and a cell whose quote has no end.
  sentences = ('"Hello, he said.', 'Yes.', '"No" is "no".', '"again',
               'the end')
  files = [f'{i}.mp3' for i in range(5)]
  want = {file: f's{i % 2}' for i, file in enumerate(files)}
  for sep in '\t;':
    text = f'client_id{sep}path{sep}sentence\n' + ''.join(
        f'{want[file]}{sep}"{file}"{sep}{words}\n'
        for file, words in zip(files, sentences, strict=True))
    found, counts = matched(tmp_path, text.encode(), files,
                            source_column='client_id')
    assert found == want and counts['rows'] == 5
  # Quotes that do enclose delimiters or line ends.
  found, _ = matched(tmp_path, b'file,source,note\n"0.mp3","a, ""b""","x\ny"\n'
                     b'1.mp3,c,d\n', files)
  assert found == {'0.mp3': 'a, "b"', '1.mp3': 'c'}


def test_tables_that_are_none(tmp_path):
  for text, note in (('name;speaker\na;b\n', 'found name, speaker'),
                     ('', 'found none')):
    path = tmp_path / 'manifest.csv'
    path.write_text(text)
    table = sources.read(path)
    assert table.rows == [] and note in table.note
  path.write_bytes(b'file,source\n\0\0')
  with pytest.raises(ValueError, match='manifest.csv: unreadable'):
    sources.read(path)
  path.write_text('path\tclient_id\nx.mp3\t1\n')
  assert sources.read(path, source_column='client_id').rows == [
      sources.Row('x.mp3', '1', '')]
  with pytest.raises(ValueError, match="no column 'speaker': it has path, cl"):
    sources.read(path, source_column='speaker')


def test_a_pattern_finds_the_recording_in_the_name():
  files = ['a/19-198-0001.flac', 'a/19-198-0002.flac', 'a/27-1-0.flac', 'x.wav']
  found, missed = sources.of_pattern(r'(\d+)-(\d+)-\d+', files)
  assert found == {files[0]: '19/198', files[1]: '19/198', files[2]: '27/1'}
  assert missed == 1
  with pytest.raises(ValueError, match='not a regular expression'):
    sources.of_pattern('(', files)


def test_a_second_category_is_counted_and_not_used():
  rows = [sources.Row('a.wav', 's', 'birds'), sources.Row('a.wav', 's', 'cars')]
  by_file, counts = sources.match(sources.Table(rows, ''), ['a.wav'], '')
  assert by_file['a.wav'].category == 'birds' and counts['contradicted'] == 1


def test_rows_may_give_a_category_too():
  entry = listing.Entry('a/b.wav', '', 0, 1, 'a/b.wav', 'a', '')
  [out] = listing.with_sources([entry], {
      'a/b.wav': sources.Row('a/b.wav', 's', 'birds')})
  assert (out.source, out.category) == ('s', 'birds')


@pytest.mark.parametrize('about,text', [
    ({}, 'no manifest.csv; every file counts as a recording of its own'),
    ({'table': 'm.csv', 'note': '', 'rows': 6, 'unmatched': 6, 'ambiguous': 0,
      'files': 0, 'example': 'c.wav'},
     "m.csv: 0 of 6 rows name a file (6 name none, 0 more than one; such as "
     "'c.wav')"),
    ({'pattern': 'x', 'files': 3, 'unmatched': 1},
     "3 files by the pattern 'x', 1 do not fit it")])
def test_the_summary_says_what_was_assumed(about, text):
  assert text in summary._sources(about)
