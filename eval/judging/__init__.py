"""Judge any encoder: scores with controls, geometry, behaviour, gates; and score files that others wrote."""
