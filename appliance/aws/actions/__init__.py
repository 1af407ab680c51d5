"""What is done about an event. One class an action."""
