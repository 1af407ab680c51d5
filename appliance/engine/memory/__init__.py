"""Where the memory goes: arithmetic of plain numbers, without torch, the same before a start and after measuring."""
