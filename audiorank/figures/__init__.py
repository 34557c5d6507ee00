"""Figures of runs and fits: DataFrames and Fits in, matplotlib Axes out.

Every function draws into `ax` and returns it, or makes a figure of its own;
`save` writes it as PNG and PDF. Colours are safe for the colour-blind (Okabe
and Ito's for categories, part of viridis for sizes), logarithmic axes carry
plain numbers, and no legend lies on the data. Nothing here touches pyplot or a
display. The runs table has one row per run and step; see `records`.
"""

from audiorank.figures.claims import slopes
from audiorank.figures.fits import law, pairs, predicted_actual, profile
from audiorank.figures.fits import residuals
from audiorank.figures.joint import contours, frontier, isoflop
from audiorank.figures.runs import against, rank_score, trained_untrained
from audiorank.figures.sounds import embedding_map, spectrogram
from audiorank.figures.style import axes, save
from audiorank.figures.training import early_final, layers, rank_steps
from audiorank.figures.training import spectra
