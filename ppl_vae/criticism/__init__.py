"""See the package docstring for the map."""
