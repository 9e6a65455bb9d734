"""Spectrum and diversity of concepts by the literature's definitions, with a null reference and intervals."""

from .concept_spectrum import (
    ConceptSpectrum,
    SpectrumAccumulator,
    bootstrap_intervals,
    gaussian_null,
    spectrum_metrics,
    static_slots_null,
)

__all__ = [
    "ConceptSpectrum",
    "SpectrumAccumulator",
    "bootstrap_intervals",
    "gaussian_null",
    "spectrum_metrics",
    "static_slots_null",
]
