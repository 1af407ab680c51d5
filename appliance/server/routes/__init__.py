"""The routes of the server, one file a group; `table.py` has them all, each with who may call it."""
