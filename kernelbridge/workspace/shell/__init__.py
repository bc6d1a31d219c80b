"""The persistent shell of `terminal_command`: its queue, its protocol and its terminals."""
