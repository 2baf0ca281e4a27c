"""What others measured: how their files are read and written, and what in them is hard to believe."""
