"""The graph dialect: what is computed, one op a structured operation, on whole tensors with named dims."""
