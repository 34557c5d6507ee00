"""Exports models: a folder for the Hugging Face hub, StableHLO, ONNX, PyTorch.

  pretrained.py   model.safetensors, config.json, preprocessor_config.json
  card.py         README.md of a model, written from the run's records
  stablehlo.py    one file that runs without this package
  onnx.py         the same for other runtimes
  pytorch.py      one file for the official PyTorch package
  xares.py        an encoder that the X-ARES benchmark imports
"""

from audiorank.export.pretrained import destination
from audiorank.export.pretrained import load_pretrained
from audiorank.export.pretrained import save_pretrained
