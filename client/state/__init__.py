"""What a round leaves at its site for the next one."""
