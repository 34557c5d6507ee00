"""What a sweep shows and what it does not, from its tables alone."""

from audiorank.findings.sweep import Findings, find
