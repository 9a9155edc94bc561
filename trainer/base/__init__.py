"""What any module may use: the user's mistakes, the terminal, the machine."""
