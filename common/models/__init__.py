"""The named models, their transforms and the authors' files."""
