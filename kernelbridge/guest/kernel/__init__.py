"""What runs inside a Python kernel, and what starts it. For Python 3.8 and later, standard library only."""
