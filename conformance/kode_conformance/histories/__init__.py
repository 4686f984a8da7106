"""Random histories: calls on a store and on a model next to each other, judged, shortened, and printed as programs."""
