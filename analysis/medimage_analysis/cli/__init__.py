"""The commands of the analysis, as `medimage` has them."""
