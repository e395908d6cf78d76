"""The roles: extractor, manager, answerer. How each is prompted and how its completions are read."""
