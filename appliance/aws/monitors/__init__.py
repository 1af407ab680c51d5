"""What announces that the machine, or a GPU of it, is about to go. One class a source."""
