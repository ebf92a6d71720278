"""What stages hand each other: pairs, embeddings, negative tables, checkpoints, and the protocol that commits them."""
