"""The command line: thin, every command calls one room."""
