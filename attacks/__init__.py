"""Backdoor attacks, one file each; a file's name is the attack's name in a sweep file."""
