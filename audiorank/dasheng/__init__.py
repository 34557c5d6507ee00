"""Weights of the official PyTorch Dasheng, both ways.

Names and shapes are those of the PyPI package dasheng (arXiv 2406.06992). A
tensor is reshaped or transposed on the way and nothing else, so a round trip
is exact.

  names.py     every tensor: its name there, its place here
  sizes.py     a config out of shapes, and what other configs say
  weights.py   from_state_dict, to_state_dict
  files.py     load: .pt and .safetensors
"""

from audiorank.dasheng.files import load
from audiorank.dasheng.weights import from_state_dict
from audiorank.dasheng.weights import to_state_dict
