"""What ``app new`` copies: working examples, each with its test, in which one name is replaced.

Nothing imports them from here. A file and the class in it have one name, as ``grulm.py`` and ``GRULM``, and that name
stands for nothing else in them.
"""
