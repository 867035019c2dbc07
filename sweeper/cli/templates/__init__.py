"""What `sweeper new` copies: a working attack, a working defense, and a test of each."""
