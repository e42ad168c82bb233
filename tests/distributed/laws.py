"""What ranks do in tests of the laws; imported by their processes too."""
