"""The checkpoint under evaluation and its passes."""
