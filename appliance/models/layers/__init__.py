"""The layers that every model family is built from."""
