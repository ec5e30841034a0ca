"""The data sets a checkpoint is measured on."""
