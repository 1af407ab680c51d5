"""Which request holds which block of the key/value cache, and which blocks hold text that another request can reuse."""
