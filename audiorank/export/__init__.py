"""Models on their way out: the hub's folder, its card, StableHLO, ONNX,
PyTorch.

  pretrained.py   model.safetensors, config.json, preprocessor_config.json
  card.py         README.md of a model, written from the run's records
  stablehlo.py    one file that runs without this package
  onnx.py         the same for other runtimes
  pytorch.py      one file of the official PyTorch package

The tensors of the first carry the official Dasheng's names as well.
"""

from audiorank.export.pretrained import destination
from audiorank.export.pretrained import load_pretrained
from audiorank.export.pretrained import save_pretrained
