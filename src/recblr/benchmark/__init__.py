"""Speed, as figures a program can read: one module a question."""
