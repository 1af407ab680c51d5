"""The machine's certificate: made at its first boot, renewed, and replaced by one that an authority signed."""
