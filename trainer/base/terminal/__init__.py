"""What a terminal is shown before and between tables: the first word, commands to paste."""
