"""What makes sandboxes: the contract, Docker, bubblewrap."""
