"""The NGINX in front of the server process: its configuration, out of the same settings."""
