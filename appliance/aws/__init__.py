"""The machine's surroundings in EC2: instance metadata, notices, load balancers, Auto Scaling."""
