"""Train, encode and evaluate one image-text retrieval model on one machine."""
