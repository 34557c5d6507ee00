"""Writes a model in a form that others read.

  python -m launch.export --checkpoint=runs/one --out=released
  python -m launch.export --checkpoint=runs/one --out=one.stablehlo --seconds=1
  python -m launch.export --checkpoint=runs/one --out=one.pt

A folder gets model.safetensors with the official Dasheng's names, config.json,
preprocessor_config.json and a model card written from the run's records: what
`audiorank.load` and the hub read. A file is the encoder alone: .pt for the
official PyTorch package; .stablehlo for jax.export.deserialize (CPU, CUDA,
TPU) and .onnx for ONNX runtimes, both with the front end inside and for any
number of clips of --seconds each.
"""

from absl import flags

from launch import cli

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'Run, Dasheng file, saved folder or hub id.',
    required=True)
_STEP = flags.DEFINE_integer('step', None, 'Which step; the newest otherwise.')
_OUT = flags.DEFINE_string('out', None, 'A folder, or a file .pt, .stablehlo '
                           'or .onnx.',
                           required=True)
_SECONDS = flags.DEFINE_float('seconds', 10., 'Length of a clip, of a file.',
                              lower_bound=.04)
_LAYER = flags.DEFINE_string('layer', 'final', "Of .stablehlo: 'final' "
                             "or a block's number.")
_DECODER = flags.DEFINE_bool('decoder', False, 'Of a folder: the decoder too.')
_SWEEP = flags.DEFINE_string('sweep', None, "Of a folder: the sweep whose law "
                             "the card asks; the run's own otherwise.")


def main(argv: list[str]) -> None:
  del argv
  # Imported here, so that --help need not wait.
  from audiorank import encoders
  from audiorank import export
  from audiorank.export import onnx
  from audiorank.export import pytorch
  from audiorank.export import stablehlo
  # Before the weights are read, so that a wrong name fails at once.
  out = export.destination(_OUT.value)
  config, params, about = encoders.weights(_CHECKPOINT.value, _STEP.value)
  # The ending decides: files are one program each, a folder has weights and a
  # card.
  if out.suffix == '.stablehlo':
    layer: str | int = _LAYER.value
    if _LAYER.value.isdecimal():
      layer = int(_LAYER.value)
    print(stablehlo.save(out, config, params, _SECONDS.value, layer))
  elif out.suffix == '.pt':
    print(pytorch.save(out, config, params))
  elif out.suffix == '.onnx':
    print(onnx.save(out, config, params, _SECONDS.value))
  else:
    print(export.save_pretrained(out, config, params, about, _DECODER.value,
                                 _SWEEP.value))


if __name__ == '__main__':
  cli.run(main)
