"""From rows to scores and comparisons."""
