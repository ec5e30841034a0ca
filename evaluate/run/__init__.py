"""From a checkpoint and a data set to rows."""
