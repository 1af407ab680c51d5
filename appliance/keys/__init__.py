"""API keys: their file, their secrets, what each may do, and how much of it. Imports nothing else of pagebox."""
