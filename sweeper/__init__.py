"""Sweeps of backdoor attacks against backdoor defenses."""
