#!/bin/sh
# Makes a virtual environment in which the official packages run unmodified:
#
#   sh tests/peers/install.sh FOLDER [torch==VERSION]
#   FOLDER/bin/python -m pytest tests/peers
#
# None of them installs by its own metadata on Python 3.11 and newer:
#   heareval        pins numpy 1.19 and numba 0.48, which no longer build
#   hearvalidator   claims python < 3.9; pip would take an older one silently
#   torchaudio      its wheel is linked to CUDA; MelSpectrogram, which dasheng
#                   needs, is pure Python and works without the libraries
#   dasheng         asks for torchaudio's own requirements
# What they import is the extra `peers`. On a machine without an accelerator
# name a CPU build of torch, or put one on pip's index or find-links.
set -eu
folder=$1
torch=${2:-torch}
here=$(cd "$(dirname "$0")/../.." && pwd)
python3 -m venv "$folder"
pip="$folder/bin/python -m pip"
$pip install "$torch"
$pip install -e "$here[test,peers]"
$pip install --no-deps heareval==2021.1.3
$pip install --no-deps --ignore-requires-python hearvalidator==2021.0.6
$pip install --no-deps torchaudio==2.11.0 dasheng==0.0.9
rm -f "$folder"/lib/python3.*/site-packages/torchaudio/lib/*.so
$folder/bin/python "$here/tests/peers/kit.py" --versions
