"""What lives in this process: its memory, those who wait in it, and what it may run itself."""
