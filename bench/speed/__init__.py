"""Speed, memory, load time and energy of files, and of peers."""
