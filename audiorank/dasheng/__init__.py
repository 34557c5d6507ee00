"""Converts weights from and to the official PyTorch Dasheng.

Names and shapes are those of the PyPI package dasheng (arXiv 2406.06992).
Tensors are only reshaped or transposed, so a round trip is exact.

  names.py     every tensor: its official name, its place in our tree
  sizes.py     the config, from shapes and from other configs
  weights.py   from_state_dict, to_state_dict
  files.py     load: .pt and .safetensors
"""

from audiorank.dasheng.files import load
from audiorank.dasheng.weights import from_state_dict
from audiorank.dasheng.weights import to_state_dict
