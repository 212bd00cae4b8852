"""How good is a judge, and how is it measured and compared with another?"""
