"""The `ray` backend: thin shells of RLlib over the training loop. Importing a module of this package imports Ray."""
