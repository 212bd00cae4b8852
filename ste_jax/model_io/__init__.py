"""How does somebody's model become one of ours, and how does ours become theirs?"""
