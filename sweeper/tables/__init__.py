"""Rows become numbers, and those tables, figures and the page of a sweep; no torch, no Ray."""
