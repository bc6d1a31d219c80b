"""The programs that start a Python kernel and run inside it. For Python 3.8 and later, standard library only."""
