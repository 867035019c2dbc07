"""What is kept: artifacts, rows and a driver's claim, in a folder or any other file system."""
