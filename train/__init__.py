"""Train DCLS-augmented classifiers with Accelerate and publish them as checkpoints."""
