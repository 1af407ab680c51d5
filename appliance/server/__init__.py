"""The HTTP server: one aiohttp application in front of one engine. Imports no torch."""
