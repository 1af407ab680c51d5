"""Measuring: what requests to send, a streaming client that sends them, and the numbers that come of it.

Works against any server that speaks OpenAI's HTTP API. The numbers are defined in `appliance.bench.statistics`.
"""
