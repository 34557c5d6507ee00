"""HEAR downstream evaluation: task folders, predictors, scores.

`tasks` reads task folders, `probe` fits the predictors, `events` turns frame
probabilities into events, `scores` computes the benchmark's measures. README.md
in this folder describes the protocol.
"""
