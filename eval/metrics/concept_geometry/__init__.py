"""Concept geometry by the reference run's definitions: an `evaluate` measurement and the functions behind it."""

from .concept_geometry import ConceptGeometry, dimension_std, geometry_metrics, similarity_matrix, template_spectrum

__all__ = ["ConceptGeometry", "dimension_std", "geometry_metrics", "similarity_matrix", "template_spectrum"]
